"""The Open Inference Protocol v2, with Triton's own client and with plain HTTP."""

from __future__ import annotations

import base64
import gzip
import json
import re

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from support.pictures import example_pixels
from support.servers import CAT, EXAMPLES
from support.shipped import NEWEST, VERSIONS
from tritonclient.utils import InferenceServerException

from cifar import CLASS_NAMES

MODEL = "cifar_classifier"
INFER = f"/v2/models/{MODEL}/infer"
PIXELS = np.stack([example_pixels(name) for name in ("cat", "ship")])


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(httpx2.URL(server).netloc.decode(), network_timeout=60) as client:
        yield client


def infer_input(name: str, array: np.ndarray, datatype: str, *, binary: bool) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def by_v1(api, array: np.ndarray) -> np.ndarray:
    body = {"signature_name": "serving_uint8", "instances": array.tolist()}
    return np.array(
        [row["probabilities"] for row in api.post(f"/v1/models/{MODEL}:predict", json=body).json()["predictions"]]
    )


def test_tritons_client_finds_out_what_is_served(client):
    """It asks these five questions before it sends a picture, and a tool makes an input for each one that is listed."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(MODEL)
    assert metadata["versions"] == [str(version) for version in VERSIONS]
    assert metadata["inputs"] == [{"name": "input_image", "datatype": "FP32", "shape": [-1, 32, 32, 3]}]
    assert {output["name"]: output["shape"] for output in metadata["outputs"]} == {
        "probabilities": [-1, 10],
        "ood_score": [-1],
    }
    assert [each["datatype"] for each in metadata["parameters"]["other_inputs"]] == ["BYTES", "UINT8"]
    assert client.get_model_metadata(MODEL, "1")["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
    ]


@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_tritons_client_gets_the_probabilities_of_the_other_protocol(
    client, api, datatype, binary_input, binary_output
):
    """Tensors may come and go as JSON or as bytes, and no way may change a number."""
    name, array = ("image", PIXELS) if datatype == "UINT8" else ("input_image", (PIXELS / 255).astype(np.float32))
    asked = [triton.InferRequestedOutput("probabilities", binary_data=binary_output)]
    answer = client.infer(
        MODEL, [infer_input(name, array, datatype, binary=binary_input)], outputs=asked, request_id="7"
    )
    np.testing.assert_allclose(answer.as_numpy("probabilities"), by_v1(api, PIXELS), atol=1e-6)
    head = answer.get_response()
    assert (head["model_name"], head["model_version"], head["id"]) == (MODEL, str(NEWEST), "7")


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_tritons_client_sends_files_and_gets_labels_and_ranks(client, shape):
    """A client without an image library sends the file. The classification extension makes it independent of the order of classes."""
    files = np.array([(EXAMPLES / f"{name}.jpg").read_bytes() for name in ("cat", "ship")], dtype=object).reshape(shape)
    ranked = triton.InferRequestedOutput("probabilities", class_count=3)
    outputs = [ranked, triton.InferRequestedOutput("classes"), triton.InferRequestedOutput("ood_score")]
    answer = client.infer(MODEL, [infer_input("image_bytes", files, "BYTES", binary=True)], outputs=outputs)
    firsts = [row[0].decode().split(":") for row in answer.as_numpy("probabilities")]
    assert [(int(index), label) for _, index, label in firsts] == [(3, "cat"), (8, "ship")]
    assert answer.as_numpy("classes")[1].tolist() == [name.encode() for name in CLASS_NAMES]
    assert answer.as_numpy("ood_score").shape == (2,)


def test_a_version_is_asked_by_its_number_and_a_body_may_be_packed(client):
    """Triton's client has an argument for either."""
    image = infer_input("image", PIXELS, "UINT8", binary=True)
    answer = client.infer(MODEL, [image], model_version="1", request_compression_algorithm="gzip")
    assert answer.get_response()["model_version"] == "1"
    with pytest.raises(InferenceServerException, match="Content-Encoding 'deflate'"):
        client.infer(MODEL, [image], request_compression_algorithm="deflate")


