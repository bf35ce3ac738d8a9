"""The four functions by Gradio's client and by REST: names, types, and the same answers."""

from __future__ import annotations

import asyncio
import base64
import io
import json

import httpx2
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from support import zips
from support.pictures import encoded, noise
from support.servers import NO_CACHE

from cifar.errors import CallerLeft, Overloaded
from cifar.models.registry import Registry
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.service import Service
from cifar.settings import ROOT, Settings

CAT = ROOT / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server, verbose=False)


def test_the_endpoints_keep_their_names_parameters_and_types(client):
    """Somebody's code depends on them: a change here is a change of contract."""
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    number = [("top_k", True, "int"), ("version", True, "int")]
    wanted = {
        "/predict": [("image", False, "filepath"), *number],
        "/explain": [("image", False, "filepath"), ("label", True, "str"), ("version", True, "int")],
        "/predict_batch": [("files", False, "list[filepath]"), *number],
        "/models": [],
    }
    found = {
        name: [
            (p["parameter_name"], p["parameter_has_default"], p["python_type"]["type"]) for p in endpoint["parameters"]
        ]
        for name, endpoint in endpoints.items()
    }
    assert found == wanted
    assert [len(endpoint["returns"]) for endpoint in endpoints.values()] == [1] * 4


def test_every_endpoint_says_what_it_does(server):
    """The docstrings reach whoever reads the list of endpoints."""
    endpoints = httpx2.get(f"{server}/gradio_api/info").json()["named_endpoints"]
    for name, words in {
        "/predict": "Classify one image",
        "/explain": "which part of an image",
        "/predict_batch": "Classify many images",
        "/models": "model versions",
    }.items():
        assert words in json.dumps(endpoints[name]), name


def explain(server: str, **more) -> httpx2.Response:
    return httpx2.post(f"{server}/explain", files={"image": CAT.read_bytes()}, timeout=60, **more)


@pytest.mark.slow
def test_gradio_client_and_rest_explain_alike(client, server):
    """The same map, the same picture, for the label that is asked for and for the most probable one."""
    for arguments in ({}, {"label": "dog"}, {"label": "cat", "version": 1}):
        by_gradio = client.predict(handle_file(CAT), **arguments, api_name="/explain")
        by_rest = explain(server, data=arguments).json()
        del by_rest["request_id"]
        assert by_gradio == by_rest
        assert by_rest["label"] == arguments.get("label", "cat")
        assert [len(by_rest["heat"]), len(by_rest["heat"][0])] == [32, 32]
        png = base64.b64decode(by_rest["overlay"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(png)).size == Image.open(CAT).size


def test_rest_gives_the_picture_itself_to_who_asks_for_one(server):
    """`curl -H 'Accept: image/png' -o why.png` is all it takes, and a raw body does too."""
    picture = explain(server, headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"
    raw = httpx2.post(f"{server}/explain?label=dog", content=CAT.read_bytes(), headers={"Content-Type": "image/jpeg"})
    assert raw.json()["label"] == "dog"


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ({"label": "unicorn"}, 422, "There is no label 'unicorn'; there are: airplane, automobile"),
        ({"version": "99"}, 404, "no version 99"),
        ({"top_k": "3"}, 422, "There is no field 'top_k'; there are: image, label, version"),
    ],
)
def test_a_wrong_parameter_of_an_explanation_gets_its_sentence(server, data, status, words):
    """In the one shape of all errors."""
    answer = explain(server, data=data)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "code", "request_id"}
    assert words in answer.json()["error"]


def test_gradio_client_gets_a_table_for_files_and_archives(client, server, tmp_path):
    """Each row is what REST says of that image; a bad file is a row; the archive is opened."""
    (tmp_path / "photos.zip").write_bytes(zips.packed([("a.png", encoded(noise())), ("b.txt", b"just text")]))
    answer = client.predict(
        [handle_file(CAT), handle_file(tmp_path / "photos.zip")], top_k=2, api_name="/predict_batch"
    )
    cat, noisy, bad = answer["rows"]
    assert [row["name"] for row in answer["rows"]] == ["cat.jpg", "a.png", "b.txt"]
    for row, content in ((cat, CAT.read_bytes()), (noisy, encoded(noise()))):
        by_rest = httpx2.post(f"{server}/predict", files={"image": content}, data={"top_k": 2}).json()
        assert row["top_k"] == by_rest["top_k"]
        assert row["error"] is None
    assert (bad["label"], bad["code"]) == (None, "unsupported_image")
    assert answer["counts"][""] == 1
    assert answer["model"] == {"name": "cifar_classifier", "version": 2}
    alone = client.predict(handle_file(CAT), top_k=2, api_name="/predict_batch")
    assert alone["rows"] == [cat], "a file that is in no list is a list of one"


def test_gradio_client_gets_the_sentences_of_a_batch_too(client):
    """One error text for all ways in."""
    with pytest.raises(AppError, match="top_k must be from 1 to 10"):
        client.predict([handle_file(CAT)], top_k=99, api_name="/predict_batch")
    with pytest.raises(AppError, match="No image came"):
        client.predict([], api_name="/predict_batch")


def test_gradio_client_lists_the_versions(client):
    """What can be asked, how large its images are, and how good it is."""
    answer = client.predict(api_name="/models")
    manifest = json.loads((ROOT / "saved_model/cifar_classifier/1/manifest.json").read_text())
    assert answer["name"] == "cifar_classifier"
    (first,) = [version for version in answer["versions"] if version["version"] == 1]
    assert first["class_names"] == manifest["class_names"]
    assert first["image"] == {"height": 32, "width": 32, "channels": 3}
    assert first["metrics"]["test_accuracy"] == manifest["metrics"]["test_accuracy"]
    assert answer["default"] == max(version["version"] for version in answer["versions"])


def test_a_list_of_files_may_not_name_one_that_was_not_uploaded(server, tmp_path):
    """One honest upload does not open the door for its neighbour, a path or a URL, at any depth."""
    (uploaded,) = httpx2.post(f"{server}/gradio_api/upload", files={"files": ("a.png", encoded(noise()))}).json()
    (tmp_path / "secret.png").write_bytes(encoded(noise()))
    honest = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    assert run(server, [honest]).status_code == 200
    for path in (str(tmp_path / "secret.png"), f"{uploaded}/../../../../etc/passwd", "http://127.0.0.1:1/x.png"):
        for files in (
            [honest, {**honest, "path": path}],
            [[{**honest, "path": path}]],
            {"a": [{**honest, "path": path}]},
        ):
            refused = run(server, files)
            assert refused.status_code == 400, refused.text
            assert "must be uploaded" in refused.json()["error"]


def run(server: str, files: object) -> httpx2.Response:
    return httpx2.post(f"{server}/gradio_api/run/predict_batch", json={"data": [files, None, None]}, timeout=60)


@pytest.mark.parametrize("files", [None, 3, "x", ["x"], [None], {}, [{}], [{"path": 3}], [[]]])
def test_junk_in_the_place_of_files_is_the_callers_mistake(server, files):
    """Never a 5xx."""
    assert 400 <= run(server, files).status_code < 500


def service(**limits) -> Service:
    settings = Settings(**limits)
    registry = Registry(settings.registry, settings.model_name)
    versions = LoadedVersions(registry, settings)
    versions.load_default()
    return Service.over(Classifier(versions, settings, NO_CACHE), settings)


def test_more_explanations_than_the_limit_are_refused_at_once():
    """They cost eighty predictions each; who was there before is answered."""

    async def ask() -> list[object]:
        explainer = service(max_explained_images=2).explainer
        asked = [explainer.explain(CAT.read_bytes(), channel="rest") for _ in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    assert [type(answer).__name__ for answer in answers] == ["Explanation", "Explanation", "Overloaded", "Overloaded"]
    assert isinstance(answers[2], Overloaded)


def test_a_prediction_does_not_wait_for_an_explanation():
    """Also where the model is slow: at most the few images that the model was just given come before it."""

    async def ask() -> tuple[bool, int]:
        whole = service()
        predictor = whole.classifier.versions.get().predictor
        predictor.quick = False  # images wait in turn
        explaining = asyncio.create_task(whole.explainer.explain(CAT.read_bytes(), channel="rest"))
        while not whole.explainer._one.locked():  # noqa: ASYNC110 - the part under test has no event for it
            await asyncio.sleep(0)
        for _ in range(3):
            await whole.classifier.classify(encoded(noise()), channel="rest")
        overtook = not explaining.done()
        await explaining
        return overtook, whole.explainer._under_way

    assert asyncio.run(ask()) == (True, 0)


def test_who_leaves_takes_their_explanation_along():
    """What has not been computed is not; the place is free again."""

    async def ask() -> int:
        whole = service()
        predictor = whole.classifier.versions.get().predictor
        predictor.quick = False
        asked = 0
        infer = predictor._infer

        def counting(images):
            nonlocal asked
            asked += len(images)
            return infer(images)

        predictor._infer = counting
        gone = asyncio.Event()
        leaving = asyncio.create_task(whole.explainer.explain(CAT.read_bytes(), channel="rest", disconnected=gone.wait))
        while asked < 5:  # noqa: ASYNC110 - nor the model
            await asyncio.sleep(0)
        gone.set()
        with pytest.raises(CallerLeft):
            await leaving
        assert not whole.explainer._one.locked()
        assert whole.explainer._under_way == 0
        return asked

    assert asyncio.run(ask()) < 60
