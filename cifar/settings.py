"""Every path and every limit, each with its unit in its name. Only this file reads the environment.

A setting `x` is the variable `CIFAR_X`, from the environment or from a file `.env` in the working folder; the
environment wins. `.env.example` lists them all, and a test keeps that list complete.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from cifar.errors import SettingsError

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds `app.py`, `saved_model/` and `examples/`."""


class Settings(BaseSettings):
    """The configuration of one process, checked when it is made."""

    model_config = SettingsConfigDict(
        env_prefix="CIFAR_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
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
    engine: Literal["auto", "tensorflow", "litert"] = Field(
        "auto", description="What runs the model. auto: LiteRT where version and machine have it, else TensorFlow."
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
        2, ge=1, description="Versions kept in memory: the default one and those asked for."
    )
    max_batch_images: int = Field(
        32, ge=1, description="Images given to the model at once, on engines that gain from it (TensorFlow)."
    )
    max_waiting_images: int = Field(
        256, ge=1, description="Images in one process that wait to be decoded or classified; more are answered 503."
    )
    max_wait_seconds: float = Field(30.0, gt=0, description="Longest wait of one image; then it is answered 503.")
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

    @field_validator("registry", "uploads", "examples", "data_cache")
    @classmethod
    def _expand_home(cls, path: Path) -> Path:
        return path.expanduser()


def load_settings() -> Settings:
    """Read the settings from the environment and `.env`.

    Raises:
        SettingsError: names the first variable that is wrong, what came and what was expected.
    """
    given = {**dotenv_values(".env"), **os.environ}
    known = {f"CIFAR_{name.upper()}" for name in Settings.model_fields}
    for name in sorted(given):
        if name.startswith("CIFAR_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise SettingsError(f"There is no setting {name}." + (f" Did you mean {close[0]}?" if close else ""))
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]).upper().removeprefix("CIFAR_")
        variable = next((name for name in (f"CIFAR_{field}", field) if given.get(name)), field)
        raise SettingsError(f"{variable}={first['input']!r} is not usable: {first['msg']}.") from error
    except SourceError as error:  # a list that is no JSON
        named = re.search(r'field "(\w+)"', str(error))
        variable = f"CIFAR_{named[1].upper()}" if named else "A list"
        raise SettingsError(f'{variable} must be a JSON list such as ["https://a.example"]: {error}.') from error


def set_upload_folder(folder: Path) -> None:
    """Tell Gradio where uploads go. It asks whenever it needs to know, so one process has one such folder."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)


def quiet_tensorflow() -> None:
    """Keep most of TensorFlow's C++ greetings off stderr (not those before its logging is set up). Must run before its import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def process_environment() -> dict[str, str]:
    """What a process that replaces this one inherits."""
    return dict(os.environ)
