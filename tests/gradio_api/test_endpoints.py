"""The four endpoints for Gradio's clients, and heat maps by REST."""

from __future__ import annotations

import base64
import io
import json

import httpx2
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from support.hostile_files import zipped
from support.pictures import encoded, noise
from support.shipped import NEWEST

from cifar.settings import ROOT

CAT = ROOT / "examples" / "cat.jpg"


def test_the_endpoints_keep_their_names_parameters_and_types(client):
    """They are a contract: programs depend on them."""
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    number = [("top_k", True, "int"), ("version", True, "int"), ("views", True, "Literal['1', '2', '6', 'auto']")]
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


def test_every_endpoint_has_a_description(server):
    """Gradio publishes the functions' docstrings in its list of endpoints."""
    endpoints = httpx2.get(f"{server}/gradio_api/info").json()["named_endpoints"]
    assert "URL" not in endpoints["/predict"]["parameters"][0]["python_type"]["description"], "none is fetched"
    for name, words in {
        "/predict": "Classify one image",
        "/explain": "which parts of an image",
        "/predict_batch": "Classify many images",
        "/models": "model versions",
    }.items():
        assert words in json.dumps(endpoints[name]), name


def explain(server: str, **more) -> httpx2.Response:
    return httpx2.post(f"{server}/explain", files={"image": CAT.read_bytes()}, timeout=60, **more)


@pytest.mark.slow
def test_gradio_client_and_rest_return_the_same_heat_map(client, server):
    """This holds for a given label and for the most probable one."""
    for arguments in ({}, {"label": "dog"}, {"label": "cat", "version": 1}):
        by_gradio = client.predict(handle_file(CAT), **arguments, api_name="/explain")
        by_rest = explain(server, data=arguments).json()
        del by_rest["request_id"]
        assert by_gradio == by_rest
        assert by_rest["label"] == arguments.get("label", "cat")
        assert [len(by_rest["heat"]), len(by_rest["heat"][0])] == [32, 32]
        png = base64.b64decode(by_rest["overlay"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(png)).size == Image.open(CAT).size


def test_rest_returns_a_heat_map_as_png_on_request(server):
    """`curl -H 'Accept: image/png' -o why.png` saves it. A request with a raw body works too."""
    for accept, kind in (
        ("application/json;q=0.5, IMAGE/png", "image/png"),
        ("image/png;q=0.5, application/json", "application/json"),
        ("image/*", "image/png"),
    ):
        picture = explain(server, headers={"Accept": accept})
        assert picture.headers["content-type"] == kind
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"
    raw = httpx2.post(f"{server}/explain?label=dog", content=CAT.read_bytes(), headers={"Content-Type": "image/jpeg"})
    assert raw.json()["label"] == "dog"


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ({"label": "unicorn"}, 422, "There is no label 'unicorn'; there are: airplane, automobile"),
        ({"version": "99"}, 404, "no version 99"),
    ],
)
def test_a_wrong_parameter_of_explain_gets_an_error_message(server, data, status, words):
    """The response has the format of all errors."""
    answer = explain(server, data=data)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "code", "request_id"}
    assert words in answer.json()["error"]


def test_gradio_client_gets_a_row_for_each_file_and_each_file_in_an_archive(client, server, tmp_path):
    """A row has the answer that REST gives for the image, or the error of an unreadable file."""
    (tmp_path / "photos.zip").write_bytes(zipped([("a.png", encoded(noise())), ("b.txt", b"just text")]))
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
    assert answer["model"] == {"name": "cifar_classifier", "version": NEWEST}
    alone = client.predict(handle_file(CAT), top_k=2, api_name="/predict_batch")
    assert alone["rows"] == [cat], "a file outside a list is a list of one"


@pytest.mark.parametrize("views", [2, 6, "auto"])
def test_gradio_client_gets_the_mean_of_several_views_on_request(client, server, views):
    """The scores are those of REST, for one image and for a batch."""
    fields = {"views": views, "top_k": 3}
    by_rest = httpx2.post(f"{server}/predict", files={"image": CAT.read_bytes()}, data=fields).json()
    one = client.predict(handle_file(CAT), views=views, api_name="/predict")
    batch = client.predict(handle_file(CAT), 3, None, views, api_name="/predict_batch")
    assert one["class_scores"] == by_rest["class_scores"]
    assert batch["rows"][0]["top_k"] == by_rest["top_k"]
    alone = client.predict(handle_file(CAT), api_name="/predict")["class_scores"]
    assert (one["class_scores"] == alone) is (views == "auto"), "the picture is no larger than the model's input"


