"""Write docs/errors.md, docs/settings.md and the CIFAR_* part of .env.example from cifar/errors.py and cifar/settings.py.

Run `python docs/generate.py` after a change of one of them. With `--check` nothing is written, and the exit status is 1 if
a file is out of date.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import AliasChoices, SecretStr  # noqa: E402 - after the path

from cifar.errors import CifarError  # noqa: E402
from cifar.settings import Settings  # noqa: E402

TOPICS = {
    "Most used": "profile model_name model_version port workers records api_keys_file rate_limit_predict rate_limit_page "
    "public_url root_path database_url redis_url log_format",
    "Models": "registry engine tfserving_url max_loaded_versions version_loads_per_minute registry_poll_seconds traffic_secret max_batch_images",
    "Requests": "default_top_k max_body_bytes max_image_pixels max_decoding_bytes max_batch_files max_batch_bytes "
    "max_waiting_images max_waiting_bytes max_uploads_bytes max_wait_seconds max_explained_images cache_images mcp",
    "Network": "host trusted_proxies cors_origins frame_ancestors space_id space_host",
    "Sign-in": "jwt_secret jwks_url jwt_issuer jwt_audience oidc_provider_url oidc_client_id oidc_client_secret "
    "oidc_scopes session_seconds",
    "Records and logs": "records_folder records_key records_retention_days keep_uploads max_kept_images max_kept_bytes "
    "log_level access_log log_addresses",
    "A/B tests": "operator_tabs ab_window_days ab_effect_share",
    "Folders": "examples uploads data_cache",
}
NGINX = "# ---- nginx"
"""The line that begins the hand-written part of .env.example."""

ERRORS = """\
# Errors

*Generated from [cifar/errors.py](../cifar/errors.py) by `python docs/generate.py`.*

Every error of the server has the body `{"error": "<sentence>", "code": "<stable>", "request_id": "…"}`. The sentence says what came,
what was expected and what to do; its wording may change. The code does not change, so programs should compare codes. The header
`Retry-After` says when a retry can help. In a batch, the error of one file stands in the row of that file.

| status | code | meaning | what to do |
|---|---|---|---|
"""
NGINX_ERRORS = """
In the container nginx answers some of these itself, and adds two codes:

| status | code | meaning | what to do |
|---|---|---|---|
| 421 | `other_host` | The request names a host that is not in `NGINX_HOSTS`. | Use one of those names. |
| 429 | `too_many_connections` | One address has more than `NGINX_CONNECTIONS_PER_ADDRESS` requests in progress. | Wait for some of them. |

Commands print their errors to stderr and exit with status 1. Besides the errors above they have these:

| code | meaning |
|---|---|
"""
SETTINGS = """\
# Settings

*Generated from [cifar/settings.py](../cifar/settings.py) by `python docs/generate.py`.*

Each setting is an environment variable, or a line of a file `.env` in the working folder; the environment takes precedence.
[.env.example](../.env.example) is such a file with every default. A variable that begins with `CIFAR_` and is not in this list, or a value
that cannot be used, stops the start with a message. A secret (marked so below) can also be read from a file:
`CIFAR_REDIS_URL_FILE=/run/secrets/redis` instead of `CIFAR_REDIS_URL`. The settings of nginx in the container (`NGINX_*`) are at the end of `.env.example`.
"""


def errors_page() -> str:
    tree: list[type[CifarError]] = [CifarError]
    for error in tree:
        tree += error.__subclasses__()
    commands = [error for error in tree if error.status == CifarError.status and error is not CifarError]
    served = sorted((error for error in tree if error not in commands), key=lambda error: error.status)
    served_rows = [f"| {error.status} | `{error.code}` | {' | '.join(meaning_and_advice(error))} |" for error in served]
    command_rows = [f"| `{error.code}` | {meaning_and_advice(error)[0]} |" for error in commands]
    return ERRORS + "\n".join(served_rows) + "\n" + NGINX_ERRORS + "\n".join(command_rows) + "\n"


def meaning_and_advice(error: type[CifarError]) -> tuple[str, str]:
    meaning, _, advice = inspect.cleandoc(error.__doc__ or "").partition("\n\n")
    if not advice and error.retry_after_seconds:
        advice = "Retry after the seconds in `Retry-After`."
    return " ".join(meaning.split()), " ".join(advice.split())


def settings_page() -> str:
    page = SETTINGS
    for topic, names in topics().items():
        rows = "\n".join(f"| `{variable(name)}` | {code(default(name))} | {meaning(name)} |" for name in names)
        page += f"\n## {topic}\n\n| variable | default | meaning |\n|---|---|---|\n{rows}\n"
    return page


def env_example(current: str) -> str:
    """Return .env.example: each setting commented out with its default, then the part about nginx of the `current` file."""
    page = "# Every setting with its default. Copy this file to .env and change what you need. The environment takes precedence.\n"
    for topic, names in topics().items():
        page += f"\n# ---- {topic} ----\n"
        for name in names:
            comment = textwrap.fill(meaning(name), 120, initial_indent="# ", subsequent_indent="# ")
            page += f"{comment}\n#{variable(name)}={default(name)}\n"
    return page + "\n" + current[current.index(NGINX) :]


def topics() -> dict[str, list[str]]:
    listed = " ".join(TOPICS.values()).split()
    if sorted(listed) != sorted(Settings.model_fields):
        wrong = ", ".join(sorted(set(listed) ^ set(Settings.model_fields))) or "a repeated name"
        sys.exit(f"TOPICS in docs/generate.py must name each setting once. Look at: {wrong}.")
    return {topic: names.split() for topic, names in TOPICS.items()}


def variable(name: str) -> str:
    return f"CIFAR_{name.upper()}"


def default(name: str) -> str:
    """Return the default in the form of a line of `.env`, with folders relative to the project or to the home folder."""
    value = Settings.model_fields[name].default
    text = "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)
    for path, short in ((f"{ROOT}/", ""), (str(Path.home()), "~"), (tempfile.gettempdir(), "/tmp")):  # noqa: S108
        text = text.replace(path, short)
    return text


def meaning(name: str) -> str:
    field = Settings.model_fields[name]
    notes = ["(Secret.)"] if field.annotation == SecretStr | None else []
    if isinstance(field.validation_alias, AliasChoices):
        notes += [f"`{other}` works too." for other in field.validation_alias.choices if other != variable(name)]
    return " ".join([field.description or "", *notes])


def code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    example = ROOT / ".env.example"
    files = {
        ROOT / "docs/errors.md": errors_page(),
        ROOT / "docs/settings.md": settings_page(),
        example: env_example(example.read_text()),
    }
    outdated = [file for file, text in files.items() if not file.exists() or file.read_text() != text]
    if "--check" not in sys.argv:
        for file in outdated:
            file.write_text(files[file])
    elif outdated:
        names = ", ".join(str(file.relative_to(ROOT)) for file in outdated)
        sys.exit(f"Out of date: {names}. Run: python docs/generate.py")
