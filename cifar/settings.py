"""Every path and every limit, each with its unit in its name. Only this file reads the environment.

A setting `x` is the variable `CIFAR_X`, from the environment or from a file `.env` in the working folder; the
environment wins. `.env.example` lists them all, and a test keeps that list complete. A secret may also be in a file: for a secret
`x`, the variable `CIFAR_X_FILE` names the file that holds it.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from cifar.errors import SettingsError
from cifar.settings_signin import SignInSettings, long_enough

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds `app.py`, `saved_model/` and `examples/`."""


class Settings(SignInSettings):
    """The configuration of one process, checked when it is made."""

    model_config = SettingsConfigDict(
        env_prefix="CIFAR_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,  # an error about a secret must not show it
    )

    registry: Path = Field(ROOT / "saved_model", description="Folder of exported models: NAME/VERSION/.")
    model_name: str = Field(
        "cifar_classifier", min_length=1, description="The model to serve, a folder in the registry."
    )
    model_version: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("CIFAR_MODEL_VERSION", "MODEL_VERSION"),
        description="The version to serve. Unset: the highest complete one.",
    )
    engine: Literal["auto", "tensorflow", "litert", "tfserving"] = Field(
        "auto", description="What runs the model. auto: LiteRT where version and machine have it, else TensorFlow."
    )
    tfserving_url: str | None = Field(
        None, min_length=1, description="Where TensorFlow Serving's gRPC is, HOST:PORT, for the engine tfserving."
    )
    tfserving_timeout_seconds: float = Field(
        5.0, gt=0, description="Longest wait for TensorFlow Serving, further attempts included."
    )
    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - containers and Spaces need it
    port: int = Field(
        7860, ge=0, le=65535, validation_alias=AliasChoices("CIFAR_PORT", "PORT"), description="Port to listen on."
    )
    workers: int = Field(1, ge=1, le=256, description="Processes that serve; more than one needs gunicorn.conf.py.")
    worker_slot: int = Field(0, ge=0, description="This worker's number; gunicorn.conf.py sets it.")
    worker_files: Path = Field(
        Path(tempfile.gettempdir()) / "cifar-workers",
        description="Folder of the workers' Unix sockets and counts; gunicorn.conf.py sets it.",
    )
    examples: Path = Field(
        ROOT / "examples",
        description="Folder of sample images: for export checks, and on the page those named after a class.",
    )
    uploads: Path = Field(
        Path(tempfile.gettempdir()) / "cifar-space", description="Folder for files uploaded to the page; swept by age."
    )
    data_cache: Path = Field(
        Path("~/.keras/datasets").expanduser(), description="Where CIFAR-10 is fetched to; Keras looks there too."
    )

    default_top_k: int = Field(3, ge=1, description="How many labels an answer ranks when the caller does not say.")
    max_body_bytes: int = Field(
        20 * 1024**2, ge=1024, description="Largest request body, uploads to the page included."
    )
    max_call_bytes: int = Field(
        64 * 1024, ge=1024, description="Largest JSON body of a call to the page; images come by upload."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1024, le=89_000_000, description="Largest width x height, read from the header before decoding."
    )
    max_loaded_versions: int = Field(
        3, ge=1, description="Versions kept in memory: those users are sent to, and at least one that was asked for."
    )
    registry_poll_seconds: float = Field(
        1.0, gt=0, description="Time within which running servers notice new versions, labels and traffic."
    )
    traffic_secret: SecretStr | None = Field(
        None,
        description="Key of the users' split between versions, the same on all hosts. Unset: anybody can compute it.",
    )
    max_shadow_images: int = Field(
        4, ge=1, description="Images under way to shadow versions in one process; more are left out, and counted."
    )
    max_batch_images: int = Field(
        32, ge=1, description="Images given to the model at once, on engines that gain from it (TensorFlow)."
    )
    max_waiting_images: int = Field(
        256, ge=1, description="Images in one process that wait to be decoded or classified; more are answered 503."
    )
    max_wait_seconds: float = Field(30.0, gt=0, description="Longest wait of one image; then it is answered 503.")
    max_explained_images: int = Field(
        8,
        ge=1,
        description="Images in one process that wait for their heat map, 80 answers each; more are answered 503.",
    )
    max_call_images: int = Field(256, ge=1, description="Images in one call of TensorFlow Serving's `:predict`.")
    max_batch_files: int = Field(1000, ge=1, description="Images in one batch, those in its archives included.")
    max_batch_bytes: int = Field(
        200 * 1024**2,
        ge=1024,
        description="Largest sum of a batch's files, unpacked; each alone: CIFAR_MAX_BODY_BYTES.",
    )
    max_batch_calls: int = Field(4, ge=1, description="Batches under way in one process; more are answered 503.")
    max_zip_ratio: float = Field(100.0, gt=1, description="How many times its packed size a file of a zip may have.")
    mcp: bool = Field(False, description="Whether assistants may call the functions by MCP, at /gradio_api/mcp/.")
    rate_limit_predict: str = Field(
        "", description="Most POST /predict of one caller, such as 600/minute. Empty: no limit."
    )
    rate_limit_page: str = Field(
        "", description="Most calls and uploads to the page of one caller, such as 120/minute. Empty: no limit."
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses or networks whose X-Forwarded-For names the client, separated by commas; * for all.",
    )
    redis_url: SecretStr | None = Field(
        None, description="redis://HOST:6379/0: limits and answers shared by all workers and hosts. Unset: by process."
    )
    redis_timeout_seconds: float = Field(0.2, gt=0, description="Longest wait for Redis; then it is done without.")
    breaker_failures: int = Field(5, ge=1, description="Failures in a row after which a dependency is left alone.")
    breaker_recovery_seconds: int = Field(10, ge=1, description="Time until a dependency that was left alone is tried.")
    cache_images: int = Field(1000, ge=0, description="Answers kept in one process by the image's digest. 0: no cache.")
    cache_lifetime_seconds: int = Field(3600, ge=1, description="How long Redis keeps an answer.")
    max_queued_calls: int = Field(100, ge=1, description="Calls by gradio_client waiting in one process.")
    max_page_sessions: int = Field(1000, ge=1, description="Open pages remembered in one process; the oldest go first.")
    upload_lifetime_seconds: int = Field(
        3600, ge=60, description="Age at which a file uploaded to the page is deleted."
    )
    frame_ancestors: list[str] = Field(
        [],
        description='Sites that may show the page in a frame, as JSON: ["https://a.example"]. On Spaces, theirs may.',
    )
    space_id: str = Field(
        "",
        validation_alias=AliasChoices("CIFAR_SPACE_ID", "SPACE_ID"),
        description="The name of this Space; Hugging Face sets it where it hosts one.",
    )
    cors_origins: list[str] = Field(
        [], description='Web origins whose pages may call the API, as JSON: ["https://a.example"].'
    )

    log_format: Literal["text", "json"] = Field(
        "text", description="How log lines look: for people, or one JSON object each."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe lines of our own; health checks and assets are at debug."
    )
    access_log: bool = Field(True, description="Whether each request gets a line.")
    records: bool = Field(
        True, description="Whether predictions are recorded, and feedback on them is taken; never the image itself."
    )
    records_folder: Path = Field(
        ROOT / "var", description="Folder of the records: journals, kept images, and the SQLite file."
    )
    database_url: SecretStr | None = Field(
        None,
        description="postgresql+psycopg://USER:PASSWORD@HOST/DATABASE for the records. Unset: SQLite in the records folder.",
    )
    records_key: SecretStr | None = Field(
        None, description="Secret that users are hashed with, 32 characters or more. Unset: one is made in the folder."
    )
    records_flush_seconds: float = Field(
        1.0, gt=0, description="Time after which what was recorded moves from the journal into the database."
    )
    records_timeout_seconds: float = Field(5.0, gt=0, description="Longest wait for the records' database.")
    max_journal_bytes: int = Field(
        64 * 1024**2,
        ge=4096,
        description="Largest journal of one process, while the database is away; then no more is recorded.",
    )
    records_retention_days: float = Field(90.0, gt=0, description="Age at which records, feedback and kept images go.")
    keep_uploads: bool = Field(False, description="Whether the images of recorded predictions are kept too.")
    max_kept_images: int = Field(10_000, ge=1, description="Images kept; then no more are until some have gone by age.")
    max_kept_bytes: int = Field(1024**3, ge=1024, description="Their largest sum.")
    max_feedback_note_characters: int = Field(1000, ge=0, description="Longest note of a feedback.")

    ab_window_days: float = Field(14.0, gt=0, description="Days up to now that the A/B report looks at.")
    ab_effect_share: float = Field(
        0.02,
        ge=0.001,
        le=0.5,
        description="Least difference of accuracies worth finding. The A/B test is made for it: set it before the first look.",
    )
    max_report_rows: int = Field(
        100_000, ge=1, description="Records that the A/B report and drift look at: of more, the newest."
    )
    drift_window_hours: float = Field(24.0, gt=0, description="Hours up to now whose images are recent.")
    drift_min_images: int = Field(500, ge=1, description="Recent images of a version before anything is said of drift.")
    drift_warn_psi: float = Field(0.1, gt=0, description="Population stability index from which on a feature drifts.")
    drift_alert_psi: float = Field(0.25, gt=0, description="The same, from which on somebody is to be told.")
    drift_refresh_seconds: float = Field(
        300.0, ge=0, description="How often one worker measures drift for the metrics. 0: never."
    )

    bulk_part_images: int = Field(
        10_000, ge=1, description="Images in one part of a bulk run: in memory at once, and lost when it is killed."
    )

    download_stall_seconds: float = Field(15.0, gt=0, description="Window over which a download's rate is measured.")
    download_min_bytes_per_second: int = Field(
        300_000, ge=0, description="A host slower than this over one window is given up for the next."
    )

    @field_validator("rate_limit_predict", "rate_limit_page")
    @classmethod
    def _is_a_rate(cls, text: str) -> str:
        if text and not re.fullmatch(r"[1-9]\d*/(second|minute|hour|day)", text):
            raise ValueError("expected NUMBER/second, /minute, /hour or /day, such as 600/minute")
        return text

    @field_validator(
        "registry", "uploads", "examples", "data_cache", "api_keys_file", "records_folder", check_fields=False
    )
    @classmethod
    def _expand_home(cls, path: Path | None) -> Path | None:
        return path and path.expanduser()

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url:
            from redis.connection import parse_url

            try:
                parse_url(url.get_secret_value())  # type: ignore[no-untyped-call] # redis is half typed
            except ValueError:  # of whose words some hold a part of the address, which may hold a password
                raise ValueError("expected redis://HOST:6379/0, or rediss:// for TLS") from None
        return url

    @field_validator("records_key")
    @classmethod
    def _refuse_a_weak_key(cls, secret: SecretStr | None) -> SecretStr | None:
        return long_enough(secret)

    @model_validator(mode="after")
    def _refuse_half_an_engine(self) -> Self:
        if self.engine == "tfserving" and not self.tfserving_url:
            raise ValueError("CIFAR_ENGINE=tfserving needs CIFAR_TFSERVING_URL, such as tensorflow-serving:8500.")
        return self


