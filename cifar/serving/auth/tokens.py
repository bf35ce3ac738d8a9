"""JWT bearer tokens: signed by a shared secret (HS256), or by whom a JWKS address speaks for (RS256, ES256).

Which of the two it is, is a setting; a token's header only names one of the public keys. So `none` is no algorithm here,
and a public key is never taken for a secret.
"""

from __future__ import annotations

from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm

from cifar.errors import CifarError, InvalidCredentials, SettingsError
from cifar.serving.auth.jwks import PublicKeys
from cifar.serving.auth.principal import Principal, caller
from cifar.settings import Settings

_REFUSED = "The bearer token is not valid: wrongly signed, expired, or not for this service."
_MAX_NAME_CHARACTERS = 255


class Tokens:
    """Checks the tokens of one issuer for one audience."""

    def __init__(self, keys: PublicKeys | str, *, issuer: str, audience: str, clock_skew_seconds: float) -> None:
        """Check with `keys`, the issuer's public ones or the secret shared with it.

        Raises:
            SettingsError: the secret is a key of the other kind.
        """
        if isinstance(keys, str):
            try:
                HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(keys)
            except jwt.InvalidKeyError as error:
                raise SettingsError(f"CIFAR_JWT_SECRET is no secret for HS256: {error}") from error
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._leeway = clock_skew_seconds

    async def claims(self, token: str) -> dict[str, Any]:
        """What the token says, after everything about it was checked.

        Raises:
            InvalidCredentials: something is wrong with it. The caller does not learn what.
            SignInUnavailable: the public keys cannot be had.
        """
        try:
            key = self._keys if isinstance(self._keys, str) else await self._key_of(self._keys, token)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=["HS256"] if isinstance(key, str) else [key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )
        except CifarError:
            raise
        except Exception as error:  # numbers too large, JSON too deep: a token is whatever its sender wanted
            raise InvalidCredentials(_REFUSED) from error
        name = claims["sub"]
        if not name or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
            raise InvalidCredentials(_REFUSED)
        return claims

    async def _key_of(self, keys: PublicKeys, token: str) -> jwt.PyJWK:
        key_id = jwt.get_unverified_header(token).get("kid")
        key = await keys.get(key_id) if isinstance(key_id, str) else None
        if key is None:
            raise InvalidCredentials(_REFUSED)
        return key


class BearerTokens:
    """Tells who a bearer token speaks for."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def caller(self, token: str) -> Principal:
        """Who sent `token`, with the scopes in its claim `scope` (a text) or `scp` (a text or a list).

        Raises:
            InvalidCredentials: the token is not to be trusted.
            SignInUnavailable: the public keys cannot be had.
        """
        claims = await self._tokens.claims(token)
        scopes = claims.get("scope", claims.get("scp", ""))
        listed = scopes.split() if isinstance(scopes, str) else scopes if isinstance(scopes, list) else []
        return caller("jwt", claims["sub"], listed)


def bearer_tokens(settings: Settings) -> BearerTokens | None:
    """What checks bearer tokens by the settings, or nothing where they name no keys."""
    keys = (
        settings.jwt_secret.get_secret_value()
        if settings.jwt_secret
        else PublicKeys(settings.jwks_url, settings)
        if settings.jwks_url
        else None
    )
    if keys is None or settings.jwt_issuer is None or settings.jwt_audience is None:
        return None
    return BearerTokens(
        Tokens(
            keys,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            clock_skew_seconds=settings.clock_skew_seconds,
        )
    )
