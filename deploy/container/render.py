"""Fill in the variables of nginx.conf: `render.py nginx.conf > FOLDER/nginx.conf`. `.env.example` explains them."""

import ipaddress
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

DEFAULTS = {
    "PORT": "7860",
    "NGINX_TLS_PORT": "7443",
    "NGINX_TLS_FOLDER": "/etc/cifar/tls",
    "NGINX_UPSTREAM": "127.0.0.1:7861",
    "NGINX_HOSTS": "",
    "NGINX_TRUSTED_PROXIES": "",
    "NGINX_METRICS_FROM": "",
    "NGINX_CONNECTIONS_PER_ADDRESS": "128",
    "NGINX_DRAIN_SECONDS": "5",
    "NGINX_RUN_FOLDER": "/tmp/nginx",  # noqa: S108 - the container's own
    "CIFAR_MAX_BODY_BYTES": "20971520",
}


def _number(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,9}", text):
        raise ValueError("expected a whole number above 0")
    return text


def _folder(text: str) -> str:
    if not re.fullmatch(r"/[\w./-]+", text):
        raise ValueError("expected an absolute path of letters, digits, and ._-/")
    return text


def _upstream(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+:[0-9]{1,5}", text):
        raise ValueError("expected HOST:PORT")
    return text


def _hosts(text: str) -> str:
    """Return the line of a map from accepted Host headers to the host that the app gets, with its port."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not all(re.fullmatch(r"[A-Za-z0-9.-]+", name) for name in names):
        raise ValueError("expected host names, separated by commas")
    chosen = "|".join(map(re.escape, [*names, "localhost"])) if names else r"[a-z0-9._-]+|\[[0-9a-f:.]+\]"
    return f'"~*^({chosen})(:[0-9]{{1,5}})?$" $http_host;'


def _networks(text: str) -> list[str]:
    return [str(ipaddress.ip_network(part.strip(), strict=False)) for part in text.split(",") if part.strip()]


def _geo(text: str) -> str:
    """Return the lines of a geo block with the value 1 for these networks."""
    return " ".join(f"{network} 1;" for network in _networks(text))


_CHECKS: dict[str, Callable[[str], str]] = {
    "NGINX_TLS_FOLDER": _folder,
    "NGINX_RUN_FOLDER": _folder,
    "NGINX_UPSTREAM": _upstream,
    "NGINX_HOSTS": _hosts,
    "NGINX_TRUSTED_PROXIES": _geo,
    "NGINX_METRICS_FROM": _geo,
}


def render(template: str, environment: Mapping[str, str]) -> str:
    """Replace each `${NAME}`; nginx's own variables have no braces.

    Raises:
        ValueError: a variable is not usable; the message names it, its value and what was expected.
    """
    values = {}
    for name, default in DEFAULTS.items():
        value = environment.get(name) or default
        if value.startswith("tcp://"):  # by Kubernetes, for a Service whose name is the beginning of this variable
            value = default
        try:
            values[name] = _CHECKS.get(name, _number)(value)
        except ValueError as error:
            raise ValueError(f"{name}={value!r} is not usable: {error}.") from error
    proxies = _networks(environment.get("NGINX_TRUSTED_PROXIES", ""))
    values["REAL_IP_FROM"] = " ".join(f"set_real_ip_from {network};" for network in proxies)
    values["LISTEN_TLS"] = _listen_tls(Path(values["NGINX_TLS_FOLDER"]), values["NGINX_TLS_PORT"])
    values["ROOT_PATH"] = _root_path(environment)
    values["TLS"] = "on" if values["LISTEN_TLS"] else "off"
    return re.sub(r"\$\{([A-Z_]+)\}", lambda match: values[match[1]], template)


def _root_path(environment: Mapping[str, str]) -> str:
    """Return the lines that take the app's path away, so that the locations below are found."""
    path = (environment.get("CIFAR_ROOT_PATH") or urlsplit(environment.get("CIFAR_PUBLIC_URL", "")).path).rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*", path):
        raise ValueError(f"CIFAR_ROOT_PATH={path!r} is not usable: expected a path such as /cifar.")
    pattern = path.replace(".", r"\.")
    return f"absolute_redirect off; rewrite ^{pattern}$ {path}/ permanent; rewrite ^{pattern}(/.*)$ $1;" if path else ""


def _listen_tls(folder: Path, port: str) -> str:
    certificate, key = folder / "tls.crt", folder / "tls.key"
    if certificate.exists() != key.exists():
        raise ValueError(f"NGINX_TLS_FOLDER={str(folder)!r} is not usable: it needs both tls.crt and tls.key.")
    if not certificate.exists():
        return ""
    return f"listen {port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key};"


if __name__ == "__main__":
    try:
        sys.stdout.write(render(Path(sys.argv[1]).read_text(), os.environ))
    except ValueError as error:
        sys.exit(f"start: {error}")
