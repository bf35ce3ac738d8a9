"""The settings of one process: every path, limit and address, with the unit of a number in its name.

The setting `host` is the environment variable `CIFAR_HOST`. It is read from the environment or from a file `.env` in the
working folder; the environment takes precedence. A secret can also be read from a file: `CIFAR_DATABASE_URL_FILE` names
the file that contains `CIFAR_DATABASE_URL`.

Only `cifar.environment` reads the environment. `python docs/generate.py` writes `docs/settings.md` and `.env.example`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from cifar import environment
from cifar.errors import SettingsError
from cifar.profile import with_profile

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds `app.py`, `saved_model/` and `examples/`."""

_MIN_SECRET_CHARACTERS = 32


class Settings(BaseSettings):
    """The configuration of one process, validated when it is created."""

    model_config = SettingsConfigDict(
        env_prefix="CIFAR_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,  # an error message must not contain a secret
    )

    registry: Path = Field(ROOT / "saved_model", description="Folder of the exported models, as `NAME/VERSION/`.")
    model_name: str = Field(
        "cifar_classifier", min_length=1, description="Name of the model to serve: a folder in the registry."
    )
    model_version: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("CIFAR_MODEL_VERSION", "MODEL_VERSION"),
        description="Version to serve. Default: the version promoted to stable, else the highest complete one.",
    )
    engine: Literal["auto", "tensorflow", "litert", "tfserving"] = Field(
        "auto",
        description="Library that runs the model: `tensorflow`, `litert`, `tfserving` (a TensorFlow Serving host), or "
        "`auto`: LiteRT if it is installed and the version has a LiteRT file, else TensorFlow.",
    )
    tfserving_url: str | None = Field(
        None, min_length=1, description="`HOST:PORT` of TensorFlow Serving's gRPC interface. Needed by that engine."
    )
    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - containers and Spaces need it
    port: int = Field(
        7860, ge=0, le=65535, validation_alias=AliasChoices("CIFAR_PORT", "PORT"), description="Port to listen on."
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Number of worker processes. More than one needs gunicorn: `python -m cifar serve`.",
    )
    examples: Path = Field(
        ROOT / "examples",
        description="Folder of sample images. `export` checks a model on them, and the page shows those named after a class.",
    )
    uploads: Path | None = Field(
        None,
        description="Folder in which the server makes one of its own, for files uploaded to the page. Only files in that "
        "one are deleted. Default: the system's folder for temporary files.",
    )
    data_cache: Path = Field(
        Path("~/.keras/datasets").expanduser(),
        description="Folder that CIFAR-10 is downloaded to. The default is Keras's own.",
    )

    default_top_k: int = Field(3, ge=1, description="Number of labels in an answer when the request does not say.")
    max_body_bytes: int = Field(
        20 * 1024**2, ge=1024, description="Largest request body. Uploads to the page have the same limit."
    )
    max_uploads_bytes: int = Field(
        1024**3,
        ge=1024,
        description="Size of all files uploaded to the page that are stored at the same time, also limited by the free space. Half of it is for one caller. They are deleted after an hour. The container has 268435456, since its /tmp is memory.",
    )
    max_image_pixels: int = Field(
        25_500_000,
        ge=1024,
        le=89_000_000,
        description="Largest number of pixels that are decoded of one image. A JPEG is decoded at up to 1/8 scale, so it "
        "may have up to 200,000,000; a progressive one, and HEIF, twice this limit.",
    )
    max_decoding_bytes: int = Field(
        64 * 1024**2,
        ge=1024**2,
        description="Memory for decoding images at the same time, for each process. An image that needs more, up to "
        "20 bytes a pixel, is decoded alone: one at a time on a host.",
    )
    max_loaded_versions: int = Field(
        3,
        ge=1,
        description="Versions kept in memory: all that receive traffic, and at least one that a request named.",
    )
    registry_poll_seconds: float = Field(
        1.0, gt=0, description="Interval at which servers look for new versions, labels and traffic shares."
    )
    traffic_secret: SecretStr | None = Field(
        None,
        description="Key for assigning users to versions, at least 32 characters; use the same one on all hosts. Without "
        "it, users can compute which version they are assigned to.",
    )
    max_batch_images: int = Field(
        32, ge=1, description="Largest batch passed to the model, on engines that gain from batches (TensorFlow)."
    )
    max_waiting_images: int = Field(
        256, ge=1, description="Images queued in one process. Further ones are refused with 503."
    )
    max_waiting_bytes: int = Field(
        100 * 1024**2,
        ge=1024**2,
        description="Size of all request bodies and images that wait in one process, at least two bodies. Half of it "
        "is for one caller. Further ones are refused with 503.",
    )
    max_wait_seconds: float = Field(30.0, gt=0, description="Longest time an image may be queued before it gets 503.")
    max_explained_images: int = Field(
        8, ge=1, description="Heat maps queued in one process, about 80 predictions each. Further ones get 503."
    )
    max_batch_files: int = Field(1000, ge=1, description="Images in one batch, those in archives included.")
    max_batch_bytes: int = Field(
        200 * 1024**2,
        ge=1024,
        description="Largest total size of a batch's files, unpacked. `CIFAR_MAX_BODY_BYTES` limits each file.",
    )
    mcp: bool = Field(False, description="Offer the functions to assistants by MCP, at `/gradio_api/mcp/`.")
    profile: Literal["local", "public"] = Field(
        "local",
        description="`public` for a server that strangers can reach: it turns on rate limits, unless they are set. Default on Spaces.",
    )
    version_loads_per_minute: int = Field(
        0, ge=0, description="Versions without traffic that requests may load in a minute, in one process. 0: no limit."
    )
    rate_limit_predict: str = Field(
        "", description="Limit of `POST /predict` for each caller, such as `600/minute`. Empty: no limit."
    )
    rate_limit_page: str = Field(
        "", description="Limit of calls and uploads to the page for each caller, such as `120/minute`. Empty: no limit."
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses or networks of proxies whose `X-Forwarded-For` is trusted, separated by commas; `*` for all.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="`redis://HOST:6379/0` or `rediss://`. Rate limits and cached answers are then shared by all "
        "workers and hosts. Without it, each process keeps its own.",
    )
    cache_images: int = Field(
        1000, ge=0, description="Answers cached in one process; one from six views counts as six. 0: no cache."
    )
    frame_ancestors: list[str] = Field(
        [],
        description='Sites that may embed the page in a frame, as JSON: `["https://a.example"]`. On Hugging Face '
        "Spaces the default allows Hugging Face.",
    )
    cors_origins: list[str] = Field(
        [], description='Web origins whose scripts may call the API, as JSON: `["https://a.example"]`.'
    )
    space_id: str = Field(
        "",
        validation_alias=AliasChoices("CIFAR_SPACE_ID", "SPACE_ID"),
        description="Name of the Space, set by Hugging Face.",
    )
    space_host: str | None = Field(
        None,
        validation_alias=AliasChoices("CIFAR_SPACE_HOST", "SPACE_HOST"),
        description="Host name of the Space, set by Hugging Face.",
    )
    public_url: str | None = Field(
        None,
        description="Address of the page as browsers see it, such as `https://cifar.example`. On Spaces it is known.",
    )
    root_path: str = Field(
        "",
        description="Path of the page on its host, such as `/cifar`, where a proxy serves it beside other things. The proxy "
        "may leave the path in requests or take it away. Default: the path of `CIFAR_PUBLIC_URL`.",
    )

    api_keys_file: Path | None = Field(
        None, description="File of API keys, managed by `python -m cifar keys`. If set, callers must sign in."
    )
    jwt_secret: SecretStr | None = Field(
        None, description="Secret of HS256 bearer tokens, at least 32 characters. If set, callers must sign in."
    )
    jwks_url: str | None = Field(
        None, description="Address of the public keys of RS256 and ES256 bearer tokens. If set, callers must sign in."
    )
    jwt_issuer: str | None = Field(None, min_length=1, description="Required issuer of bearer tokens (`iss`).")
    jwt_audience: str | None = Field(None, min_length=1, description="Required audience of bearer tokens (`aud`).")
    oidc_provider_url: str | None = Field(
        None,
        validation_alias=AliasChoices("CIFAR_OIDC_PROVIDER_URL", "OPENID_PROVIDER_URL"),
        description="OpenID Connect provider for signing in to the page. If set, callers must sign in.",
    )
    oidc_client_id: str | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("CIFAR_OIDC_CLIENT_ID", "OAUTH_CLIENT_ID"),
        description="Client id of this service at the OpenID Connect provider.",
    )
    oidc_client_secret: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("CIFAR_OIDC_CLIENT_SECRET", "OAUTH_CLIENT_SECRET"),
        description="Client secret of this service at the provider, at least 32 characters. The key that signs "
        "session cookies is derived from it.",
    )
    oidc_scopes: list[Literal["predict", "feedback", "admin"]] = Field(
        ["predict", "feedback"], description="Scopes of people who sign in to the page, as JSON."
    )
    session_seconds: int = Field(8 * 3600, ge=60, description="Time a person stays signed in to the page.")

    log_format: Literal["text", "json"] = Field(
        "text", description="Format of log lines: `text`, or `json` for one object each."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged. Requests for health checks and assets are at `debug`."
    )
    access_log: bool = Field(True, description="Write one log line for each request.")
    log_addresses: bool = Field(
        False, description="Write the client's address into the log line of each request. It is personal data."
    )
    records: bool = Field(True, description="Record predictions (without the image) and accept feedback on them.")
    records_folder: Path = Field(
        ROOT / "var", description="Folder of the records: journals, kept images and the SQLite file."
    )
    database_url: SecretStr | None = Field(
        None,
        description="Database of the records: `postgresql://USER:PASSWORD@HOST/DATABASE`, also of a pooler. Without it, a SQLite "
        "file in the records folder.",
    )
    records_key: SecretStr | None = Field(
        None,
        description="Secret for hashing user names in the records, at least 32 characters; the same on all hosts. "
        "Without it, one is created in the records folder.",
    )
    records_retention_days: float = Field(
        90.0, gt=0, description="Age at which records, feedback and kept images are deleted."
    )
    keep_uploads: bool = Field(False, description="Keep the images of recorded predictions too.")
    max_kept_images: int = Field(
        10_000, ge=1, description="Largest number of kept images. At the limit, no more are kept until old ones expire."
    )
    max_kept_bytes: int = Field(1024**3, ge=1024, description="Largest total size of the kept images.")

    operator_tabs: bool = Field(
        False,
        description="Show the A/B test and drift on the page to everyone. With sign-in, callers with the scope `admin` "
        "see them, whatever this says.",
    )
    ab_window_days: float = Field(14.0, gt=0, description="Days that the A/B report covers, up to now.")
    ab_effect_share: float = Field(
        0.02,
        ge=0.001,
        le=0.5,
        description="Smallest difference in accuracy that the A/B test should detect. Set it before the first look.",
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, chosen: dict[str, object]) -> dict[str, object]:
        return with_profile(chosen)

    @field_validator("rate_limit_predict", "rate_limit_page")
    @classmethod
    def _check_rate(cls, text: str) -> str:
        if text and not re.fullmatch(r"[1-9]\d*/(second|minute|hour|day)", text):
            raise ValueError("expected NUMBER/second, /minute, /hour or /day, such as 600/minute")
        return text

    @field_validator("registry", "uploads", "examples", "data_cache", "api_keys_file", "records_folder")
    @classmethod
    def _expand_home(cls, path: Path | None) -> Path | None:
        return path and path.expanduser()

    @field_validator("root_path")
    @classmethod
    def _check_path(cls, path: str) -> str:
        if not re.fullmatch(r"((/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+/?|/)?", path):
            raise ValueError("expected a path such as /cifar")
        return path

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, text: str) -> str:
        return environment.proxies(text)

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_send_them(cls, origins: list[str]) -> list[str]:
        return [environment.web_origin(origin) for origin in origins]

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url:
            environment.refuse_wrong_redis_address(url.get_secret_value())
        return url

    @field_validator("jwt_secret", "oidc_client_secret", "records_key", "traffic_secret")
    @classmethod
    def _refuse_short_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        """Refuse a secret that can be found by trying: one signature is enough to test guesses against."""
        if secret and len(secret) < _MIN_SECRET_CHARACTERS:
            raise ValueError(f"expected at least {_MIN_SECRET_CHARACTERS} characters; got {len(secret)}")
        return secret

    @field_validator("jwks_url", "oidc_provider_url", "public_url")
    @classmethod
    def _check_address(cls, url: str | None, field: ValidationInfo) -> str | None:
        return url and environment.secure_address(url if field.field_name == "jwks_url" else url.rstrip("/"))

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine == "tfserving" and not self.tfserving_url:
            raise ValueError("CIFAR_ENGINE=tfserving needs CIFAR_TFSERVING_URL, such as tensorflow-serving:8500.")
        return self

    @model_validator(mode="after")
    def _refuse_incomplete_sign_in(self) -> Self:
        """Refuse half a configuration: a server that was meant to require sign-in must not start without it."""
        tokens = {"CIFAR_JWT_ISSUER": self.jwt_issuer, "CIFAR_JWT_AUDIENCE": self.jwt_audience}
        if self.jwt_secret and self.jwks_url:
            raise ValueError(
                "Set CIFAR_JWT_SECRET or CIFAR_JWKS_URL, not both: a server accepts one kind of bearer token."
            )
        if any(tokens.values()) and not (self.jwt_secret or self.jwks_url):
            raise ValueError("Bearer tokens need CIFAR_JWT_SECRET or CIFAR_JWKS_URL.")
        if self.jwt_secret or self.jwks_url:
            environment.require("Bearer tokens need", tokens)
        people = {
            "CIFAR_OIDC_PROVIDER_URL": self.oidc_provider_url,
            "CIFAR_OIDC_CLIENT_ID": self.oidc_client_id,
            "CIFAR_OIDC_CLIENT_SECRET": self.oidc_client_secret,
        }
        if any(people.values()):
            environment.require("Sign-in to the page needs", {**people, "CIFAR_PUBLIC_URL": self.page_url})
        return self

    @model_validator(mode="after")
    def _refuse_two_paths(self) -> Self:
        if (path := urlsplit(self.public_url or "").path) and self.root_path.rstrip("/") not in {"", path}:
            raise ValueError(f"CIFAR_ROOT_PATH={self.root_path} is not the path of CIFAR_PUBLIC_URL={self.public_url}.")
        return self

    @property
    def path(self) -> str:
        """Path of the page on its host, without a slash at the end; empty at the root."""
        return self.root_path.rstrip("/") or urlsplit(self.public_url or "").path

    @property
    def requires_sign_in(self) -> bool:
        return any((self.api_keys_file, self.jwt_secret, self.jwks_url, self.oidc_provider_url))

    @property
    def page_url(self) -> str | None:
        """Address of the page as browsers see it, without a slash at the end."""
        host = self.public_url or (f"https://{self.space_host}" if self.space_host else None)
        return host and host.removesuffix(self.path) + self.path


def load_settings() -> Settings:
    """Read the settings from the environment and `.env`.

    Raises:
        SettingsError: a variable is unknown or its value is wrong. The message names the first such variable, its
            value (unless it is a secret) and what was expected.
    """
    variables = environment.read_variables()
    environment.refuse_unknown(variables, Settings.model_fields, _secrets())
    secrets = environment.read_secrets(variables, _secrets())
    try:
        return Settings(**secrets)  # type: ignore[arg-type]
    except ValidationError as error:
        raise environment.wrong_value(error, variables, Settings.model_fields, _secrets()) from error
    except SourceError as error:  # a list that is not JSON; only the message names the field
        name = "CIFAR_" + str(error).split('"')[1].upper()
        raise SettingsError(f'{name}={variables.get(name)!r} must be a JSON list, such as ["A", "B"].') from error


def _secrets() -> list[str]:
    return [name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None]