def load_settings() -> Settings:
    """Read the settings from the environment and `.env`.

    Raises:
        SettingsError: names the first variable that is wrong, what came and what was expected.
    """
    given = {**dotenv_values(".env"), **os.environ}
    known = {f"CIFAR_{name.upper()}" for name in Settings.model_fields}
    secret_files = {f"CIFAR_{name.upper()}_FILE": name for name in _secrets()}
    for name in sorted(given):
        if name.startswith("CIFAR_") and name not in known | secret_files.keys():
            words = {each.removeprefix("CIFAR_"): each for each in known}  # what all begin with makes nothing alike
            close = difflib.get_close_matches(name.removeprefix("CIFAR_"), words, n=1)
            raise SettingsError(f"There is no setting {name}." + (f" Did you mean {words[close[0]]}?" if close else ""))
    read = {name: _read_secret(file, given) for file, name in secret_files.items() if given.get(file)}
    try:
        return Settings(**read)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _as_settings_error(error, given) from error
    except SourceError as error:  # a list that is no JSON; which, only the message tells
        field = str(error).partition('"')[2].partition('"')[0].upper()
        raise SettingsError(f'CIFAR_{field} must be a JSON list such as ["https://a.example"]: {error}.') from error


def _secrets() -> list[str]:
    return [name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None]


