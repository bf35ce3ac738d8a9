"""Drift: the index by hand, a reference from a run to the manifest, and a stream that darkens."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.stats import chi2
from support.recorded import open_records, write_answers

from cifar.analytics.drift import _bins, chance, drift, psi, reference
from cifar.analytics.drift_report import drift_report
from cifar.images.decode import statistics
from cifar.models.manifest import Bins
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.records.recorder import _rounded
from cifar.serving.page.ab_tab import drift_html
from cifar.serving.process.analytics import Analytics
from cifar.serving.process.metrics import DRIFT_LEVEL, DRIFT_PSI
from cifar.settings import ROOT, Settings

SHIPPED = Registry(ROOT / "saved_model", "cifar_classifier").get(2)


def test_the_index_is_the_sum_over_bins_by_hand():
    """Shares of 60 and 40 % that became 50 and 50 %; half a count is added to each bin."""
    then, recent = (6000, 4000), (5000, 5000)
    assert psi(then, recent) == pytest.approx(-0.1 * math.log(0.5 / 0.6) + 0.1 * math.log(0.5 / 0.4), rel=1e-3)
    assert psi(then, then) == 0
    assert psi(then, recent) == pytest.approx(psi(recent, then))


def test_a_bin_that_was_empty_is_no_division_by_zero():
    """A class never given before counts, and is finite."""
    assert 0 < psi((100, 0), (90, 10)) < math.inf


def test_chance_is_exceeded_once_in_a_hundred_times_without_drift():
    """Of 4,000 pairs of samples from one source; the formula is that of a chi-square."""
    dice, shares = np.random.default_rng(0), np.array([0.05, 0.1, 0.15, 0.2, 0.5])
    pairs = [(dice.multinomial(2300, shares), dice.multinomial(500, shares)) for _ in range(4000)]
    exceeded = np.mean([psi(then, recent) > chance(then, recent) for then, recent in pairs])
    assert exceeded == pytest.approx(0.01, abs=0.006)
    assert chance((1000, 1000), (250, 250)) == pytest.approx(chi2.ppf(0.99, 1) * (1 / 2000 + 1 / 500))


def test_bins_are_tenths_and_fewer_where_numbers_repeat():
    """A confidence that is nearly always 1 has no ten quantiles."""
    tenths = _bins(np.linspace(0, 1, 1001))
    assert tenths.edges == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert min(tenths.counts) >= 99
    assert _bins(np.ones(50)) == Bins(edges=[], counts=[50])
    repeated = _bins(np.array([0.2] * 5 + [1.0] * 95))
    assert repeated == Bins(edges=[1.0], counts=[5, 95])


def test_a_model_that_is_almost_certain_does_not_drift_by_being_recorded(settings):
    """The same answers, then as the model gives them and now as the records keep them: six digits."""
    answers = np.zeros((1000, 2), np.float32)
    answers[:, 0] = [1.0] * 300 + [0.9999998] * 300 + np.linspace(0.6, 0.99, 400).tolist()
    answers[:, 1] = 1 - answers[:, 0]
    images = np.random.default_rng(0).integers(0, 256, (1000, 4, 4, 3), np.uint8)
    known = reference(answers, images, ["cat", "dog"], threshold=None, source="test")
    looks = np.array([statistics(image) for image in images])
    row = {"scores": {}}
    recorded = [_rounded(row | {"score": score})["score"] for score in answers[:, 0].tolist()]
    recent = {
        "label": np.array(["cat"] * 1000),
        "in_distribution": np.array([None] * 1000),
        "confidence": np.array(recorded),
        "brightness": looks[:, 0],
        "contrast": looks[:, 1],
    }
    assert {found.feature: found.psi for found in drift(known, recent, settings)}["confidence"] == 0


def test_edges_and_counts_that_do_not_fit_are_no_bins():
    """A manifest that was changed by hand is refused when it is read."""
    for edges, counts in (([0.5], [1, 2, 3]), ([0.5, 0.2], [1, 2, 3])):
        with pytest.raises(ValueError, match="edges"):
            Bins(edges=edges, counts=counts)


def test_brightness_and_contrast_are_mean_and_standard_deviation():
    """Of the model's input, in [0, 1], as NumPy has them."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert statistics(image) == pytest.approx((image.mean() / 255, image.std() / 255), abs=1e-6)
    assert statistics(np.full((4, 4, 1), 255, np.uint8)) == (1.0, 0.0)


@pytest.mark.parametrize("number", [1, 2])
def test_the_shipped_versions_carry_their_held_out_images(number):
    """2,300 of them, as the manifest's validation says; of version 2, 95 % are in distribution."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get(number).manifest
    known = manifest.reference
    assert known.images == manifest.metrics["validation_images"] == sum(known.labels.values())
    assert list(known.labels) == manifest.class_names
    assert all(sum(getattr(known, name).counts) == known.images for name in ("confidence", "brightness", "contrast"))
    assert known.in_distribution == (None if number == 1 else 2185)


@pytest.mark.slow
def test_a_run_leaves_a_reference_and_its_export_carries_it(scored_run, scored_version):
    """What training counted over the held-out images is what the exported version answers to them."""
    run, dataset, held_out = scored_run
    images = dataset.train_images[held_out]
    predictor = Predictor.load(scored_version)
    exported = reference(
        np.concatenate([predictor.answers(image[None]) for image in images]),
        images,
        dataset.class_names,
        threshold=predictor.threshold,
        source="held-out training images",
    )
    known = scored_version.manifest.reference
    assert known == type(known).model_validate_json((run / "reference.json").read_text())
    assert known.labels == exported.labels
    assert (known.images, known.brightness, known.contrast) == (exported.images, exported.brightness, exported.contrast)
    assert known.confidence.edges == pytest.approx(exported.confidence.edges, abs=2e-4)
    assert abs(known.in_distribution - exported.in_distribution) <= 1


def pictures(count: int, seed: int) -> list[Image.Image]:
    """The examples, cropped, mirrored and lit at random: as different as photos of one source are."""
    dice, made = np.random.default_rng(seed), []
    sources = [Image.open(file).convert("RGB") for file in sorted((ROOT / "examples").glob("*.jpg"))]
    for _ in range(count):
        source = sources[dice.integers(len(sources))]
        side = int(min(source.size) * dice.uniform(0.7, 1))
        left, top = (int(dice.integers(0, size - side + 1)) for size in source.size)
        picture = source.crop((left, top, left + side, top + side)).resize((32, 32))
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if dice.random() < 0.5 else picture
        made.append(ImageEnhance.Brightness(picture).enhance(dice.uniform(0.8, 1.2)))
    return made


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(SHIPPED)


@pytest.fixture(scope="module")
def known(predictor: Predictor) -> dict:
    """Such pictures as a reference."""
    images = np.stack([np.asarray(picture) for picture in pictures(1000, seed=1)])
    answers = np.concatenate([predictor.answers(image[None]) for image in images])
    names, threshold = predictor.class_names, predictor.threshold
    return reference(answers, images, names, threshold=threshold, source="pictures").model_dump()


@pytest.fixture
def registry(tmp_path: Path, known: dict) -> Registry:
    """The shipped version, with that reference."""
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
    """Answer the pictures by the real predictor, and record what came."""
    images = [np.asarray(picture) for picture in made]
    said = [predictor.predict(image[None], top_k=1)[0] for image in images]
    looks = [statistics(image) for image in images]
    write_answers(
        engine,
        version,
        right=np.ones(len(images), bool),
        hours=hours,
        label=[prediction.top_k[0][0] for prediction in said],
        score=[prediction.top_k[0][1] for prediction in said],
        in_distribution=[prediction.in_distribution for prediction in said],
        brightness=[brightness for brightness, _ in looks],
        contrast=[contrast for _, contrast in looks],
    )


def levels(engine, registry: Registry, settings: Settings) -> dict[str, str]:
    (found,) = drift_report(engine, registry, settings)
    assert found.status == "measured"
    return {one.feature: one.level for one in found.features}


@pytest.mark.slow
def test_an_unshifted_stream_is_no_drift(engine, registry, settings, predictor):
    """Other pictures of the same kind, through the real predictor."""
    stream(engine, predictor, pictures(600, seed=2))
    found = levels(engine, registry, settings)
    assert found == dict.fromkeys(("labels", "confidence", "brightness", "contrast", "in_distribution"), "none")


@pytest.mark.slow
def test_a_darkened_stream_is_drift_where_it_darkened(engine, registry, settings, predictor):
    """Half the light: brightness and contrast alert, in report, metrics and page; when it ends, the metrics say nothing."""
    stream(engine, predictor, [ImageEnhance.Brightness(picture).enhance(0.5) for picture in pictures(600, seed=2)])
    found = levels(engine, registry, settings)
    assert found["brightness"] == found["contrast"] == "alert"
    asked = Analytics(engine, registry, settings)
    asked.measure()
    assert DRIFT_LEVEL.labels(2, "brightness")._value.get() == 2
    assert DRIFT_PSI.labels(2, "brightness")._value.get() > settings.drift_alert_psi
    page = drift_html(asked.drift(2), settings)
    assert page.count("drifts-alert") >= 2
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM feedback")
        connection.exec_driver_sql("DELETE FROM predictions")
    asked.measure()
    assert math.isnan(DRIFT_LEVEL.labels(2, "brightness")._value.get())


@pytest.mark.slow
def test_what_counts_as_drift_is_a_setting(engine, registry, settings, predictor):
    """What alerts by default may warn, or be nothing."""
    stream(engine, predictor, [ImageEnhance.Brightness(picture).enhance(0.5) for picture in pictures(600, seed=2)])
    mild = settings.model_copy(update={"drift_alert_psi": 1000.0})
    assert levels(engine, registry, mild)["brightness"] == "warn"
    assert levels(engine, registry, mild.model_copy(update={"drift_warn_psi": 1000.0}))["brightness"] == "none"


def test_too_few_images_and_no_reference_are_said(engine, registry, settings, predictor):
    """Nothing is measured of either, and the window counts."""
    shutil.copytree(registry.base / "2", registry.base / "3")
    manifest = json.loads((registry.base / "3/manifest.json").read_text()) | {"version": 3, "reference": None}
    (registry.base / "3/manifest.json").write_text(json.dumps(manifest))
    stream(engine, predictor, pictures(30, seed=2))
    stream(engine, predictor, pictures(5, seed=3), version=3)
    stream(engine, predictor, pictures(5, seed=3), version=9)
    second, third, ninth = drift_report(engine, registry, settings)
    assert (second.status, second.images, second.features) == ("few", 30, [])
    assert (third.status, ninth.status) == ("no_reference", "no_reference")
    assert len(drift_report(engine, registry, settings, since_hours=1 / 60 / 60)) == 0
    pages = [drift_html(found, settings) for found in (second, third)]
    assert "at least 500 are needed" in pages[0]
    assert "no reference to compare with" in pages[1]
    unseen = Analytics(engine, registry, settings).drift(2)
    assert (unseen.version, unseen.status) == (2, "few")


def test_a_class_that_a_manifest_does_not_know_is_left_out():
    """Labels of a version that was replaced under its number cannot be counted as any."""
    known = SHIPPED.manifest.reference
    recent = {"label": np.array(["gadget", "cat"]), "in_distribution": np.array([None, None])}
    recent |= {name: np.array([0.5, 0.5]) for name in ("confidence", "brightness", "contrast")}
    found = {one.feature: one for one in drift(known, recent, Settings())}
    assert sum(found["labels"].recent) == 1
    assert "in_distribution" not in found


@pytest.mark.slow
def test_the_command_prints_drift_as_a_table_or_json(engine, settings):
    """By feature; the shipped version and made-up answers."""
    write_answers(engine, 2, right=np.ones(600, bool), brightness=0.1)
    environment = {**os.environ, "CIFAR_RECORDS_FOLDER": str(settings.records_folder)}

    def said(*options: str) -> str:
        command = [sys.executable, "-m", "cifar", "drift", *options]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    table = said().splitlines()
    assert table[0] == "version 2, 600 recent images, beside 2300 of its reference"
    assert [line.split()[-1] for line in table if "brightness" in line] == ["alert"]
    (version,) = json.loads(said("--json", "--since", "12"))
    assert sum(version["features"][2]["recent"]) == 600
    assert version["features"][2]["names"][0] == "< 0.3282"
