"""The Helm chart, rendered without helm, and the sets of values that tests render it with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml
from helm_python.chart import Chart

from cifar.settings import ROOT

CHART = ROOT / "deploy/helm/cifar-space"
KUBERNETES = ("1.25", "1.31", "1.37")
SECRETS = {"CIFAR_DATABASE_URL": "postgresql+psycopg://u:p@db/cifar", "CIFAR_RECORDS_KEY": "k" * 32}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "ingress with TLS": {
        "ingress": {"enabled": True, "hosts": ["cifar.example", "www.cifar.example"], "tlsSecret": "tls"}
    },
    "another controller": {"ingress": {"enabled": True, "className": "traefik", "hosts": ["cifar.example"]}},
    "autoscaling": {
        "autoscaling": {"enabled": True, "queueWaitMilliseconds": 50},
        "redis": {"enabled": True, "password": "x1"},
    },
    "a writable claim": {
        "models": {
            "source": "claim",
            "claim": {"storageClass": "nfs"},
            "writable": True,
        },
        "settings": {"CIFAR_API_KEYS_FILE": "/models/api-keys.json"},
    },
    "TensorFlow Serving": {
        "models": {"source": "claim", "claim": {"existing": "models"}},
        "tfserving": {"enabled": True, "replicas": 2},
        "redis": {"enabled": True, "password": "x1"},
    },
    "models from an image": {
        "models": {"source": "init", "init": {"image": "registry.example/models:7"}},
        "image": {"repository": "registry.example/cifar", "digest": "sha256:" + "0" * 64, "pullSecrets": ["pull"]},
        "tfserving": {"enabled": True},
        "records": True,
        "secrets": {"values": SECRETS},
    },
    "monitoring": {
        "monitoring": {
            "serviceMonitor": True,
            "rules": True,
            "dashboard": True,
            "labels": {"release": "prometheus"},
            "tokenSecret": "t",
        },
        "secrets": {"existing": "cifar"},
        "records": True,
        "networkPolicy": {"to": [{"ports": [{"port": 5432, "protocol": "TCP"}]}]},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    },
}
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, for which Kubernetes has no schema."""


@cache
def chart() -> Chart:
    return Chart.load(CHART)


class Strict(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys, of which other loaders silently drop one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; a duplicate key fails the test."""
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep)


def rendered(values: dict[str, Any], of: Chart | None = None) -> list[dict[str, Any]]:
    manifests = (of or chart()).render(values, name="demo", namespace="space")
    texts = [text for path, text in sorted(manifests.items()) if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.load_all(text, Strict) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def app(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in of_kind(documents, "Deployment") if each["metadata"]["name"] == "demo-cifar-space")


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for deployment in of_kind(documents, "Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]


def settings_of(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Return the settings that the app gets from its ConfigMap."""
    (found,) = [each for each in of_kind(documents, "ConfigMap") if each["metadata"]["name"] == "demo-cifar-space"]
    return found["data"]
