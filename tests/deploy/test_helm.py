"""The Helm chart: rendered for eight sets of values, held against three Kubernetes versions, and against what matters."""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from cifar import __version__
from cifar.settings import ROOT, Settings

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
    "a claim that is written": {
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
    "watched": {
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
"""Kinds of the Prometheus operator, which Kubernetes' own schemas do not have."""

every_set = pytest.mark.parametrize("values", VALUES)


@cache
def chart() -> Chart:
    return Chart.load(CHART)


class Strict(yaml.SafeLoader):
    """YAML without keys that are given twice: of those one wins, and it is not said which."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping; fails where a key stands twice."""
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


@every_set
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_manifest_is_what_kubernetes_takes(values, version):
    """Unknown fields and wrong types are found here, not by a cluster."""
    documents = rendered(VALUES[values])
    assert len(documents) >= 6
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)


@every_set
def test_nobody_is_root_nothing_is_writable_and_everything_has_limits(values):
    """Of every container of every pod, those that copy models too; and no pod has a token of the cluster."""
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
def test_selectors_find_the_pods_that_they_are_for_and_no_others(values):
    """Services, budgets and policies: each selects one component, and claims, maps and secrets that are named are there."""
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
    given = {("PersistentVolumeClaim", "models"), ("Secret", "cifar"), ("Secret", "tls")}
    for name, pod in pods(documents):
        for volume in pod["spec"]["volumes"]:
            for field, kind, key in (
                ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName"),
            ):
                if field in volume:
                    assert (kind, volume[field][key]) in made | given, name
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}, name


@every_set
def test_the_app_is_probed_drained_and_spread(values):
    """Alive is not ready; a stop waits for the proxies, nginx and gunicorn; replicas stand on several nodes."""
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
def test_every_setting_is_one_of_ours_and_no_secret_is_in_a_configmap(values):
    """A misspelt name would end the start; a secret is in a Secret."""
    documents = rendered(VALUES[values])
    (settings,) = [each for each in of_kind(documents, "ConfigMap") if each["metadata"]["name"] == "demo-cifar-space"]
    known = {f"CIFAR_{name.upper()}" for name in Settings.model_fields}
    nginx = set(re.findall(r"NGINX_[A-Z_]+", (ROOT / ".env.example").read_text()))
    assert settings["data"].keys() <= known | nginx
    secret = {
        f"CIFAR_{name.upper()}" for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
    }
    assert not settings["data"].keys() & secret
    assert "p@db" not in yaml.safe_dump_all(of_kind(documents, "ConfigMap"))


