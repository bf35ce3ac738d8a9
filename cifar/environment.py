"""Reads the environment for `cifar.settings`. No other module reads it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AliasChoices, ValidationError
from pydantic.fields import FieldInfo

from cifar.errors import SettingsError

PREFIX = "CIFAR_"
_LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}
_OF_SERVICES = re.compile(r"CIFAR_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_PORT = re.compile(r"CIFAR_(\w+_)?PORT")
_ADDRESS = re.compile("(tcp|udp|sctp)://")


def read_variables() -> dict[str, str | None]:
    """Return the variables of `.env` and of the environment, which takes precedence.

    Those that Kubernetes sets in every pod are removed from the environment first, because nobody chose them: with a Service
    named `cifar`, `CIFAR_PORT` is an address.
    """
    for name in [name for name, value in os.environ.items() if _is_from_kubernetes(name, value)]:
        del os.environ[name]
    return {**dotenv_values(".env"), **os.environ}


def _is_from_kubernetes(name: str, value: str) -> bool:
    return bool(_OF_SERVICES.fullmatch(name) or (_PORT.fullmatch(name) and _ADDRESS.match(value)))


def refuse_unknown(variables: Collection[str], settings: Collection[str], secrets: Collection[str]) -> None:
    """Refuse a variable that begins with `CIFAR_` and is no setting.

    Args:
        variables: names of variables.
        settings: names of settings.
        secrets: names of the settings that can be read from a file too.

    Raises:
        SettingsError: the first such variable, with the most similar setting.
    """
    known = {f"{PREFIX}{name.upper()}" for name in settings} | {f"{PREFIX}{name.upper()}_FILE" for name in secrets}
    for name in sorted(variables):
        if name.startswith(PREFIX) and name not in known:
            # The prefix is left out, because with it every name looks similar.
            close = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), settings, n=1)
            hint = f" Did you mean {PREFIX}{close[0].upper()}?" if close else ""
            raise SettingsError(f"There is no setting {name}.{hint}")


def read_secrets(variables: Mapping[str, str | None], secrets: Collection[str]) -> dict[str, str]:
    """Return the secrets that files hold: `CIFAR_DATABASE_URL_FILE` names the one of `CIFAR_DATABASE_URL`.

    Raises:
        SettingsError: a file cannot be read, is empty, or the variable without `_FILE` is set too.
    """
    files = {name: f"{PREFIX}{name.upper()}_FILE" for name in secrets}
    return {name: _read_secret(file, variables) for name, file in files.items() if variables.get(file)}


def wrong_value(
    error: ValidationError,
    variables: Mapping[str, str | None],
    fields: Mapping[str, FieldInfo],
    secrets: Collection[str],
) -> SettingsError:
    """Describe the first wrong value and name its variable. The value of a secret is not shown.

    Args:
        error: what creating the settings raised.
        variables: names and values of all variables.
        fields: the settings.
        secrets: names of the settings that are secret.
    """
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return SettingsError(reason)
    field = str(first["loc"][0]).upper().removeprefix(PREFIX)
    alias = fields[field.lower()].validation_alias
    aliases = [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else []
    names = (f"{PREFIX}{field}", *aliases, f"{PREFIX}{field}_FILE")
    variable = next((name for name in names if variables.get(name)), names[0])
    value = variable if field.lower() in secrets else f"{variable}={first['input']!r}"
    return SettingsError(f"{value} is not usable: {reason}.")


def require(beginning: str, values: Mapping[str, object]) -> None:
    """Raise ValueError with the names of the variables that have no value."""
    if missing := [name for name, value in values.items() if not value]:
        raise ValueError(f"{beginning} {' and '.join(missing)} too.")


def secure_address(url: str) -> str:
    """Return an address with HTTPS. With plain HTTP, an attacker who can change the answers could sign in as any user.

    Raises:
        ValueError: it is another address, and not one of this machine.
    """
    parts = urlsplit(url)
    if not (parts.hostname and (parts.scheme == "https" or parts.hostname in _LOOPBACK_HOSTS)):
        raise ValueError("expected an address that begins with https:// (http:// only to this machine)")
    return url


def proxies(text: str) -> str:
    """Return addresses and networks as they are. A server believes no proxy that is named in another way, and does not say so.

    Raises:
        ValueError: one of them is neither an address nor a network nor `*`.
    """
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            part == "*" or ip_network(part)
        except ValueError as error:
            raise ValueError(f"expected addresses or networks, such as 172.30.0.0/24, or *; {error}") from error
    return text


def refuse_wrong_redis_address(url: str) -> None:
    """Raise ValueError if the client cannot read the address. The client's own message can quote a part of it, and so the password."""
    from redis.connection import parse_url

    try:
        parse_url(url)  # type: ignore[no-untyped-call] # redis is half typed
    except ValueError:
        raise ValueError("expected redis://HOST:6379/0, or rediss:// for TLS") from None


def web_origin(text: str) -> str:
    """Return a web origin as browsers send it: in lower case, without the scheme's own port and a slash at the end.

    Raises:
        ValueError: the text is neither an origin nor `*` or `null`.
    """
    origin = text.strip().lower().rstrip("/")
    if origin not in {"*", "null"} and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
        raise ValueError("expected origins such as https://a.example, without a path")
    return re.sub(r"^(http://.*):80$|^(https://.*):443$", r"\1\2", origin)


def _read_secret(variable: str, variables: Mapping[str, str | None]) -> str:
    """Return the content of the file that `variable` (`CIFAR_..._FILE`) names."""
    file, direct = variables[variable] or "", variable.removesuffix("_FILE")
    if variables.get(direct):
        raise SettingsError(f"Set {variable} or {direct}, not both.")
    try:
        secret = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{variable}={file!r} cannot be read: {type(error).__name__}.") from error
    if not secret:
        raise SettingsError(f"{variable}={file!r} is empty.")
    return secret


def process_environment() -> dict[str, str]:
    """Return a copy of this process's environment, to pass it to another program."""
    return dict(os.environ)
