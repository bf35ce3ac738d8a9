"""JWT bearer tokens: signed with a shared secret (HS256), or with a key that a JWKS address lists (RS256, ES256).

The settings, never the token, decide which algorithms are accepted. A token's header only chooses among the listed public
keys, so the algorithm `none` is never accepted, and a public key is never used as a secret.
"""

from __future__ import annotations

from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm

from cifar.dependency import Dependency
from cifar.errors import CifarError, InvalidCredentials, SettingsError
from cifar.serving.auth.jwks import IMPACT, PublicKeys
from cifar.serving.auth.principal import Principal, make_principal
from cifar.settings import Settings

CLOCK_SKEW_SECONDS = 30
"""Tolerated difference between the clock of a token's issuer and ours."""
_REFUSED = "The bearer token is not valid: wrongly signed, expired, or not for this service."
_MAX_NAME_CHARACTERS = 255


class Tokens:
    """Checks the tokens of one issuer for one audience."""

    def __init__(self, keys: PublicKeys | str, *, issuer: str, audience: str) -> None:
        """Check with `keys`: the issuer's public keys, or the secret shared with it.

        Raises:
            SettingsError: the secret is a public or private key.
        """
        if isinstance(keys, str):
            try:
                HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(keys)
            except jwt.InvalidKeyError as error:
                raise SettingsError(f"CIFAR_JWT_SECRET is not a secret for HS256: {error}") from error
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    async def claims(self, token: str) -> dict[str, Any]:
        """Check a token completely and return its claims.

        Raises:
            InvalidCredentials: the token is not valid. The message does not say why.
            SignInUnavailable: the public keys cannot be fetched.
        """
        try:
            key = self._keys if isinstance(self._keys, str) else await self._key_of(self._keys, token)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=["HS256"] if isinstance(key, str) else [key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=CLOCK_SKEW_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )
        except CifarError:
            raise
        except Exception as error:  # a token may contain anything, such as huge numbers or deeply nested JSON
            raise InvalidCredentials(_REFUSED) from error
        name = claims["sub"]
        if not name or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
            raise InvalidCredentials(_REFUSED)
        return claims

    async def principal(self, token: str) -> Principal:
        """Return the sender of `token`, with the scopes in its claim `scope` (a string) or `scp` (a string or a list).

        Raises:
            InvalidCredentials: the token is not valid.
            SignInUnavailable: the public keys cannot be fetched.
        """
        claims = await self.claims(token)
        scopes = claims.get("scope", claims.get("scp", ""))
        listed = scopes.split() if isinstance(scopes, str) else scopes if isinstance(scopes, list) else []
        return make_principal("jwt", claims["sub"], listed)

    async def _key_of(self, keys: PublicKeys, token: str) -> jwt.PyJWK:
        key_id = jwt.get_unverified_header(token).get("kid")
        key = await keys.get(key_id) if isinstance(key_id, str) else None
        if key is None:
            raise InvalidCredentials(_REFUSED)
        return key


def bearer_tokens(settings: Settings) -> tuple[Tokens | None, list[Dependency]]:
    """Return the check of bearer tokens, or None if the settings name no keys, and the outside service that it needs.

    Raises:
        SettingsError: the secret is a public or private key.
    """
    if settings.jwt_issuer is None or settings.jwt_audience is None:
        return None, []
    expected = {"issuer": settings.jwt_issuer, "audience": settings.jwt_audience}
    if settings.jwt_secret:
        return Tokens(settings.jwt_secret.get_secret_value(), **expected), []
    host = Dependency("jwks", impact=IMPACT)
    return Tokens(PublicKeys(settings.jwks_url or "", host), **expected), [host]