def _read_secret(variable: str, given: Mapping[str, str | None]) -> str:
    """A secret from the file that `variable` names."""
    if given.get(variable.removesuffix("_FILE")):
        raise SettingsError(f"Set {variable} or {variable.removesuffix('_FILE')}, not both.")
    try:
        secret = Path(given[variable] or "").expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{variable}={given[variable]!r} cannot be read: {type(error).__name__}.") from error
    if not secret:
        raise SettingsError(f"{variable}={given[variable]!r} is empty.")
    return secret


def _as_settings_error(error: ValidationError, given: Mapping[str, str | None]) -> SettingsError:
    """The first thing that is wrong, with the variable's name; a secret is not shown."""
    first = error.errors()[0]
    if not first["loc"]:
        return SettingsError(first["msg"].removeprefix("Value error, "))
    field = str(first["loc"][0]).upper().removeprefix("CIFAR_")
    alias = Settings.model_fields[field.lower()].validation_alias
    others = [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else []
    variable = next((name for name in (f"CIFAR_{field}", *others, f"CIFAR_{field}_FILE") if given.get(name)), field)
    came = variable if field.lower() in _secrets() else f"{variable}={first['input']!r}"
    return SettingsError(f"{came} is not usable: {first['msg'].removeprefix('Value error, ')}.")


def set_upload_folder(folder: Path) -> None:
    """Tell Gradio where uploads go. It asks whenever it needs to know, so one process has one such folder."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)


def quiet_tensorflow() -> None:
    """Keep most of TensorFlow's C++ greetings off stderr (not those before its logging is set up). Must run before its import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def process_environment() -> dict[str, str]:
    """What a process that replaces this one inherits."""
    return dict(os.environ)
