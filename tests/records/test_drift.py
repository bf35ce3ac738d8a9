"""Drift: the stability index, the reference distribution from the run to the manifest, and a stream of darkened photos."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from prometheus_client import REGISTRY
from scipy.stats import chi2
from support.cli import cifar
from support.samples import copy_version, open_records, write_answers

from cifar.analytics.drift_report import ALERT_PSI, drift, drift_report
from cifar.images.decode import brightness_and_contrast
from cifar.models.manifest import Bins
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.records.transfer import rounded
from cifar.serving.page.model_tab import drift_html
from cifar.serving.process.analytics import Analytics
from cifar.settings import ROOT, Settings
from cifar.statistics import bin_counts, bin_edges, stability_index, stability_index_by_chance
from cifar.training.run.reference import make_reference

SHIPPED = Registry(ROOT / "saved_model", "cifar_classifier").get(2)


def test_the_stability_index_is_the_sum_over_bins():
    """Shares of 60 and 40 % that became 50 and 50 %, with half a count added to each bin."""
    expected, observed = (6000, 4000), (5000, 5000)
    index = stability_index(expected, observed)
    assert index == pytest.approx(-0.1 * math.log(0.5 / 0.6) + 0.1 * math.log(0.5 / 0.4), rel=1e-3)
    assert stability_index(expected, expected) == 0
    assert index == pytest.approx(stability_index(observed, expected))


def test_an_empty_bin_does_not_make_the_index_infinite():
    """A class that was never predicted before counts as drift, with a finite index."""
    assert 0 < stability_index((100, 0), (90, 10)) < math.inf


def test_the_index_by_chance_is_exceeded_once_in_a_hundred_times_without_drift():
    """Checked with 4,000 pairs of samples from one distribution, and against the chi-square formula."""
    random, shares = np.random.default_rng(0), np.array([0.05, 0.1, 0.15, 0.2, 0.5])
    pairs = [(random.multinomial(2300, shares), random.multinomial(500, shares)) for _ in range(4000)]
    exceeded = np.mean([stability_index(*pair) > stability_index_by_chance(*pair) for pair in pairs])
    assert exceeded == pytest.approx(0.01, abs=0.006)
    by_chance = stability_index_by_chance((1000, 1000), (250, 250))
    assert by_chance == pytest.approx(chi2.ppf(0.99, 1) * (1 / 2000 + 1 / 500))


def test_there_are_ten_bins_and_fewer_if_values_repeat():
    """A confidence that is almost always 1 does not have ten different quantiles."""
    values = np.linspace(0, 1, 1001)
    edges = bin_edges(values)
    assert edges == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert min(bin_counts(values, edges)) >= 99
    assert bin_edges(np.ones(50)) == []
    assert bin_counts(np.ones(50), []) == [50]
    repeated = np.array([0.2] * 5 + [1.0] * 95)
    assert bin_edges(repeated) == [1.0]
    assert bin_counts(repeated, [1.0]) == [5, 95]


def test_rounding_in_the_records_is_not_drift():
    """The reference counts the scores as they are recorded, with six digits, even if the model is almost certain."""
    answers = np.zeros((1000, 2), np.float32)
    answers[:, 0] = [1.0] * 300 + [0.9999998] * 300 + np.linspace(0.6, 0.99, 400).tolist()
    answers[:, 1] = 1 - answers[:, 0]
    images = np.random.default_rng(0).integers(0, 256, (1000, 4, 4, 3), np.uint8)
    known = make_reference(answers, images, ["cat", "dog"], source="test")
    looks = np.array([brightness_and_contrast(image) for image in images])
    row = {"scores": {}}
    recorded = [rounded(row | {"score": score})["score"] for score in answers[:, 0].tolist()]
    recent = {
        "label": np.array(["cat"] * 1000),
        "in_distribution": np.array([None] * 1000),
        "confidence": np.array(recorded),
        "brightness": looks[:, 0],
        "contrast": looks[:, 1],
    }
    assert {found.feature: found.psi for found in drift(known, recent)}["confidence"] == 0


def test_bins_with_edges_and_counts_that_do_not_match_are_refused():
    """A manifest that was edited by hand must not be read wrongly."""
    for edges, counts in (([0.5], [1, 2, 3]), ([0.5, 0.2], [1, 2, 3])):
        with pytest.raises(ValueError, match="edges"):
            Bins(edges=edges, counts=counts)


@pytest.mark.parametrize("number", [1, 2])
def test_the_shipped_versions_hold_a_reference_of_their_held_out_images(number):
    """There are 2,300 of them, as in the validation figures; version 2 counts 95 % of them as in distribution."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get(number).manifest
    known = manifest.reference
    assert known.images == manifest.metrics["validation_images"] == sum(known.labels.values())
    assert list(known.labels) == manifest.class_names
    assert all(sum(getattr(known, name).counts) == known.images for name in ("confidence", "brightness", "contrast"))
    assert known.in_distribution == (None if number == 1 else 2185)


