"""The settings of who may call: keys, tokens, and people's sign-in. `settings.py` has the others, and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings

_MIN_SECRET_CHARACTERS = 32
_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


def long_enough(secret: SecretStr | None) -> SecretStr | None:
    """Refuse a short one: who sees one signature can try secrets for as long as they like."""
    if secret and len(secret) < _MIN_SECRET_CHARACTERS:
        raise ValueError(f"expected at least {_MIN_SECRET_CHARACTERS} characters; got {len(secret)}")
    return secret


class SignInSettings(BaseSettings):
    """Off while none of the ways in is set."""

    api_keys_file: Path | None = Field(
        None, description="File of API keys, written by `python -m cifar keys`. Set: callers must sign in."
    )
    api_keys_reload_seconds: float = Field(
        1.0, ge=0, description="Time within which running workers notice a key made or revoked."
    )
    max_token_bytes: int = Field(8192, ge=256, description="Longest API key or bearer token that is looked at.")
    jwt_secret: SecretStr | None = Field(
        None, description="Secret of HS256 bearer tokens, 32 characters or more. Set: callers must sign in."
    )
    jwks_url: str | None = Field(
        None, description="Where the public keys of RS256 and ES256 bearer tokens are. Set: callers must sign in."
    )
    jwt_issuer: str | None = Field(None, min_length=1, description="Who must have issued a bearer token (`iss`).")
    jwt_audience: str | None = Field(None, min_length=1, description="Whom a bearer token must be for (`aud`).")
    clock_skew_seconds: float = Field(
        30.0, ge=0, le=300, description="How far the clock of a token's issuer may be from ours."
    )
    jwks_cache_seconds: float = Field(300.0, gt=0, description="Age at which public keys are fetched again.")
    jwks_stale_seconds: float = Field(
        3600.0, gt=0, description="Age up to which public keys are used while their host does not answer."
    )
    jwks_refetch_seconds: float = Field(
        30.0, gt=0, description="Least time between two fetches because of a key that is not known."
    )
    provider_timeout_seconds: float = Field(
        5.0, gt=0, description="Longest wait for a host of public keys or a sign-in provider."
    )
    provider_max_failures: int = Field(
        5, ge=1, description="Failures in a row after which that host is left alone for a while."
    )
    provider_retry_seconds: int = Field(30, ge=1, description="How long it is left alone.")
    oidc_provider_url: str | None = Field(
        None,
        validation_alias=AliasChoices("CIFAR_OIDC_PROVIDER_URL", "OPENID_PROVIDER_URL"),
        description="OpenID Connect provider where people sign in to the page. Set: callers must sign in.",
    )
    oidc_client_id: str | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("CIFAR_OIDC_CLIENT_ID", "OAUTH_CLIENT_ID"),
        description="What the provider calls this service.",
    )
    oidc_client_secret: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("CIFAR_OIDC_CLIENT_SECRET", "OAUTH_CLIENT_SECRET"),
        description="What the provider knows this service by. Cookies are signed with a key made from it.",
    )
    public_url: str | None = Field(
        None, description="Where browsers find the page: https://cifar.example. On Spaces it is known."
    )
    space_host: str | None = Field(
        None, validation_alias=AliasChoices("CIFAR_SPACE_HOST", "SPACE_HOST"), description="Set by Hugging Face Spaces."
    )
    oidc_scopes: list[Literal["predict", "feedback", "admin"]] = Field(
        ["predict", "feedback"], description="What people who sign in to the page may do, as JSON."
    )
    session_seconds: int = Field(8 * 3600, ge=60, description="How long a person stays signed in to the page.")

    @field_validator("jwt_secret", "oidc_client_secret")
    @classmethod
    def _refuse_weak_secrets(cls, secret: SecretStr | None) -> SecretStr | None:
        return long_enough(secret)

    @field_validator("jwks_url", "oidc_provider_url", "public_url")
    @classmethod
    def _refuse_plain_http(cls, url: str | None) -> str | None:
        """Who can change an answer on its way could sign in as anybody."""
        parts = urlsplit(url or "")
        if url and not (parts.hostname and (parts.scheme == "https" or parts.hostname in _THIS_MACHINE)):
            raise ValueError("expected an address that begins with https:// (http:// only to this machine)")
        return url and url.rstrip("/")

    @model_validator(mode="after")
    def _refuse_half_a_sign_in(self) -> Self:
        """A service that was meant to be closed must not start open."""
        tokens = {"CIFAR_JWT_ISSUER": self.jwt_issuer, "CIFAR_JWT_AUDIENCE": self.jwt_audience}
        if self.jwt_secret and self.jwks_url:
            raise ValueError("Set CIFAR_JWT_SECRET or CIFAR_JWKS_URL, not both: tokens are of one kind.")
        if any(tokens.values()) and not (self.jwt_secret or self.jwks_url):
            raise ValueError("Bearer tokens need CIFAR_JWT_SECRET or CIFAR_JWKS_URL.")
        if self.jwt_secret or self.jwks_url:
            _require("Bearer tokens need", tokens)
        people = {
            "CIFAR_OIDC_PROVIDER_URL": self.oidc_provider_url,
            "CIFAR_OIDC_CLIENT_ID": self.oidc_client_id,
            "CIFAR_OIDC_CLIENT_SECRET": self.oidc_client_secret,
        }
        if any(people.values()):
            _require("Sign-in to the page needs", {**people, "CIFAR_PUBLIC_URL": self.page_url})
        return self

    @property
    def signs_in(self) -> bool:
        """Whether callers must say who they are."""
        return any((self.api_keys_file, self.jwt_secret, self.jwks_url, self.oidc_provider_url))

    @property
    def page_url(self) -> str | None:
        """Where browsers find the page, without a slash at the end."""
        return self.public_url or (f"https://{self.space_host}" if self.space_host else None)


def _require(words: str, values: Mapping[str, object]) -> None:
    if missing := [name for name, value in values.items() if not value]:
        raise ValueError(f"{words} {' and '.join(missing)} too.")
