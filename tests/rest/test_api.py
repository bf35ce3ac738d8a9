"""The HTTP API of the whole app: routes, answers and errors."""

from __future__ import annotations

import base64
import gzip
import re

import httpx2
import pytest
from fastapi.testclient import TestClient
from huggingface_hub import InferenceClient
from support.pictures import encoded, noise, png_of_100_megapixels, truncated_jpeg
from support.servers import CAT, EXAMPLES, NO_CACHE, wait_until_ready
from support.shipped import NEWEST

from app import create_app
from cifar import CLASS_NAMES
from cifar.models.registry import Registry
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.rest.app import create_api
from cifar.settings import ROOT, Settings


def post(api: TestClient, content: bytes = CAT, *, name: str = "photo.jpg", **fields) -> httpx2.Response:
    return api.post("/predict", files={"image": (name, content)}, data=fields)


def assert_error(response: httpx2.Response, status: int, code: str, words: str) -> None:
    """Check status, code and message of an error, and the body that all errors share."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "code", "request_id"}
    assert body["code"] == code
    assert re.search(words, body["error"]), body["error"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text


def test_an_image_gets_its_class_with_every_score(api):
    """Clients rely on exactly these fields, and those of the tutorial are among them."""
    answer = post(api).json()
    assert answer["predicted_class"] == "cat"
    assert answer["confidence"] == round(answer["class_scores"][CLASS_NAMES.index("cat")], 4)
    assert answer["labels"] == list(CLASS_NAMES)
    assert sum(answer["class_scores"]) == pytest.approx(1, abs=1e-4)
    assert answer["top_k"][0]["label"] == "cat"
    assert len(answer["top_k"]) == 3
    assert answer["model"] == {"name": "cifar_classifier", "version": NEWEST}
    scores = {"predicted_class", "confidence", "class_scores", "labels", "top_k", "ood_score", "in_distribution"}
    assert set(answer) == scores | {"grade", "model", "request_id"}


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_every_example_of_the_page_gets_its_class(api, name):
    """The examples should show that the model works."""
    assert post(api, (ROOT / "examples" / f"{name}.jpg").read_bytes()).json()["predicted_class"] == name


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "application/octet-stream", "image/*; charset=x"])
def test_a_raw_body_is_the_same_as_a_form_field(api, kind):
    """`curl --data-binary` works too. The content of the file decides, not the header."""
    raw = api.post("/predict?top_k=2", content=CAT, headers={"Content-Type": kind})
    assert raw.status_code == 200, raw.text
    form = post(api, top_k="2").json()
    assert {**raw.json(), "request_id": ""} == {**form, "request_id": ""}


def test_parameters_come_from_the_form_or_the_query(api):
    """With a raw body there is no form, so the query works too."""
    assert len(post(api, top_k="7").json()["top_k"]) == 7
    response = api.post("/predict", params={"top_k": 1, "version": 1}, files={"image": CAT})
    assert len(response.json()["top_k"]) == 1


def test_several_views_are_averaged_on_request_and_one_is_the_default(api):
    """The number may come from the form or the query, with a form or a raw body."""
    one, two, six = (without_id(post(api, views=views)) for views in ("1", "2", "6"))
    assert without_id(post(api)) == one
    assert len({answer["class_scores"][3] for answer in (one, two, six)}) == 3
    assert len({answer["ood_score"] for answer in (one, two, six)}) == 3
    assert sum(six["class_scores"]) == pytest.approx(1, abs=1e-4)
    for kind in ("image/jpeg", "application/octet-stream"):
        assert without_id(api.post("/predict?views=6", content=CAT, headers={"Content-Type": kind})) == six
    assert without_id(api.post("/predict?views=6", files={"image": CAT})) == six


def without_id(response: httpx2.Response) -> dict:
    return {name: value for name, value in response.json().items() if name != "request_id"}


def test_a_valid_request_id_is_used_and_an_invalid_one_is_replaced(api):
    """Clients can follow their requests, but cannot write arbitrary text into the log."""
    given = api.get("/health", headers={"X-Request-ID": "order-42.a_B"})
    assert given.headers["x-request-id"] == "order-42.a_B"
    made = api.get("/health", headers={"X-Request-ID": "a b\tc" * 20})
    assert re.fullmatch(r"[0-9a-f]{32}", made.headers["x-request-id"])


@pytest.mark.parametrize(
    ("content", "name", "status", "code", "words"),
    [
        (b"just text", "photo.png", 415, "unsupported_image", "whatever its name says"),
        (b"data:image/jpeg;base64," + base64.b64encode(CAT), "cat.jpg", 415, "unsupported_image", "an image in base64"),
        (truncated_jpeg(), "photo.jpg", 422, "unreadable_image", "truncated"),
        (b"", "photo.jpg", 422, "unreadable_image", "0 bytes"),
        (png_of_100_megapixels, "photo.png", 413, "image_too_large", "megapixels"),
    ],
    ids=["text_named_png", "base64", "truncated_jpeg", "zero_bytes", "png_of_100_megapixels"],
)
def test_a_bad_file_gets_its_status_and_a_message(api, content, name, status, code, words):
    """Another file would be answered, so the status is 4xx."""
    assert_error(post(api, content() if callable(content) else content, name=name), status, code, words)


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"top_k": "0"}, 422, "bad_parameter", "from 1 to 10"),
        ({"top_k": "11"}, 422, "bad_parameter", "from 1 to 10"),
        ({"top_k": "abc"}, 422, "bad_parameter", "whole number; got 'abc'"),
        ({"top_k": "1.5"}, 422, "bad_parameter", "whole number"),
        ({"top_k": "9" * 5000}, 422, "bad_parameter", "top_k must have at most 200 bytes"),
        ({"version": "99"}, 404, "version_not_found", "no version 99; there are: 1"),
        ({"version": "-1"}, 404, "version_not_found", "no version -1"),
        ({"version": "latest"}, 422, "bad_parameter", "version must be a whole number"),
        ({"views": "3"}, 422, "bad_parameter", "views must be 1, 2, 6 or auto; got 3"),
        ({"views": "0"}, 422, "bad_parameter", "views must be 1, 2, 6 or auto; got 0"),
        ({"views": "auto "}, 422, "bad_parameter", "views must be 1, 2, 6 or auto; got auto "),
        ({"views": "all"}, 422, "bad_parameter", "views must be 1, 2, 6 or auto; got all"),
    ],
)
def test_a_bad_parameter_gets_its_status_and_a_message(api, fields, status, code, words):
    """The message says what was sent and what is expected."""
    assert_error(post(api, **fields), status, code, words)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "got an empty body"),
        ({"json": {"image": "x"}}, "base64 as `inputs`; got application/json with `image`"),
        ({"json": {"url": "https://a.example/cat.jpg"}}, "with `url`; addresses are not fetched"),
        ({"json": {"instances": []}}, "`instances`, which belongs to /v1/models/NAME:predict"),
        ({"data": {"other": "x"}}, "urlencoded. Use .*-F image=@photo.jpg"),
        (
            {
                "content": CAT.translate(None, b"\0\r\n"),
                "headers": {"Content-Type": "application/x-www-form-urlencoded"},
            },
            "Use `curl -F image=@photo.jpg`",
        ),
        ({"files": {"image": (None, "text")}}, "came as text"),
        ({"content": b"", "headers": {"Content-Type": "image/png"}}, "No image came"),
    ],
    ids=["nothing", "json", "address", "tensors", "urlencoded", "curl_with_data", "text_field", "empty_raw_body"],
)
def test_the_error_for_a_request_without_an_image_says_how_to_send_one(api, request_, words):
    """A caller who sent JSON or a text field learns from the message what to change."""
    assert_error(api.post("/predict", **request_), 400, "missing_image", words)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--x\r\n\r\n",
        b"no boundary at all",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc',
    ],
)
def test_a_malformed_form_is_a_400(api, body):
    """The fault may be in the body or in the Content-Type."""
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary="):
        response = api.post("/predict", content=body, headers={"Content-Type": kind})
        assert response.status_code == 400, (kind, response.text)
        assert set(response.json()) == {"error", "code", "request_id"}


def test_unknown_form_fields_are_ignored_as_unknown_query_parameters_are(api):
    """Browsers send submit buttons, tokens and empty file fields along."""
    empty = ("other", ("", b"", "application/octet-stream"))
    form = [("csrf_token", (None, "x")), empty, ("image", CAT), *[(f"f{i}", (None, "x")) for i in range(20)]]
    assert without_id(api.post("/predict?utm=1", files=form)) == without_id(post(api))
    assert api.post("/explain", files=form).status_code == 200


def test_a_form_with_too_many_parts_is_a_400(api):
    """A form with a thousand parts is not read to its end."""
    form = [(f"f{i}", (None, "x")) for i in range(1000)]
    assert_error(api.post("/predict", files=form), 400, "bad_request", "Too many")


@pytest.mark.parametrize("names", [("image", "image"), ("image", "image2"), ("images", "images")])
def test_several_files_are_refused_with_the_endpoint_that_takes_many(api, names):
    """Answering one of them would look like an answer to all."""
    files = [(name, ("a.jpg", CAT)) for name in names]
    assert_error(api.post("/predict", files=files), 400, "bad_request", "/predict_batch")


def test_a_file_in_another_field_is_refused_with_the_name_of_the_right_one(api):
    """Other services call the field `file`."""
    assert_error(
        api.post("/predict", files={"file": CAT}), 400, "missing_image", "'file'; send it as the field `image`"
    )


@pytest.mark.parametrize("kind", ["image/jpeg", "IMAGE/PNG", "application/octet-stream", "text/plain", None])
@pytest.mark.parametrize("plain", [True, False])
def test_the_field_image_needs_no_file_name(api, kind, plain):
    """RFC 7578 asks for none, and Node's form-data sends none with a Buffer: the part's type or its content makes it a file."""
    head = ['Content-Disposition: form-data; name="image"', *([f"Content-Type: {kind}"] if kind else [])]
    lines = head if plain else [*reversed(head), "X-Other: 1"]  # the second kind of head is read by the general parser
    body = b"--x\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + CAT + b"\r\n--x--\r\n"
    response = api.post("/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert without_id(response) == without_id(post(api))


def test_the_content_decides_whatever_type_a_sender_gave_it(api):
    """S3 stores files as binary/octet-stream, libraries add a default type or pack the body, and mail programs begin a form with a text."""
    expected = without_id(post(api))
    form = b'A form.\r\n--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + CAT + b"\r\n--x--\r\n"
    sent = [(kind, CAT) for kind in ("binary/octet-stream", "text/plain", "application/json", "*/*")]
    for kind, body in [*sent, ("multipart/form-data; boundary=x", form)]:
        for encoding, packed in (("", body), ("gzip", gzip.compress(body))):
            headers = {"Content-Type": kind, "Content-Encoding": encoding}
            assert without_id(api.post("/predict", content=packed, headers=headers)) == expected, headers
    response = api.post("/predict", content=CAT, headers={"Content-Type": "image/jpeg", "Content-Encoding": "br"})
    assert_error(response, 415, "unsupported_encoding", "send the body as it is or with gzip")
    other = api.post("/predict", content=form, headers={"Content-Type": "multipart/form-data; boundary=y"})
    assert_error(
        other, 400, "bad_request", "does not contain the boundary 'y'.* Let your HTTP client write this header"
    )


# --- Hugging Face's task -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [None, 3, 100])
@pytest.mark.parametrize("kind", [bytes, str])
def test_the_client_of_hugging_face_gets_labels_and_scores(server, api, kind, top_k):
    """It sends the file as the body, with a type only if it has a name, and JSON as soon as there is a parameter."""
    client = InferenceClient(model=f"{server}/predict", timeout=60)
    image = CAT if kind is bytes else str(EXAMPLES / "cat.jpg")
    answer = client.image_classification(image, top_k=top_k)
    expected = post(api, top_k=str(min(top_k or 5, 10))).json()["top_k"]
    assert [{"label": each.label, "score": each.score} for each in answer] == expected


def test_the_task_is_read_from_json_and_from_a_body_without_a_type(api):
    """Its documents show `requests.post(URL, data=content)`, and `curl --data-binary`, which adds the type of a form."""
    encoded_image = base64.b64encode(CAT).decode()
    expected = post(api, top_k="5").json()["top_k"]
    for inputs in (encoded_image, f"data:image/jpeg;base64,{encoded_image}"):
        assert api.post("/predict", json={"inputs": inputs}).json() == expected
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert api.post("/predict", content=CAT, headers=headers).json() == expected
    one = api.post("/predict?version=1", json={"inputs": encoded_image, "parameters": {"top_k": 1}})
    assert one.json() == post(api, top_k="1", version="1").json()["top_k"]


@pytest.mark.parametrize(
    ("call", "status", "code", "words"),
    [
        ({"inputs": "https://a.example/cat.jpg"}, 400, "bad_request", "in base64; got 'https://a.example/ca'"),
        ({"inputs": 7}, 400, "missing_image", "a file in base64 as `inputs`; got application/json with `inputs`"),
        ({"inputs": "aaaa", "parameters": {"candidate_labels": []}}, 422, "bad_parameter", "classes are fixed"),
        ({"inputs": "aaaa"}, 415, "unsupported_image", "whatever its name says"),
        ({"inputs": "aaaa", "parameters": 7}, 400, "bad_request", "`parameters` must be"),
        ({"inputs": "aaaa", "parameters": {"top_k": "x"}}, 422, "bad_parameter", "whole number; got 'x'"),
        ({"inputs": "aaaa", "parameters": {"top_k": True}}, 422, "bad_parameter", "whole number; got 'True'"),
        ({"inputs": "aaaa", "parameters": {"top_k": [[]]}}, 422, "bad_parameter", "whole number; got 'list'"),
        ({"inputs": "aaaa", "parameters": {"function_to_apply": ["x"]}}, 422, "bad_parameter", "probabilities already"),
        (
            {"inputs": "aaaa", "parameters": {"function_to_apply": "none"}},
            422,
            "bad_parameter",
            "probabilities already",
        ),
        ([1], 400, "missing_image", "application/json"),
    ],
)
def test_a_wrong_call_of_the_task_gets_its_status_and_a_message(api, call, status, code, words):
    """The client shows the text of the answer to its user."""
    assert_error(api.post("/predict", json=call), status, code, words)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/predict", 405), ("PUT", "/predict", 405), ("POST", "/health", 405)]
)
def test_a_wrong_method_gets_the_usual_error_body(api, method, path, status):
    """Clients can parse every error in the same way, as JSON."""
    assert_error(api.request(method, path), status, "method_not_allowed", f"{method} is not a method of {path}")


def test_the_documentation_lists_the_routes_and_their_errors(api):
    """OpenAPI describes both bodies and every status."""
    assert api.get("/docs").status_code == 200
    predict = api.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json"}
    assert set(predict["responses"]) == {*("200", "400", "401", "403", "404", "413", "415", "422", "429", "503")}


def test_every_operation_has_a_group_a_name_and_an_example(api):
    """The documentation is a list of thirty routes without groups, and generated clients name their methods after operations."""
    description = api.get("/openapi.json").json()
    operations = [each for path in description["paths"].values() for each in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) > 25
    for operation in operations:
        assert re.fullmatch(r"[a-z][A-Za-z]+", operation["operationId"])
        assert len(operation["tags"]) == 1
        (answer,) = (kind["example"] for kind in operation["responses"]["200"]["content"].values() if "example" in kind)
        assert answer
        json_body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert json_body is None or json_body["example"]


def test_the_examples_of_the_documentation_are_answered_as_it_says(api):
    """An example that no longer works is worse than none."""
    paths = api.get("/openapi.json").json()["paths"]
    values = {"{name}": "cifar_classifier", "{version}": str(NEWEST), "{label}": "stable"}
    for path, operations in paths.items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            address = re.sub(r"{\w+}", lambda part: values[part[0]], path)
            if path.startswith("/admin") or path == "/feedback" or (method == "post" and body is None):
                continue
            response = api.request(method, address, json=body and body["example"])
            assert response.status_code == 200, (path, response.text)
            (example,) = (
                kind["example"] for kind in operation["responses"]["200"]["content"].values() if "example" in kind
            )
            if path not in {"/metrics", "/predict"}:
                assert shape(response.json()) == shape(example), path


def shape(value: object) -> object:
    """Return the keys and types of a JSON value; of a list, those of its first element."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items() if key not in {"other_inputs", "signature_def"}}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return type(value).__name__


