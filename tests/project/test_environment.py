"""The environment: what is read as a setting, and what Kubernetes puts there by itself."""

from __future__ import annotations

import sys

import pytest
import yaml

from cifar.errors import SettingsError
from cifar.settings import ROOT, load_settings

sys.path.insert(0, str(ROOT / "deploy/container"))
from render import render


def of_service(name: str, port: int) -> dict[str, str]:
    """Return what Kubernetes sets in every pod for a Service, as of version 1.34."""
    name = name.upper().replace("-", "_")
    address = f"tcp://10.96.0.7:{port}"
    return {
        f"{name}_SERVICE_HOST": "10.96.0.7",
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP_ALT": str(port),
        f"{name}_PORT": address,
        f"{name}_PORT_{port}_TCP": address,
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": "10.96.0.7",
    }


@pytest.mark.parametrize("service", ["cifar", "cifar-redis", "cifar-cifar-space", "cifar-port", "cifar-space-host"])
def test_variables_that_kubernetes_sets_for_a_service_are_no_settings(service, monkeypatch):
    """They are in every pod of the namespace, and nobody chose them: one used to stop the server, another was taken for the port."""
    monkeypatch.setenv("PORT", "7999")
    for name, value in of_service(service, 7860).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CIFAR_DNS_PORT_53_UDP", "udp://10.96.0.10:53")
    monkeypatch.setenv("CIFAR_DNS_PORT", "udp://10.96.0.10:53")
    assert load_settings().port == 7999


@pytest.mark.parametrize(
    "name", ["CIFAR_PROT", "CIFAR_REDIS_PORT", "CIFAR_SERVICE", "CIFAR_SERVICE_HOSTS", "CIFAR_PORT_7860", "CIFAR_HOST_"]
)
def test_a_mistyped_setting_is_still_refused(name, monkeypatch):
    """A setting that looks like one of Kubernetes' own must not be lost silently."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"no setting {name}"):
        load_settings()


def test_the_port_itself_is_still_checked(monkeypatch):
    """Only an address is one of Kubernetes' own."""
    monkeypatch.setenv("CIFAR_PORT", "eighty")
    with pytest.raises(SettingsError, match="CIFAR_PORT='eighty'"):
        load_settings()


def test_nginx_takes_no_port_from_a_service_named_like_its_settings():
    """A Service `nginx-tls` gives NGINX_TLS_PORT=tcp://..., which used to end the container."""
    template = (ROOT / "nginx.conf").read_text()
    assert render(template, of_service("nginx-tls", 443)) == render(template, {})


def test_the_job_of_training_gets_no_variables_of_services():
    """As the pods of the chart."""
    _, job = yaml.safe_load_all((ROOT / "deploy/kubernetes/train.yaml").read_text())
    assert job["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_a_trusted_proxy_is_an_address_or_a_network(monkeypatch):
    """A host name, or an address with the length of its network, used to be trusted by nobody, and nothing said why."""
    for right in ("*", "127.0.0.1, ::1,172.30.0.0/24", ""):
        monkeypatch.setenv("CIFAR_TRUSTED_PROXIES", right)
        assert load_settings().trusted_proxies
    for wrong in ("nginx", "172.30.0.1/24", "10.0.0.0/8 192.168.0.0/16"):
        monkeypatch.setenv("CIFAR_TRUSTED_PROXIES", wrong)
        with pytest.raises(SettingsError, match=r"CIFAR_TRUSTED_PROXIES=.* expected addresses or networks"):
            load_settings()


def test_a_web_origin_is_compared_as_browsers_send_it(monkeypatch):
    """With a slash at the end, as in an address bar, it used to match no origin, and nothing said why."""
    monkeypatch.setenv("CIFAR_CORS_ORIGINS", '["https://A.example/", "http://b:8080", "https://c:443", "app://x", "*"]')
    assert load_settings().cors_origins == ["https://a.example", "http://b:8080", "https://c", "app://x", "*"]
    for wrong in ("a.example", "https://a.example/path", "https://", ""):
        monkeypatch.setenv("CIFAR_CORS_ORIGINS", f'["{wrong}"]')
        with pytest.raises(SettingsError, match=r"CIFAR_CORS_ORIGINS=.* without a path"):
            load_settings()