@pytest.mark.slow
def test_the_reference_of_a_run_matches_the_answers_of_its_exported_version(scored_run, scored_version):
    """The manifest holds the reference of the run, counted over the held-out images."""
    run, dataset, held_out = scored_run
    images = dataset.train_images[held_out]
    predictor = Predictor.load(scored_version)
    exported = make_reference(
        np.concatenate([predictor.answers(image[None]) for image in images]),
        images,
        dataset.class_names,
        source="held-out training images",
    )
    known = scored_version.manifest.reference
    assert known == type(known).model_validate_json((run / "reference.json").read_text())
    assert known.labels == exported.labels
    assert (known.images, known.brightness, known.contrast) == (exported.images, exported.brightness, exported.contrast)
    assert known.confidence.edges == pytest.approx(exported.confidence.edges, abs=2e-4)
    assert abs(known.in_distribution - exported.in_distribution) <= 1


def pictures(count: int, seed: int) -> list[Image.Image]:
    """Return randomly cropped, mirrored and lit copies of the example photos, as varied as photos of one source."""
    random, made = np.random.default_rng(seed), []
    sources = [Image.open(file).convert("RGB") for file in sorted((ROOT / "examples").glob("*.jpg"))]
    for _ in range(count):
        source = sources[random.integers(len(sources))]
        side = int(min(source.size) * random.uniform(0.7, 1))
        left, top = (int(random.integers(0, size - side + 1)) for size in source.size)
        picture = source.crop((left, top, left + side, top + side)).resize((32, 32))
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else picture
        made.append(ImageEnhance.Brightness(picture).enhance(random.uniform(0.8, 1.2)))
    return made


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(SHIPPED)


@pytest.fixture(scope="module")
def known(predictor: Predictor) -> dict:
    """Return the reference of such pictures."""
    images = np.stack([np.asarray(picture) for picture in pictures(1000, seed=1)])
    answers = np.concatenate([predictor.answers(image[None]) for image in images])
    return make_reference(answers, images, predictor.class_names, source="pictures").model_dump()


@pytest.fixture
def registry(tmp_path: Path, known: dict) -> Registry:
    """Return a registry with the shipped version's manifest and that reference."""
    folder = tmp_path / "registry" / "cifar_classifier" / "2"
    folder.mkdir(parents=True)
    manifest = json.loads(SHIPPED.manifest.model_dump_json()) | {"reference": known}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Registry(tmp_path / "registry", "cifar_classifier")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(records_folder=tmp_path / "records", registry=tmp_path / "registry")


@pytest.fixture
def engine(settings: Settings):
    engine = open_records(settings)
    yield engine
    engine.dispose()


def stream(engine, predictor: Predictor, made: list[Image.Image], *, version: int = 2, hours: float = 10.0) -> None:
    """Classify the pictures with the real predictor, and record the answers."""
    images = [np.asarray(picture) for picture in made]
    answers = [predictor.predict(image[None], top_k=1)[0] for image in images]
    looks = [brightness_and_contrast(image) for image in images]
    write_answers(
        engine,
        version,
        right=np.ones(len(images), bool),
        hours=hours,
        label=[prediction.top_k[0][0] for prediction in answers],
        score=[prediction.top_k[0][1] for prediction in answers],
        in_distribution=[prediction.in_distribution for prediction in answers],
        brightness=[brightness for brightness, _ in looks],
        contrast=[contrast for _, contrast in looks],
    )


def levels(engine, registry: Registry) -> dict[str, str]:
    (found,) = drift_report(engine, registry)
    assert found.status == "measured"
    return {one.feature: one.level for one in found.features}


def gauge(name: str) -> float:
    """Return the metric of version 2's brightness."""
    return REGISTRY.get_sample_value(name, {"version": "2", "feature": "brightness"})