def test_a_plain_http_call_may_leave_out_the_last_values(server):
    """Programs without a client of Gradio send a list of values; theirs must go on when an endpoint gets a parameter."""
    files = {"files": ("cat.jpg", CAT.read_bytes())}
    (path,) = httpx2.post(f"{server}/gradio_api/upload", files=files).json()
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for data in ([image], [image, 1, None], [image, 1, None, 6]):
        event = httpx2.post(f"{server}/gradio_api/call/predict", json={"data": data}).json()["event_id"]
        answer = httpx2.get(f"{server}/gradio_api/call/predict/{event}", timeout=30).text
        assert "event: complete" in answer
        assert json.loads(answer.split("data: ")[-1])[0]["predicted_class"] == "cat"


@pytest.mark.parametrize(
    ("endpoint", "photo", "arguments", "words"),
    [
        ("/predict", CAT, {"top_k": 0}, "top_k must be from 1 to 10"),
        ("/predict", CAT, {"top_k": "abc"}, "top_k must be a whole number; got 'abc'"),
        ("/predict", CAT, {"version": 99}, "no version 99; there are: 1"),
        ("/predict", CAT, {"views": 3}, "views must be 1, 2, 6 or auto; got 3"),
        ("/predict", CAT, {"views": "all"}, "views must be 1, 2, 6 or auto; got all"),
        ("/predict_batch", CAT, {"views": 12}, "views must be 1, 2, 6 or auto; got 12"),
        ("/predict", "bad.png", {}, "whatever its name says"),
        ("/predict_batch", CAT, {"top_k": 99}, "top_k must be from 1 to 10"),
        ("/predict_batch", None, {}, "No image came"),
    ],
)
def test_gradio_client_gets_our_error_messages(client, tmp_path, endpoint, photo, arguments, words):
    """All channels have the same message for the same error. Gradio does not decode the photo itself."""
    (tmp_path / "bad.png").write_text("just text")
    photo = [] if photo is None else handle_file(tmp_path / photo)
    with pytest.raises(AppError, match=words):
        client.predict(photo, **arguments, api_name=endpoint)


def test_gradio_client_lists_the_versions(client):
    """The list has classes, image size and metrics of each version."""
    answer = client.predict(api_name="/models")
    manifest = json.loads((ROOT / "saved_model/cifar_classifier/1/manifest.json").read_text())
    assert answer["name"] == "cifar_classifier"
    (first,) = [version for version in answer["versions"] if version["version"] == 1]
    assert first["class_names"] == manifest["class_names"]
    assert first["image"] == {"height": 32, "width": 32, "channels": 3}
    assert first["metrics"]["test_accuracy"] == manifest["metrics"]["test_accuracy"]
    assert answer["default"] == max(version["version"] for version in answer["versions"])


def test_a_list_of_files_with_one_that_was_not_uploaded_is_refused(server, tmp_path):
    """An uploaded file in the list does not help another path or URL in it, at any depth."""
    (uploaded,) = httpx2.post(f"{server}/gradio_api/upload", files={"files": ("a.png", encoded(noise()))}).json()
    (tmp_path / "secret.png").write_bytes(encoded(noise()))
    upload = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    assert run(server, [upload]).status_code == 200
    for path in (str(tmp_path / "secret.png"), f"{uploaded}/../../../../etc/passwd", "http://127.0.0.1:1/x.png"):
        for files in (
            [upload, {**upload, "path": path}],
            [[{**upload, "path": path}]],
            {"a": [{**upload, "path": path}]},
        ):
            refused = run(server, files)
            assert refused.status_code == 400, refused.text
            assert "must be uploaded" in refused.json()["error"]


def run(server: str, files: object) -> httpx2.Response:
    return httpx2.post(f"{server}/gradio_api/run/predict_batch", json={"data": [files, None, None]}, timeout=60)


@pytest.mark.parametrize("files", [None, 3, "x", ["x"], [None], {}, [{}], [{"path": 3}], [[]]])
def test_a_wrong_value_in_place_of_files_gets_a_4xx(server, files):
    """It is an error of the caller, not of the server."""
    assert 400 <= run(server, files).status_code < 500