def test_the_chart_sets_what_compose_sets():
    """One service, two ways to run it: the same limits of callers, workers and drain."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    chosen = {
        name: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", str(value))
        for service in ("app", "nginx")
        for name, value in compose[service]["environment"].items()
    }
    (settings,) = [
        each for each in of_kind(rendered({}), "ConfigMap") if each["metadata"]["name"] == "demo-cifar-space"
    ]
    for name in ("CIFAR_WORKERS", "CIFAR_RATE_LIMIT_PREDICT", "CIFAR_RATE_LIMIT_PAGE", "NGINX_DRAIN_SECONDS"):
        assert settings["data"][name] == chosen[name], name
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["redis"]["image"] == compose["redis"]["image"]
    assert values["tfserving"]["image"] == compose["tensorflow-serving"]["image"]
    flags = next(pod for name, pod in pods(rendered(VALUES["TensorFlow Serving"])) if "tfserving" in name)
    command = flags["spec"]["containers"][0]["command"]
    assert set(compose["tensorflow-serving"]["command"]) <= set(command)


def test_rules_dashboard_and_tensorflow_servings_files_are_the_ones_in_deploy():
    """The chart holds no copy that could grow old: it reads the same files."""
    watched = rendered(VALUES["watched"])
    rules = {each["metadata"]["name"]: each["spec"] for each in of_kind(watched, "PrometheusRule")}
    files = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    assert rules == {f"demo-cifar-space-{file.stem}": yaml.safe_load(file.read_text()) for file in files}
    (dashboard,) = [each for each in of_kind(watched, "ConfigMap") if "dashboard" in each["metadata"]["name"]]
    assert dashboard["data"] == {
        file.name: file.read_text() for file in (ROOT / "deploy/grafana/dashboards").glob("*.json")
    }
    served = rendered(VALUES["TensorFlow Serving"])
    (config,) = [each for each in of_kind(served, "ConfigMap") if "tfserving" in each["metadata"]["name"]]
    assert config["data"] == {file.name: file.read_text() for file in (ROOT / "deploy/tfserving").iterdir()}


def test_scaling_goes_by_processor_and_by_the_wait_for_the_model():
    """Then the Deployment names no number of its own, which an upgrade would set back to."""
    documents = rendered(VALUES["autoscaling"])
    (scaler,) = of_kind(documents, "HorizontalPodAutoscaler")
    kinds = [metric["type"] for metric in scaler["spec"]["metrics"]]
    assert kinds == ["Resource", "Pods"]
    assert scaler["spec"]["metrics"][1]["pods"]["target"]["averageValue"] == "50m"
    assert "replicas" not in app(documents)["spec"]
    assert app(rendered({}))["spec"]["replicas"] == 2


def test_only_named_namespaces_may_call_and_the_app_may_call_only_what_it_needs():
    """Redis and TensorFlow Serving are for the app alone, and call nobody."""
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


def test_the_alerts_find_what_the_monitor_scrapes():
    """Rules and dashboard select job="cifar"; without it, CifarDown would fire for ever and no other alert at all."""
    documents = rendered(VALUES["watched"])
    (monitor,) = of_kind(documents, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    job = {rule["replacement"] for rule in endpoint.get("relabelings", []) if rule["targetLabel"] == "job"}
    named = re.findall(r"job=\W*(\w+)", yaml.safe_dump_all(of_kind(documents, "PrometheusRule")))
    assert named
    assert job == set(named)


def test_a_new_password_restarts_redis_too():
    """It reads its file at the start alone: the app would come with a password that Redis does not know."""
    before, after = (
        dict(pods(rendered({"redis": {"enabled": True, "password": password}}))) for password in ("a1", "b2")
    )
    assert before["demo-cifar-space-redis"] != after["demo-cifar-space-redis"]


def test_tensorflow_serving_may_load_for_long_and_is_restarted_for_new_files(tmp_path):
    """Its port opens when the models are there, so a probe that is patient comes first; and it reads its batching once."""
    changed = tmp_path / "cifar-space"
    shutil.copytree(CHART, changed)
    with (changed / "files/tfserving/batching.config").open("a") as file:
        file.write("# another batch size\n")
    before, after = (
        dict(pods(rendered(VALUES["TensorFlow Serving"], each)))["demo-cifar-space-tfserving"]
        for each in (chart(), Chart.load(changed))
    )
    assert before != after
    (container,) = after["spec"]["containers"]
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["tcpSocket"] == liveness["tcpSocket"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600


def test_a_large_number_reaches_the_app_as_digits():
    """Helm reads numbers as floats, and would write 104857600 as 1.048576e+08, which ends the start."""
    settings = {"CIFAR_MAX_BODY_BYTES": 104857600, "CIFAR_AB_EFFECT_SHARE": 0.02, "CIFAR_MCP": True, "NGINX_HOSTS": "a"}
    (made,) = [
        each
        for each in of_kind(rendered({"settings": settings}), "ConfigMap")
        if each["metadata"]["name"] == "demo-cifar-space"
    ]
    expected = ["104857600", "0.02", "true", "a"]
    assert [made["data"][name] for name in settings] == expected


def test_every_pod_is_pulled_and_placed_as_the_operator_says():
    """TensorFlow Serving copies models from an image that may need a secret, and is not made for every processor; Redis may be mirrored."""
    tolerations = [{"key": "dedicated", "operator": "Exists"}]
    chosen = {"nodeSelector": {"kubernetes.io/arch": "amd64"}, "tolerations": tolerations}
    redis = {"enabled": True, "password": "x1"}
    documents = rendered({**VALUES["models from an image"], **chosen, "redis": redis})
    specs = {name: pod["spec"] for name, pod in pods(documents)}
    assert len(specs) == 3
    for name, spec in specs.items():
        assert spec["imagePullSecrets"] == [{"name": "pull"}], name
        assert {key: spec[key] for key in chosen} == chosen, name


@pytest.mark.parametrize(("drain", "grace"), [("30", 90), (600, 660), (None, 65)])
def test_a_longer_drain_is_waited_for(drain, grace):
    """Kubernetes kills when its own patience ends, whatever nginx was told; None is nginx's default of 5 seconds."""
    spec = app(rendered({"settings": {"NGINX_DRAIN_SECONDS": drain}}))["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == grace


def test_what_is_said_by_name_wins_over_what_follows_from_other_values():
    """Once, not beside it: settings, secrets and the annotations of the ingress."""
    settings = {"CIFAR_WORKERS": 3, "CIFAR_ENGINE": "auto", "CIFAR_RECORDS": False, "NGINX_HOSTS": ""}
    documents = rendered(
        {
            **VALUES["TensorFlow Serving"],
            "settings": settings,
            "records": True,
            "secrets": {"values": {"CIFAR_REDIS_URL": "redis://mine:6379/0"}},
            "ingress": {
                "enabled": True,
                "hosts": ["cifar.example"],
                "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "60"},
            },
        }
    )
    made = {each["metadata"]["name"]: each.get("data") for each in of_kind(documents, "ConfigMap")}
    expected = ["3", "auto", "false", ""]
    assert [made["demo-cifar-space"][name] for name in settings] == expected
    secrets = {each["metadata"]["name"]: each["stringData"] for each in of_kind(documents, "Secret")}
    assert secrets["demo-cifar-space"]["CIFAR_REDIS_URL"] == "redis://mine:6379/0"
    (ingress,) = of_kind(documents, "Ingress")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "60"
    assert annotations["nginx.ingress.kubernetes.io/upstream-hash-by"] == "$binary_remote_addr"


def test_prometheus_reads_tensorflow_serving_where_monitors_are_asked_for():
    """It counts at its REST port, which without a monitor is open to nobody."""
    for monitors in (False, True):
        documents = rendered({**VALUES["TensorFlow Serving"], "monitoring": {"serviceMonitor": monitors}})
        policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(documents, "NetworkPolicy")}
        ports = [rule["ports"][0]["port"] for rule in policies["demo-cifar-space-tfserving"]["ingress"]]
        assert ports == [8500, 8501][: 1 + monitors]
        assert [rule["ports"][0]["port"] for rule in policies["demo-cifar-space-redis"]["ingress"]] == [6379]
    names = {each["metadata"]["name"]: each["spec"] for each in of_kind(documents, "ServiceMonitor")}
    (endpoint,) = names["demo-cifar-space-tfserving"]["endpoints"]
    text = (ROOT / "deploy/tfserving/monitoring.config").read_text()
    assert f'path: "{endpoint["path"]}"' in text
    (service,) = [each for each in of_kind(documents, "Service") if each["metadata"]["name"].endswith("tfserving")]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    selected = names["demo-cifar-space-tfserving"]["selector"]["matchLabels"]
    assert selected.items() <= service["metadata"]["labels"].items()