@pytest.mark.slow
def test_pictures_of_the_same_kind_are_no_drift(engine, registry, predictor):
    """The real predictor classifies other pictures of the same kind."""
    stream(engine, predictor, pictures(600, seed=2))
    found = levels(engine, registry)
    assert found == dict.fromkeys(("labels", "confidence", "brightness", "contrast", "in_distribution"), "none")


@pytest.mark.slow
def test_darkened_pictures_are_drift_of_brightness_and_contrast(engine, registry, settings, predictor):
    """With half the light, the report, the metrics and the page alert. Without recent images, the metrics have no value."""
    stream(engine, predictor, [ImageEnhance.Brightness(picture).enhance(0.5) for picture in pictures(600, seed=2)])
    found = levels(engine, registry)
    assert found["brightness"] == found["contrast"] == "alert"
    now = 0.0
    analytics = Analytics(engine, registry, settings, clock=lambda: now)
    analytics.measure()
    assert gauge("cifar_drift_level") == 2
    assert gauge("cifar_drift_psi") > ALERT_PSI
    page = drift_html(analytics.drift(2))
    assert page.count("drifts-alert") >= 2
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM feedback")
        connection.exec_driver_sql("DELETE FROM predictions")
    now = 300.0
    analytics.measure()
    assert math.isnan(gauge("cifar_drift_level"))


@pytest.mark.slow
def test_the_two_limits_decide_between_no_drift_a_warning_and_an_alert(engine, registry, predictor, monkeypatch):
    """An index above both limits is an alert; above the lower limit only, a warning; below both, no drift."""
    stream(engine, predictor, [ImageEnhance.Brightness(picture).enhance(0.5) for picture in pictures(600, seed=2)])
    monkeypatch.setattr("cifar.analytics.drift_report.ALERT_PSI", 1000.0)
    assert levels(engine, registry)["brightness"] == "warn"
    monkeypatch.setattr("cifar.analytics.drift_report.WARN_PSI", 1000.0)
    assert levels(engine, registry)["brightness"] == "none"


def test_too_few_images_or_no_reference_are_reported_instead_of_drift(engine, registry, settings, predictor):
    """Such versions have a status and no features. Versions without images within the window are left out."""
    copy_version(registry.base / "2", registry.base / "3", version=3, reference=None)
    stream(engine, predictor, pictures(30, seed=2))
    stream(engine, predictor, pictures(5, seed=3), version=3)
    stream(engine, predictor, pictures(5, seed=3), version=9)
    second, third, ninth = drift_report(engine, registry)
    assert (second.status, second.images, second.features) == ("few", 30, [])
    assert (third.status, ninth.status) == ("no_reference", "no_reference")
    assert len(drift_report(engine, registry, since_hours=1 / 60 / 60)) == 0
    pages = [drift_html(found) for found in (second, third)]
    assert "Drift is measured from 500 images on." in pages[0]
    assert "no reference distribution to compare with" in pages[1]
    unseen = Analytics(engine, registry, settings).drift(2)
    assert (unseen.version, unseen.status) == (2, "few")


def test_labels_that_the_reference_does_not_have_are_not_counted():
    """They were recorded by another version that had the same number before."""
    known = SHIPPED.manifest.reference
    recent = {"label": np.array(["gadget", "cat"]), "in_distribution": np.array([None, None])}
    recent |= {name: np.array([0.5, 0.5]) for name in ("confidence", "brightness", "contrast")}
    found = {one.feature: one for one in drift(known, recent)}
    assert sum(found["labels"].recent) == 1
    assert "in_distribution" not in found


@pytest.mark.slow
def test_the_command_prints_drift_as_a_table_or_json(engine, settings):
    """There is one line per feature; the records are made up for the shipped version."""
    write_answers(engine, 2, right=np.ones(600, bool), brightness=0.1)
    folder = {"CIFAR_RECORDS_FOLDER": settings.records_folder}
    table = cifar("drift", **folder).stdout.splitlines()
    assert table[0] == "version 2, 600 recent images, compared with the 2300 images of its reference"
    assert [line.split()[-1] for line in table if "brightness" in line] == ["alert"]
    (version,) = json.loads(cifar("drift", "--json", "--since", 12, **folder).stdout)
    assert sum(version["features"][2]["recent"]) == 600
    assert version["features"][2]["names"][0] == "< 0.3282"
