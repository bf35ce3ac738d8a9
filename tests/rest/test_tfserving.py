"""TensorFlow Serving's REST API: `/v1/models/...`."""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
import tracemalloc

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from support.identities import visitor_cookie
from support.pictures import encoded, example_pixels, noise
from support.samples import write_two_versions
from support.servers import CAT, EXAMPLES, wait_until_ready
from support.shipped import NEWEST, VERSIONS

from app import create_app
from cifar.errors import BadRequest, ImageTooLarge
from cifar.images.decode import to_input
from cifar.models.registry import Registry
from cifar.models.rollout import RolloutLog
from cifar.serving.process.decoding import Decoder
from cifar.serving.rest.tensors import read_call
from cifar.settings import ROOT, Settings

MODEL = "/v1/models/cifar_classifier"


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def by_predict(api, name: str = "cat", **fields: object) -> list[float]:
    answer = api.post("/predict", files={"image": (EXAMPLES / f"{name}.jpg").read_bytes()}, data=fields)
    return answer.json()["class_scores"]


def ask(api, body: object, path: str = f"{MODEL}:predict") -> httpx2.Response:
    return api.post(path, json=body)


def test_instances_are_answered_by_row_and_inputs_by_column(api):
    """With several outputs a row is an object, and a column is named after its tensor, as TensorFlow Serving documents."""
    images = [example_pixels("cat").tolist(), example_pixels("ship").tolist()]
    rows = ask(api, {"signature_name": "serving_uint8", "instances": images}).json()["predictions"]
    assert [set(row) for row in rows] == [{"probabilities", "ood_score"}] * 2
    columns = ask(api, {"signature_name": "serving_uint8", "inputs": {"image": images}}).json()["outputs"]
    assert columns == {name: [row[name] for row in rows] for name in ("probabilities", "ood_score")}
    named = ask(api, {"signature_name": "serving_uint8", "instances": [{"image": image} for image in images]})
    assert named.json()["predictions"] == rows
    bare = ask(api, {"signature_name": "serving_uint8", "inputs": images})
    assert bare.json()["outputs"] == columns


def test_a_signature_with_one_output_answers_without_its_name(api):
    """Version 1 has probabilities only: a row is a list, and so is the column."""
    image = example_pixels("cat").tolist()
    body = {"signature_name": "serving_uint8", "instances": [image]}
    (row,) = ask(api, body, f"{MODEL}/versions/1:predict").json()["predictions"]
    np.testing.assert_allclose(row, by_predict(api, version=1), atol=1e-6)
    body = {"signature_name": "serving_uint8", "inputs": [image]}
    assert ask(api, body, f"{MODEL}/versions/1:predict").json() == {"outputs": [row]}


@pytest.mark.parametrize("name", ["cat", "ship", "frog"])
def test_all_three_signatures_give_the_answer_of_predict(api, name):
    """Their inputs are pixels, pixels divided by 255 (the default signature), and the image file."""
    image, file = example_pixels(name), (EXAMPLES / f"{name}.jpg").read_bytes()
    expected = by_predict(api, name)
    for signature, value in (
        ("serving_uint8", image.tolist()),
        (None, (image / 255).tolist()),
        ("serving_bytes", b64(file)),
    ):
        body = {"instances": [value]} | ({"signature_name": signature} if signature else {})
        (row,) = ask(api, body).json()["predictions"]
        np.testing.assert_allclose(row["probabilities"], expected, atol=1e-6)
    assert row["classes"][3] == "cat"


def test_a_header_names_the_engine_and_its_precision(api):
    """A client of a float signature learns that the shipped version computes some layers in int8."""
    body = {"instances": [(example_pixels("cat") / 255).tolist()]}
    assert ask(api, body).headers["X-Model-Engine"] == "litert, int8"
    assert ask(api, body, f"{MODEL}/versions/1:predict").headers["X-Model-Engine"] == "litert, float32"


