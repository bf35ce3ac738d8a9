"""Tests of the Helm chart as a whole: eight sets of values, rendered and checked against three Kubernetes versions."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from helm_python.chart import lint
from support.helm import CHART, CUSTOM, KUBERNETES, VALUES, app, chart, containers, of_kind, pods, rendered, settings_of

from cifar.settings import ROOT, Settings

every_set = pytest.mark.parametrize("values", VALUES)


@every_set
@pytest.mark.parametrize(
    "version", [KUBERNETES[-1], *(pytest.param(each, marks=pytest.mark.slow) for each in KUBERNETES[:-1])]
)
def test_every_manifest_is_valid_for_kubernetes(values, version):
    """Unknown fields and wrong types are found before installation."""
    documents = rendered(VALUES[values])
    assert len(documents) >= 6
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)


@every_set
def test_no_container_is_root_or_writable_and_all_have_limits(values):
    """This holds for every container, init containers included, and no pod has a token of the cluster."""
    for name, pod in pods(rendered(VALUES[values])):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            assert re.search(r"(:[\w.-]+|@sha256:[0-9a-f]{64})$", container["image"]), "pinned"


@every_set
def test_each_selector_matches_the_pods_of_one_component(values):
    """The claims, ConfigMaps and Secrets that pods name exist too."""
    documents = rendered(VALUES[values])
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(documents)}
    for document in documents:
        spec = document.get("spec", {})
        selector = spec.get("podSelector", {}).get("matchLabels") or spec.get("selector")
        selector = selector.get("matchLabels", selector) if selector else None
        if selector and document["kind"] != "ServiceMonitor":
            chosen = [name for name, own in labels.items() if selector.items() <= own.items()]
            assert len(chosen) == 1, (document["kind"], document["metadata"]["name"])
    made = {(each["kind"], each["metadata"]["name"]) for each in documents}
    external = {("PersistentVolumeClaim", "models"), ("Secret", "cifar"), ("Secret", "tls")}
    for name, pod in pods(documents):
        for volume in pod["spec"]["volumes"]:
            for field, kind, key in (
                ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName"),
            ):
                if field in volume:
                    assert (kind, volume[field][key]) in made | external, name
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}, name


@every_set
def test_the_app_has_probes_a_graceful_shutdown_and_a_spread(values):
    """The grace period covers preStop, nginx and gunicorn; replicas are spread over nodes."""
    deployment = app(rendered(VALUES[values]))
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    assert container["lifecycle"]["preStop"]["exec"]["command"][0] == "sleep"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= pause + 30 + 30, (
        "NGINX_DRAIN_SECONDS and gunicorn's graceful_timeout"
    )
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert spec["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@every_set
def test_every_setting_exists_and_no_secret_is_in_a_configmap(values):
    """The app refuses to start with an unknown setting."""
    documents = rendered(VALUES[values])
    settings = settings_of(documents)
    known = {f"CIFAR_{name.upper()}" for name in Settings.model_fields}
    nginx = set(re.findall(r"NGINX_[A-Z_]+", (ROOT / ".env.example").read_text()))
    assert settings.keys() <= known | nginx
    secret = {
        f"CIFAR_{name.upper()}" for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
    }
    assert not settings.keys() & secret
    assert "p@db" not in yaml.safe_dump_all(of_kind(documents, "ConfigMap"))


def test_the_chart_and_compose_have_the_same_defaults():
    """They agree on the profile, workers, shutdown time and images."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    chosen = {
        name: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", str(value))
        for service in ("app", "nginx")
        for name, value in compose[service]["environment"].items()
    }
    settings = settings_of(rendered({}))
    for name in ("CIFAR_WORKERS", "CIFAR_PROFILE", "NGINX_DRAIN_SECONDS"):
        assert settings[name] == chosen[name], name
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["redis"]["image"] == compose["redis"]["image"]
    assert values["tfserving"]["image"] == compose["tensorflow-serving"]["image"]
    flags = next(pod for name, pod in pods(rendered(VALUES["TensorFlow Serving"])) if "tfserving" in name)
    command = flags["spec"]["containers"][0]["command"]
    assert set(compose["tensorflow-serving"]["command"]) <= set(command)


def test_the_chart_uses_the_files_of_deploy():
    """Rules, dashboard and TensorFlow Serving's files are not copied, so they cannot diverge."""
    monitored = rendered(VALUES["monitoring"])
    rules = {each["metadata"]["name"]: each["spec"] for each in of_kind(monitored, "PrometheusRule")}
    files = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    assert rules == {f"demo-cifar-space-{file.stem}": yaml.safe_load(file.read_text()) for file in files}
    (dashboard,) = [each for each in of_kind(monitored, "ConfigMap") if "dashboard" in each["metadata"]["name"]]
    assert dashboard["data"] == {
        file.name: file.read_text() for file in (ROOT / "deploy/grafana/dashboards").glob("*.json")
    }
    served = rendered(VALUES["TensorFlow Serving"])
    (config,) = [each for each in of_kind(served, "ConfigMap") if "tfserving" in each["metadata"]["name"]]
    assert config["data"] == {file.name: file.read_text() for file in (ROOT / "deploy/tfserving").iterdir()}


def test_network_policies_allow_the_named_connections_only():
    """Redis and TensorFlow Serving accept connections from the app only, and open none."""
    policies = {
        each["metadata"]["name"]: each["spec"]
        for each in of_kind(rendered(VALUES["TensorFlow Serving"]), "NetworkPolicy")
    }
    assert set(policies) == {f"demo-cifar-space{part}" for part in ("", "-redis", "-tfserving")}
    sources = policies["demo-cifar-space"]["ingress"][0]["from"]
    assert [source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for source in sources] == [
        "ingress-nginx",
        "monitoring",
    ]
    ports = [port["port"] for rule in policies["demo-cifar-space"]["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 6379, 8500]
    for part in ("redis", "tfserving"):
        assert policies[f"demo-cifar-space-{part}"]["egress"] == []


def test_the_scraped_job_has_the_name_in_the_alerts():
    """Rules and dashboard select job="cifar"; otherwise CifarDown would always fire and no other alert ever."""
    documents = rendered(VALUES["monitoring"])
    (monitor,) = of_kind(documents, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    job = {rule["replacement"] for rule in endpoint.get("relabelings", []) if rule["targetLabel"] == "job"}
    selected = re.findall(r"job=\W*(\w+)", yaml.safe_dump_all(of_kind(documents, "PrometheusRule")))
    assert selected
    assert job == set(selected)


def test_the_chart_passes_lint_and_renders_the_same_with_helm():
    """The second part needs an installed helm."""
    assert not [each for each in str(lint(CHART)).splitlines() if "ERROR" in each]
    if helm := shutil.which("helm"):
        result = subprocess.run([helm, "template", "demo", str(CHART)], capture_output=True, text=True, check=True)
        theirs = [document for document in yaml.safe_load_all(result.stdout) if document]
        assert len(theirs) == len(rendered({}))


def test_a_package_of_the_chart_contains_the_linked_files(tmp_path):
    """A symbolic link to a file outside the chart would be broken in the archive."""
    archive = Path(chart().save(tmp_path))
    listed = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout
    for name in ("files/rules/alerts.yml", "files/dashboards/cifar.json", "files/tfserving/models.config"):
        assert f"cifar-space/{name}" in listed