def test_plain_json_may_hold_a_flat_or_a_nested_list_or_a_file_in_base64(api):
    """The protocol allows both kinds of lists. KServe's clients send files in base64."""
    shape = list(PIXELS.shape)
    flat, nested = PIXELS.ravel().tolist(), PIXELS.tolist()
    answers = [post(api, "image", "UINT8", shape, data=data).json() for data in (flat, nested)]
    assert answers[0] == answers[1]
    assert [output["name"] for output in answers[0]["outputs"]] == ["ood_score", "probabilities"]
    probabilities = answers[0]["outputs"][1]
    assert (probabilities["datatype"], probabilities["shape"], len(probabilities["data"])) == ("FP32", [2, 10], 20)
    by_file = post(api, "image_bytes", "BYTES", [1], data=[base64.b64encode(CAT).decode()]).json()
    assert by_file["outputs"][0]["data"] == list(CLASS_NAMES)


def post(api, name: str, datatype: str, shape: list[object], **rest: object) -> httpx2.Response:
    return api.post(INFER, json={"inputs": [{"name": name, "datatype": datatype, "shape": shape, **rest}]})


PIXEL = [0] * 3072


@pytest.mark.parametrize(
    ("input_", "words"),
    [
        (("image", "UINT8", [1, 32, 32, 3], {"data": PIXEL[1:]}), "has 3,072 numbers; got 3,071"),
        (("image", "UINT8", [2, 32, 32, 3], {"data": [[PIXEL]]}), "announces 2 images; got 1"),
        (("image", "UINT8", [32, 32, 3], {"data": PIXEL}), r"is \[n, 32, 32, 3\]; got \[32, 32, 3\]"),
        (("image", "UINT8", [], {"data": PIXEL}), r"is \[n, 32, 32, 3\]; got \[\]"),
        (("image", "UINT8", "x", {"data": PIXEL}), "got 'x'"),
        (("image", "UINT8", [-1, 32, 32, 3], {"data": PIXEL}), "1 to 256 images; got -1"),
        (("image", "UINT8", [10**9, 32, 32, 3], {"data": PIXEL}), "1 to 256 images; got 1000000000"),
        (("image", "UINT8", [1, 32, 32, 3], {"data": [256, *PIXEL[1:]]}), r"in \[0, 255\]; got 0 to 256"),
        (("image", "UINT8", [1, 32, 32, 3], {}), "must be a list of numbers; got None"),
        (("image", "UINT8", [1, 32, 32, 3], {"parameters": {"binary_data_size": 3072}}), "0 bytes follow"),
        (("image", "UINT8", [1, 32, 32, 3], {"parameters": 7}), "`parameters` must be an object; got 7"),
        (("image", "FP32", [1, 32, 32, 3], {"data": PIXEL}), "datatype of image is UINT8; got 'FP32'"),
        (("input_image", "FP32", [1, 32, 32, 3], {"data": [2.5, *PIXEL[1:]]}), r"in \[0, 1\]; got 0 to 2.5"),
        (("input_image", "FP32", [1, 32, 32, 3], {"data": ["a", *PIXEL[1:]]}), "got int, str"),
        (
            ("photo", "UINT8", [1, 32, 32, 3], {"data": PIXEL}),
            r"no input 'photo'; version \d takes one of: .*image \(UINT8\)",
        ),
        (("image_bytes", "BYTES", [1], {"data": ["?"]}), "image files in base64; got '\\?'"),
        (("image_bytes", "BYTES", [1], {"data": [7]}), "image files in base64; got 7"),
        (("image_bytes", "BYTES", [2], {"data": ["aaaa"]}), "announces 2 files; got 1"),
        (("image_bytes", "BYTES", [], {"data": ["aaaa"]}), r"is \[n\]; got \[\]"),
        (("image_bytes", "BYTES", [[1]], {"data": ["aaaa"]}), r"is \[n\]; got \[\[1\]\]"),
        (([], "BYTES", [1], {"data": ["aaaa"]}), r"no input \[\]"),
        (("image_bytes", {}, [1], {"data": ["aaaa"]}), r"is BYTES; got {}"),
        (("image_bytes", "BYTES", [1, 2], {"data": ["aaaa"]}), r"is \[n\]; got \[1, 2\]"),
    ],
)
def test_a_wrong_input_is_a_400_with_the_reason(api, input_, words):
    """Clients of this protocol show the field `error` to their users."""
    *names, rest = input_
    response = post(api, *names, **rest)
    assert response.status_code == 400, response.text
    assert set(response.json()) == {"error", "code", "request_id"}
    assert re.search(words, response.json()["error"]), response.json()["error"]