def test_status_and_metadata_have_the_documented_form(api):
    """64-bit numbers are strings, -1 is any size, and a label leads to its version."""
    assert api.get(f"{MODEL}/versions/{NEWEST}").json() == {
        "model_version_status": [
            {"version": str(NEWEST), "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert [each["version"] for each in api.get(MODEL).json()["model_version_status"]] == [
        str(version) for version in reversed(VERSIONS)
    ]
    assert api.get(f"{MODEL}/labels/stable").json() == api.get(f"{MODEL}/versions/{NEWEST}").json()
    metadata = api.get(f"{MODEL}/metadata").json()
    assert metadata["model_spec"] == {"name": "cifar_classifier", "signature_name": "", "version": str(NEWEST)}
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "serving_uint8", "serving_bytes"}
    assert signatures["serving_uint8"]["inputs"]["image"] == {
        "dtype": "DT_UINT8",
        "tensor_shape": {"dim": [{"size": str(size), "name": ""} for size in (-1, 32, 32, 3)], "unknown_rank": False},
        "name": "serving_uint8_image:0",
    }
    assert api.get(f"{MODEL}/versions/1/metadata").json()["model_spec"]["version"] == "1"
    assert api.get(f"{MODEL}/labels/stable/metadata").json() == metadata


IMAGE = np.zeros((32, 32, 3), int).tolist()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([], "either `instances` or `inputs`"),
        ({}, "either `instances` or `inputs`"),
        ({"instances": [IMAGE], "inputs": [IMAGE]}, "either `instances` or `inputs`"),
        (
            {"instances": [IMAGE], "signature_name": "classify"},
            "no signature 'classify'; version \\d has: serving_bytes",
        ),
        ({"instances": [IMAGE], "signature_name": 7}, "no signature '7'"),
        ({"instances": []}, "at least one input_image"),
        ({"instances": "cat"}, "at least one input_image; got 'cat'"),
        ({"instances": [[1, 2]]}, r"float32 of shape \(n, 32, 32, 3\); got int of shape \(1, 2\)"),
        ({"instances": [[[1], [1, 2]]]}, "different lengths"),
        ({"instances": [["a"]]}, "got str of shape"),
        ({"instances": [{"picture": IMAGE}]}, "one input is 'input_image'; got 'picture'"),
        ({"instances": [(np.array(IMAGE) + 2).tolist()]}, r"in \[0, 1\]; got 2 to 2"),
        ({"instances": [(np.array(IMAGE) - 1).tolist()], "signature_name": "serving_uint8"}, r"in \[0, 255\]; got -1"),
        ({"instances": [(np.array(IMAGE) + 0.5).tolist()], "signature_name": "serving_uint8"}, "whole numbers"),
        ({"instances": [IMAGE], "signature_name": "serving_bytes"}, 'comes as {"b64"'),
        ({"instances": [{"b64": "?"}], "signature_name": "serving_bytes"}, "not base64"),
        ({"instances": [{"b64": "aaaa"}]}, "Files in base64 belong to .*serving_bytes"),
        ({"instances": [0] * 300}, "at most 256 images; got 300"),
    ],
)
def test_a_malformed_call_is_answered_400_with_the_reason(api, body, sentence):
    """The body has TensorFlow Serving's field `error`, and our `code`."""
    answer = ask(api, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "bad_request"
    assert re.search(sentence, answer.json()["error"]), answer.json()["error"]


def test_base64_with_a_letter_beyond_ascii_is_answered_400(api):
    """Python raises another exception for it than for other text that is not base64."""
    answer = ask(api, {"instances": [{"b64": "\u00e9"}], "signature_name": "serving_bytes"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text
    assert "not base64" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        '{"inputs": {"input_image": {"a": %s}}}',
        '{"instances": [0], "signature_name": %s}',
        '{"instances": [%s], "signature_name": "serving_bytes"}',
        '{"instances": [%s]}',
    ],
)
def test_lists_nested_a_thousand_deep_are_answered_400(api, body):
    """The message quotes some of the body without recursing into it."""
    answer = api.post(f"{MODEL}:predict", content=body % ("[" * 1000 + "]" * 1000))
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text


def test_a_long_text_among_numbers_takes_no_more_memory_than_the_call():
    """In one array of strings, a text of one megabyte and a hundred numbers would take 400 MB."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get().manifest
    body = json.dumps({"instances": [["x" * 1_000_000] + [0] * 100]}).encode()
    tracemalloc.start()
    with pytest.raises(BadRequest, match="got int, str of shape"):
        read_call(body, manifest, max_images=256, max_pixels=10**6, decode=Decoder(Settings()).finish)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 20_000_000


def test_the_images_of_a_call_together_have_the_limit_of_one_image():
    """A few kilobytes may decode to millions of pixels, and a call has room for many such files."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get().manifest
    file = base64.b64encode(encoded(noise(40, 40))).decode()
    limits = {"max_images": 256, "max_pixels": 40 * 40 * 3, "decode": Decoder(Settings()).finish}
    body = {"signature_name": "serving_bytes", "instances": [{"b64": file}] * 3}
    assert len(read_call(json.dumps(body).encode(), manifest, **limits).images) == 3
    body["instances"].append({"b64": file})
    with pytest.raises(ImageTooLarge, match="at most 4,800 pixels together; send fewer at once"):
        read_call(json.dumps(body).encode(), manifest, **limits)


@pytest.mark.parametrize("key", ["b64", r"b\u00364"])
def test_image_files_in_a_tensor_call_are_decoded_in_a_thread(api, monkeypatch, key):
    """A few kilobytes may decode to millions of pixels, which would block the event loop."""
    threads = []

    def noted(*arguments, **options):
        threads.append(threading.current_thread().name)
        return to_input(*arguments, **options)

    monkeypatch.setattr("cifar.serving.rest.tensors.to_input", noted)
    body = json.dumps({"signature_name": "serving_bytes", "instances": [b64(CAT)]}).replace("b64", key)
    assert api.post(f"{MODEL}:predict", content=body).status_code == 200
    assert [name.partition("_")[0] for name in threads] == ["tensor-files"]


@pytest.mark.parametrize("path", ["", "/metadata", ":predict"])
def test_a_version_of_thousands_of_digits_is_answered_404(api, path):
    """Python raises an exception for so many digits, which must not become a 500."""
    method = "POST" if path == ":predict" else "GET"
    answer = api.request(method, f"{MODEL}/versions/{'9' * 5000}{path}")
    assert answer.status_code == 404, answer.text


def test_unknown_models_versions_labels_and_verbs_are_answered_404(api):
    """The verbs classify and regress need signatures that image classifiers do not have."""
    for method, path in (
        ("GET", "/v1/models/half_plus_two"),
        ("GET", f"{MODEL}/versions/9"),
        ("GET", f"{MODEL}/labels/canary"),
        ("POST", "/v1/models/half_plus_two:predict"),
        ("POST", f"{MODEL}/versions/9:predict"),
        ("POST", f"{MODEL}/labels/canary:predict"),
        ("POST", f"{MODEL}:classify"),
        ("POST", f"{MODEL}:regress"),
    ):
        answer = api.request(method, path, json={"instances": [IMAGE]} if method == "POST" else None)
        assert answer.status_code == 404, (path, answer.text)
        assert answer.json()["error"]
    assert api.post(f"{MODEL}:predict", content=b"{").json()["error"].startswith("The body is not JSON")
    assert "it is a multipart form" in api.post(f"{MODEL}:predict", files={"image": b"x"}).json()["error"]
    assert "it is an image file" in api.post(f"{MODEL}:predict", content=b"\xff\xd8\xff\xe0\0").json()["error"]
    broken = ask(api, {"signature_name": "serving_bytes", "instances": [b64(CAT[:300])]})
    assert (broken.status_code, broken.json()["code"]) == (422, "unreadable_image")


def test_the_label_or_the_rollout_chooses_the_version_and_a_header_names_it(tmp_path):
    """Versions 1 and 2 exchange airplane and automobile; the canary is addressed by its label."""
    registry = Registry(write_two_versions(tmp_path), "cifar_classifier")
    log = RolloutLog(registry)
    log.promote(1, by="ada", check_loadable=lambda _: None)
    log.label("canary", 2, by="ada")
    log.split({"stable": 50, "canary": 50}, by="ada")
    settings = Settings(registry=tmp_path, traffic_secret="s" * 32)
    with TestClient(create_app(settings, page=False)) as client:
        wait_until_ready(client)
        body = {"signature_name": "serving_uint8", "instances": [IMAGE]}
        assert ask(client, body, f"{MODEL}/labels/canary:predict").headers["x-model-version"] == "2"
        cookies = [{"Cookie": visitor_cookie(i, settings)} for i in range(20)]
        answers = [client.post(f"{MODEL}:predict", json=body, headers=cookie) for cookie in cookies]
        assert {answer.headers["x-model-version"] for answer in answers} == {"1", "2"}


@pytest.mark.parametrize(
    "write",
    [
        lambda content: base64.encodebytes(content).decode(),
        lambda content: base64.encodebytes(content).decode().replace("\n", "\r\n"),
        lambda content: base64.b64encode(content).decode() + "\n",
        lambda content: base64.b64encode(content).decode().rstrip("="),
        lambda content: " \t".join(base64.b64encode(content).decode()),
    ],
    ids=["lines", "mime", "newline", "no_padding", "spaces"],
)
@pytest.mark.parametrize("extra", [b"", b"x", b"xx"])
def test_base64_is_read_as_tensorflow_serving_reads_it(api, write, extra):
    """Python's encodebytes, MIME and Android write lines, and other encoders no padding. `extra` makes three lengths of padding."""
    body = {"signature_name": "serving_bytes", "instances": [{"b64": write(CAT + extra)}]}
    assert ask(api, body).status_code == 200


@pytest.mark.parametrize("text", ["_-8=", "aa=a", "aaaaa", "aaa==", "=", "aa\u00a0aa", "data:image/png;base64,aaaa"])
def test_text_that_tensorflow_serving_refuses_is_refused(api, text):
    """The alphabet for URLs is another one."""
    answer = ask(api, {"signature_name": "serving_bytes", "instances": [{"b64": text}]})
    assert (answer.status_code, answer.json()["code"]) in {
        (400, "bad_request"),
        (415, "unsupported_image"),
        (422, "unreadable_image"),
    }
    if text != "=":
        assert "not base64" in answer.json()["error"]


def test_a_body_may_be_packed_with_gzip_and_have_further_keys(api):
    """TensorFlow Serving unpacks bodies, and never looks at keys that it does not know."""
    call = {"signature_name": "serving_bytes", "instances": [b64(CAT)], "comment": "", "examples": []}
    plain = ask(api, call).json()
    body = json.dumps(call).encode()
    for packed in (gzip.compress(body), gzip.compress(body[:99]) + gzip.compress(body[99:])):
        answer = api.post(f"{MODEL}:predict", content=packed, headers={"Content-Encoding": "gzip"})
        assert answer.json() == plain
    for broken in (gzip.compress(body)[:-9], b"not gzip", gzip.compress(body) + b"junk"):
        answer = api.post(f"{MODEL}:predict", content=broken, headers={"Content-Encoding": "gzip"})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), broken[:20]
    parts = gzip.compress(b"") * 1000 + gzip.compress(body)  # 20 MB of them kept a thread busy for minutes
    answer = api.post(f"{MODEL}:predict", content=parts, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, "1,000 members" in answer.json()["error"]) == (400, True)
    other = api.post(f"{MODEL}:predict", content=body, headers={"Content-Encoding": "br"})
    assert (other.status_code, other.json()["code"]) == (415, "unsupported_encoding")
    assert other.headers["accept-encoding"] == "gzip"
