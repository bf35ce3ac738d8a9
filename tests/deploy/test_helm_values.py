"""Tests of single values of the Helm chart: what they change, which of them take precedence, and which are refused."""

from __future__ import annotations

import re
import shutil
import textwrap

import kubernetes_validate
import pytest
import yaml
from helm_python.chart import Chart
from helm_python.errors import HelmError
from support.helm import CHART, KUBERNETES, VALUES, app, chart, of_kind, pods, rendered, settings_of

from cifar import __version__
from cifar.settings import ROOT


def test_autoscaling_uses_cpu_and_queueing_time():
    """The Deployment then has no number of replicas, which an upgrade would restore."""
    documents = rendered(VALUES["autoscaling"])
    (scaler,) = of_kind(documents, "HorizontalPodAutoscaler")
    kinds = [metric["type"] for metric in scaler["spec"]["metrics"]]
    assert kinds == ["Resource", "Pods"]
    assert scaler["spec"]["metrics"][1]["pods"]["target"]["averageValue"] == "50m"
    assert "replicas" not in app(documents)["spec"]
    assert app(rendered({}))["spec"]["replicas"] == 2


def test_a_new_password_restarts_redis():
    """Redis reads its file at the start only, and would refuse the app's new password."""
    before, after = (
        dict(pods(rendered({"redis": {"enabled": True, "password": password}}))) for password in ("a1", "b2")
    )
    assert before["demo-cifar-space-redis"] != after["demo-cifar-space-redis"]


def test_tensorflow_serving_has_time_to_load_and_restarts_for_new_files(tmp_path):
    """Its port opens after loading, so it needs a startup probe; it reads its batching file once."""
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
    """Helm reads numbers as floats and would write 104857600 as 1.048576e+08, which the app refuses."""
    settings = {"CIFAR_MAX_BODY_BYTES": 104857600, "CIFAR_AB_EFFECT_SHARE": 0.02, "CIFAR_MCP": True, "NGINX_HOSTS": "a"}
    made = settings_of(rendered({"settings": settings}))
    expected = ["104857600", "0.02", "true", "a"]
    assert [made[name] for name in settings] == expected


def test_every_pod_has_the_pull_secrets_and_the_placement():
    """This includes TensorFlow Serving, which does not run on every processor, and Redis."""
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
def test_the_grace_period_follows_the_shutdown_time_of_nginx(drain, grace):
    """Otherwise Kubernetes would kill nginx during its shutdown; None is the default of 5 seconds."""
    spec = app(rendered({"settings": {"NGINX_DRAIN_SECONDS": drain}}))["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == grace


def test_explicit_values_take_precedence_over_derived_ones():
    """This holds for settings, secrets and annotations of the ingress, and no key appears twice."""
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
    assert [settings_of(documents)[name] for name in settings] == ["3", "auto", "false", ""]
    secrets = {each["metadata"]["name"]: each["stringData"] for each in of_kind(documents, "Secret")}
    assert secrets["demo-cifar-space"]["CIFAR_REDIS_URL"] == "redis://mine:6379/0"
    (ingress,) = of_kind(documents, "Ingress")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "60"
    assert annotations["nginx.ingress.kubernetes.io/upstream-hash-by"] == "$binary_remote_addr"


def test_prometheus_may_scrape_tensorflow_serving_with_a_service_monitor():
    """Its metrics are at the REST port, which is closed without a monitor."""
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


def test_the_created_claim_can_be_filled_and_is_kept():
    """It is empty at first; the pod in the README that fills it names the right claim, image and version."""
    documents = rendered({"models": {"source": "claim"}})
    (claim,) = of_kind(documents, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    text = (CHART / "README.md").read_text()
    (manifest,) = re.findall(r"<<'END'\n(.*?)\n  END\n", text, re.DOTALL)
    fill = yaml.safe_load(textwrap.dedent(manifest))
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
        ({"redis": {"enabled": True}}, "redis.enabled needs redis.password"),
        ({"redis": {"enabled": True, "password": "a b"}}, "password"),
        ({"ingress": {"enabled": True}}, "ingress.enabled needs at least one host in ingress.hosts"),
        ({"ingress": {"enabled": True, "hosts": ["https://cifar.example"]}}, "hosts"),
        ({"ingress": {"enabled": True, "hosts": ["*.cifar.example"]}}, "hosts"),
        ({"tfserving": {"enabled": True}}, "tfserving needs models.source claim or init"),
        ({"models": {"source": "init"}}, "models.source init needs models.init.image"),
        ({"models": {"writable": True}}, "models.writable needs models.source claim"),
        ({"models": {"source": "claim", "claim": {"accessMode": "ReadOnlyMany"}}}, "accessMode"),
        ({"models": {"source": "claim", "claim": {"accessMode": "ReadWriteOnce"}, "writable": True}}, "ReadWriteMany"),
        ({"records": True}, "records need CIFAR_DATABASE_URL"),
        ({"settings": {"CIFAR_RECORDS": True}}, "records need CIFAR_DATABASE_URL"),
        ({"networkPolicy": {"from": []}}, "from"),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(values, sentence):
    """The message names the value, and nothing reaches the cluster."""
    with pytest.raises(HelmError, match=re.escape(sentence)):
        rendered(values)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({}, "/"),
        ({"CIFAR_ROOT_PATH": "/cifar"}, "/cifar"),
        ({"CIFAR_PUBLIC_URL": "https://cifar.example"}, "/"),
        ({"CIFAR_PUBLIC_URL": "https://cifar.example/demos/cifar"}, "/demos/cifar"),
    ],
)
def test_the_ingress_has_the_path_of_the_app(settings, path):
    """Other paths of the host are other programs'. The path stays in requests, which the app expects."""
    (ingress,) = of_kind(
        rendered({"ingress": {"enabled": True, "hosts": ["cifar.example"]}, "settings": settings}), "Ingress"
    )
    assert [each["path"] for rule in ingress["spec"]["rules"] for each in rule["http"]["paths"]] == [path]