def test_three_health_routes_tell_whether_the_process_is_alive_ready_and_has_a_model(api):
    """Restarts depend on `/healthz` and traffic on `/readyz`; `/health` reports whether the model is loaded."""
    assert api.get("/health").json() == {"status": "healthy", "model_loaded": True}
    assert api.get("/healthz").json() == {"status": "alive"}
    assert api.get("/readyz").json() == {
        "status": "ready",
        "without": [],
        "model": {"name": "cifar_classifier", "version": NEWEST},
        "traffic": {f"stable, version {NEWEST}": 100},
        "problem": "",
    }


def test_before_the_model_is_loaded_the_process_is_alive_but_not_ready():
    """`/readyz` and `/predict` answer 503 with Retry-After, and `/healthz` answers 200."""
    settings = Settings()
    registry = Registry(settings.registry, settings.model_name)
    versions = LoadedVersions(registry, settings)
    # used without a `with` statement, the app does not start, so nothing is loaded
    client = TestClient(create_api(RecordedClassifier(Classifier(versions, settings, NO_CACHE)), settings))
    assert client.get("/healthz").status_code == 200
    assert client.get("/health").json()["model_loaded"] is False
    for response in (client.get("/readyz"), post(client)):
        assert_error(response, 503, "not_ready", "being loaded")
        assert response.headers["retry-after"] == "5"


def test_an_image_classifier_of_another_size_is_served(small_version):
    """This version takes 64x64 pixels and has three classes. Only the defaults belong to CIFAR-10."""
    settings = Settings(registry=small_version.path.parent.parent, model_name="shapes")
    with TestClient(create_app(settings)) as client:
        wait_until_ready(client)
        answer = post(client, encoded(noise(200, 100))).json()
        assert answer["labels"] == ["circle", "square", "star"]
        assert len(answer["top_k"]) == 3
        assert_error(post(client, top_k="4"), 422, "bad_parameter", "from 1 to 3")
        assert "circle, square, star" in client.get("/").text


def test_an_origin_that_is_not_allowed_gets_no_cors_header(api):
    """The pages of other sites cannot read answers, neither of our routes nor of Gradio's."""
    for path in ("/health", "/config", "/gradio_api/info"):
        response = api.get(path, headers={"Origin": "https://evil.example", "Host": "space.example"})
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers
