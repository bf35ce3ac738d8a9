"""Fixtures of nginx in front of a server with two workers. A test file may replace `upstream`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.nginx import Nginx, certificate_in, running_nginx


@pytest.fixture(scope="module")
def upstream(two_workers) -> str:
    return two_workers.address.removeprefix("http://")


@pytest.fixture(scope="module")
def front(upstream, tmp_path_factory) -> Iterator[Nginx]:
    with running_nginx(tmp_path_factory.mktemp("front"), upstream) as nginx:
        yield nginx


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    return certificate_in(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def secure(upstream, certificate, tmp_path_factory) -> Iterator[Nginx]:
    """Nginx with a certificate."""
    with running_nginx(tmp_path_factory.mktemp("secure"), upstream, NGINX_TLS_FOLDER=str(certificate)) as nginx:
        yield nginx