@pytest.mark.parametrize(
    ("size", "sent", "length", "words"),
    [
        (None, 3072, None, "must be a list of numbers"),
        (3072, 3072, "999999", "is '999999', and the body has"),
        (3072, 3072, "-1", "is '-1', and the body has"),
        (3071, 3071, None, "3,072 bytes; got 3,071"),
        (3072, 3071, None, "3,071 bytes follow"),
        ("x", 3072, None, "is 'x', and 3,072 bytes follow"),
    ],
)
def test_binary_data_of_another_length_than_announced_is_a_400(api, size, sent, length, words):
    """A tensor that is cut off must not be answered as another picture."""
    given = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [given]}).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(text))}
    response = api.post(INFER, content=text + b"x" * sent, headers=headers)
    assert response.status_code == 400
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (b"\x05\0\0\0abc", "ends within an element"),
        (b"\xff\xff\xff\xffabc", "ends within an element"),
        (b"\x01\0", "ends within an element"),
        (b"\2\0\0\0ab" * 2_000_000, "announces 1 files; got more"),
    ],
    ids=len,
)
def test_binary_texts_that_are_cut_off_or_too_many_are_a_400(api, tail, words):
    """Their lengths are written by the client and must not be trusted. Five million empty ones took 150 MB before they were counted."""
    size = {"binary_data_size": len(tail)}
    text = json.dumps(
        {"inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": [1], "parameters": size}]}
    ).encode()
    response = api.post(INFER, content=text + tail, headers={"Inference-Header-Content-Length": str(len(text))})
    assert response.status_code == 400
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ({"outputs": [{"name": "logits"}]}, "no output 'logits'; there are: ood_score, probabilities"),
        ({"outputs": [{"name": "probabilities"}] * 3}, "at most 2"),
        ({"outputs": [7]}, "list of at most"),
        ({"outputs": [{"name": []}]}, "no output []"),
        ({"outputs": [{"name": "probabilities", "parameters": []}]}, "must be an object"),
        ({"id": {}, "outputs": [{}]}, "no output None"),
        ({"outputs": [{"name": "ood_score", "parameters": {"classification": 3}}]}, "for the output probabilities"),
        ({"outputs": [{"name": "probabilities", "parameters": {"classification": -1}}]}, "got -1"),
        ({"inputs": []}, "a list of one input"),
        ({"inputs": {}}, "a list of one input"),
    ],
)
def test_a_wrong_call_is_a_400_with_the_reason(api, rest, words):
    """The message lists what can be asked for."""
    call = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": PIXEL}], **rest}
    response = api.post(INFER, json=call)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]


def test_a_model_that_is_not_served_is_a_404_on_every_route(api):
    """KServe takes 404 as the sign that a model is not loaded."""
    for path in (
        "/v2/models/other",
        "/v2/models/other/ready",
        f"/v2/models/{MODEL}/versions/99",
        f"/v2/models/{MODEL}/versions/99/ready",
    ):
        assert api.get(path).status_code == 404, path
    for path in ("/v2/models/other/infer", f"/v2/models/{MODEL}/versions/99/infer"):
        call = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": PIXEL}]}
        response = api.post(path, json=call)
        assert response.status_code == 404
        assert response.json()["error"]


def test_a_packed_body_is_limited_by_its_unpacked_size(api):
    """A kilobyte of gzip can hold a gigabyte."""
    bomb = gzip.compress(b" " * (21 * 1024**2))
    for path in (INFER, f"/v1/models/{MODEL}:predict"):
        response = api.post(path, content=bomb, headers={"Content-Encoding": "gzip"})
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