def test_a_claim_that_the_chart_makes_can_be_filled_and_keeps_the_models():
    """It begins empty, so somebody must be let write; and the pod that README fills it with names the claim, the image and the version that there are."""
    documents = rendered({"models": {"source": "claim"}})
    (claim,) = of_kind(documents, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    text = (CHART / "README.md").read_text()
    (given,) = re.findall(r"<<'END'\n(.*?)\n  END\n", text, re.DOTALL)
    fill = yaml.safe_load(textwrap.dedent(given))
    for version in KUBERNETES:
        kubernetes_validate.validate(fill, version, strict=True)
    (volume,) = fill["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert fill["spec"]["containers"][0]["image"].endswith(f"/cifar-space:{__version__}")
    reader = app(documents)["spec"]["template"]["spec"]["securityContext"]
    assert fill["spec"]["securityContext"].items() <= reader.items()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": 0}, "replicas"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"settings": {"cifar_workers": 2}}, "cifar_workers"),
        ({"settings": {"CIFAR_JWT_SECRET": "x"}}, "CIFAR_JWT_SECRET"),
        ({"resources": {"requests": {"cpu": "much"}, "limits": {"memory": "2Gi"}}}, "cpu"),
        ({"models": {"source": "disk"}}, "source"),
        ({"redis": {"enabled": True}}, "redis.password is what Redis asks for"),
        ({"redis": {"enabled": True, "password": "a b"}}, "password"),
        ({"ingress": {"enabled": True}}, "ingress.hosts names at least one host"),
        ({"ingress": {"enabled": True, "hosts": ["https://cifar.example"]}}, "hosts"),
        ({"ingress": {"enabled": True, "hosts": ["*.cifar.example"]}}, "hosts"),
        ({"tfserving": {"enabled": True}}, "tfserving needs models.source claim or init"),
        ({"models": {"source": "init"}}, "models.init.image names the image"),
        ({"models": {"writable": True}}, "models.writable needs models.source claim"),
        ({"models": {"source": "claim", "claim": {"accessMode": "ReadOnlyMany"}}}, "accessMode"),
        ({"models": {"source": "claim", "claim": {"accessMode": "ReadWriteOnce"}, "writable": True}}, "ReadWriteMany"),
        ({"records": True}, "records need CIFAR_DATABASE_URL"),
        ({"settings": {"CIFAR_RECORDS": True}}, "records need CIFAR_DATABASE_URL"),
        ({"networkPolicy": {"from": []}}, "from"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(values, sentence):
    """Before anything reaches a cluster; the sentence names the value."""
    with pytest.raises(HelmError, match=re.escape(sentence)):
        rendered(values)


def test_the_chart_has_nothing_that_helm_would_complain_of():
    """Helm's own lint, without errors; and where there is a helm, it renders the same."""
    assert not [each for each in str(lint(CHART)).splitlines() if "ERROR" in each]
    if helm := shutil.which("helm"):
        result = subprocess.run([helm, "template", "demo", str(CHART)], capture_output=True, text=True, check=True)
        theirs = [document for document in yaml.safe_load_all(result.stdout) if document]
        assert len(theirs) == len(rendered({}))


def test_a_package_of_the_chart_holds_the_files_it_links_to(tmp_path):
    """A link out of the chart would lead nowhere in the archive."""
    archive = Path(chart().save(tmp_path))
    listed = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout
    for name in ("files/rules/alerts.yml", "files/dashboards/cifar.json", "files/tfserving/models.config"):
        assert f"cifar-space/{name}" in listed
