"""Class names as people have them: `cifar.training.export.class_names`, and the messages about them."""

from __future__ import annotations

import json
import shlex

import keras
import pytest
from fastapi.testclient import TestClient
from support.classifiers import L
from support.folders import put
from support.pictures import encoded, noise
from support.servers import wait_until_ready

from cifar.cli.main import main
from cifar.errors import ExportError
from cifar.models.registry import Registry
from cifar.settings import Settings
from cifar.training.export.class_names import name_for, read_class_names

ANIMALS = ("cat", "dog", "polar bear")

FILES = {
    "one a line": ("labels.txt", "cat\ndog\npolar bear\n"),
    "windows": ("labels.txt", "\ufeffcat\r\ndog\r\npolar bear\r\n\r\n \r\n"),
    "teachable machine": ("labels.txt", "0 cat\n1 dog\n2 polar bear"),
    "numbered in another order": ("labels.txt", "2: polar bear\n0: cat\n1: dog\n"),
    "commas in one line": ("labels.txt", "cat, dog, polar bear\n"),
    "without an ending": ("LABELS", "cat\ndog\npolar bear"),
    "json list": ("labels.json", '["cat", "dog", "polar bear"]'),
    "json by number": ("labels.json", '{"0": "cat", "2": "polar bear", "1": "dog"}'),
    "json by name": ("class_indices.json", '{"dog": 1, "cat": 0, "polar bear": 2}'),
    "json of keras.applications": ("index.json", '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "polar bear"]}'),
    "json of teachable machine": ("metadata.json", '{"version": "2", "labels": ["cat", "dog", "polar bear"]}'),
    "json of a hub": ("config.json", '{"id2label": {"0": "cat", "1": "dog", "2": "polar bear"}}'),
    "json in a text file": ("labels.txt", '["cat", "dog", "polar bear"]'),
    "csv": ("labels.csv", 'label\ncat\ndog\n"polar bear"\n'),
    "csv without a header": ("labels.csv", "cat\ndog\npolar bear\n\n"),
    "csv of number and name": ("labels.csv", "id,name\n1,dog\n0,cat\n2,polar bear\n"),
    "csv with semicolons": ("labels.csv", "id;name\n0;cat\n1;dog\n2;polar bear\n"),
    "csv of name and number": ("labels.csv", "cat,0\ndog,1\npolar bear,2\n"),
    "csv in one row": ("labels.csv", "cat,dog,polar bear\n"),
    "tsv": ("labels.tsv", "0\tcat\n1\tdog\n2\tpolar bear\n"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_class_names_are_read_from_the_files_that_tools_write(tmp_path, kind, encoding):
    """A thousand names do not fit on a command line, and copying them there loses commas and order."""
    name, text = FILES[kind]
    (tmp_path / name).write_bytes(text.removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
    assert read_class_names(str(tmp_path / name)) == ANIMALS


def test_class_names_are_the_folders_of_an_image_folder_in_the_order_of_keras(tmp_path):
    """`image_dataset_from_directory` numbers the sorted names: capitals first, and 10 before 2."""
    for name in ("b", "B", "10", "2", "é", "猫"):
        put(tmp_path / "flat" / name / "1.png")
        (tmp_path / "divided" / "flowers" / "Train" / name).mkdir(parents=True)
    expected = keras.utils.image_dataset_from_directory(tmp_path / "flat", image_size=(8, 8), verbose=False).class_names
    (tmp_path / "flat" / ".cache").mkdir()
    (tmp_path / "flat" / "__MACOSX").mkdir()
    (tmp_path / "divided" / "flowers" / "val" / "b").mkdir(parents=True)
    assert list(read_class_names(str(tmp_path / "flat"))) == expected
    assert list(read_class_names(str(tmp_path / "divided"))) == expected
    for name in ("car", "train"):
        (tmp_path / "vehicles" / name).mkdir(parents=True)
    assert read_class_names(str(tmp_path / "vehicles")) == ("car", "train"), "here train is a class"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat, dog,", ("cat", "dog")),
        ("crane,maillot,crane,crane", ("crane", "maillot", "crane (2)", "crane (3)")),
        ("crane (2),crane,crane", ("crane (2)", "crane", "crane (3)")),
        ("l'été,雪,🐈‍⬛,Straße", ("l'été", "雪", "🐈‍⬛", "Straße")),
        ("e\u0301te\u0301,a", ("été", "a")),
        ("0,1,2", ("0", "1", "2")),
        (",".join(map(str, range(100))), tuple(map(str, range(100)))),  # longer than the name of a file may be
    ],
)
def test_names_on_the_command_line_may_be_repeated_and_hold_any_letter(text, names):
    """ImageNet has two cranes; a number tells them apart. Accents are stored in one form, as file systems have two."""
    assert read_class_names(text) == names


def test_lines_that_begin_with_numbers_are_names_unless_they_count_from_0(tmp_path):
    """Coins are classes too."""
    (tmp_path / "coins.txt").write_text("1 euro\n2 euro\n50 cents, old\n")
    assert read_class_names(str(tmp_path / "coins.txt")) == ("1 euro", "2 euro", "50 cents, old")
    (tmp_path / "synsets.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert read_class_names(str(tmp_path / "synsets.txt")) == ("n01440764 tench, Tinca tinca", "n01443537 goldfish")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.txt", b"cat\n\ndog\n", "line 2: this line is empty"),
        ("labels.txt", b"cat\nd\xf6g\n", "line 2: this is not UTF-8 text"),
        ("labels.txt", b"", "at least two class names"),
        ("labels.txt", b"cat\n", "at least two class names; got 'cat'"),
        ("labels.txt", b"cat\ndo\x07g\n", "class name 2 holds a control character: 'do\\\\x07g'"),
        ("labels.txt", b"cat\n" + b"dog" * 5000, "class name 2 has more than 200 characters: 'dogdog"),
        ("labels.json", b'["cat", ""]', "class name 2 of 2 is empty"),
        ("labels.json", b'["cat", null]', "class name 2 of 2 is empty or no text"),
        ("labels.json", b'["cat",\n"dog"', "line 2: this is not JSON"),
        ("labels.json", b'{"0": "cat", "2": "dog"}', "2 entries, but none for class 1"),
        ("labels.json", b'{"cat": 0, "dog": 0}', "2 entries, but none for class 1"),
        ("labels.json", b"3", "expected a list of names"),
        ("labels.csv", b"cat\ndog,cat,bird\n", "row 2: expected one name"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line_or_name(tmp_path, name, content, words):
    """The message leads to the place to mend, and stays short however long the file is."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=words) as refusal:
        read_class_names(str(tmp_path / name))
    assert len(str(refusal.value)) < 400
    assert len(str(refusal.value).splitlines()) == 1


def test_a_missing_file_or_an_empty_folder_is_not_taken_for_a_name(tmp_path):
    """`labels.txt` with a typo would otherwise be one class of that name."""
    with pytest.raises(ExportError, match=r"lables\.txt, does not exist"):
        read_class_names("lables.txt")
    with pytest.raises(ExportError, match="holds no folders"):
        read_class_names(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Early blight", "Late blight", "Healthy"), "Early-blight-Late-blight-Healthy"),
        (("l'été", "l'hiver"), "l-ete-l-hiver"),
        (("猫", "🐈"), "my-model"),
        (("-x", "--y"), "x-y"),
        ([f"class number {number}" for number in range(1000)], "class-number-0-class-number-1-class-numb"),
    ],
)
def test_the_suggested_name_can_be_typed_as_it_is_printed(tmp_path, names, expected):
    """A suggestion that the same command refuses helps nobody."""
    assert name_for(names) == expected
    assert Registry(tmp_path, name_for(names)).name == expected
    assert shlex.quote(expected) == expected


@pytest.fixture
def model_of(tmp_path):
    """A function that saves an untrained model with this number of classes and returns the file."""

    def save(classes: int):
        body = [L.Rescaling(1 / 255), L.GlobalAveragePooling2D(), L.Dense(classes, activation="softmax")]
        keras.Sequential([L.Input((8, 8, 3)), *body]).save(tmp_path / "model.keras")
        return str(tmp_path / "model.keras")

    return save


def test_a_wrong_number_of_names_is_refused_in_a_line(model_of, tmp_path, monkeypatch, capsys):
    """The message says what was expected and what came, without a list of a thousand names."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path / "registry"))
    (tmp_path / "labels.txt").write_text("\n".join(f"a rather long name of class {number}" for number in range(999)))
    assert main(["export", model_of(1000), "--name", "x", "--classes", str(tmp_path / "labels.txt")]) == 1
    message = capsys.readouterr().err
    assert "has 1000 outputs, but 999 class names were given: 999 classes (a rather long name of class 0, " in message
    assert len(message) < 500
    assert main(["export", model_of(1000), "--name", "x"]) == 1
    message = capsys.readouterr().err
    assert "The names of the model's 1000 classes are unknown. Name them in order: --classes" in message
    assert "They may be in" not in message, "one name is missing there"
    (tmp_path / "labels.txt").write_text("\n".join(map(str, range(1000))))
    assert main(["export", model_of(1000), "--name", "x"]) == 1
    message = capsys.readouterr().err
    assert f"They may be in {tmp_path}/labels.txt: --classes {tmp_path}/labels.txt" in message


@pytest.mark.parametrize("classes", [2, 1001])
def test_any_number_of_classes_is_served(model_of, tmp_path, monkeypatch, classes):
    """Names with commas, quotes and emoji reach clients as they were written, also the thousandth."""
    from app import create_app

    names = [f"no. {number}, “{chr(0x1F400 + number % 60)}” <b>" for number in range(classes)]
    (tmp_path / "labels.json").write_text(json.dumps(names))
    settings = {"CIFAR_REGISTRY": str(tmp_path / "registry"), "CIFAR_MODEL_NAME": "many"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main(["export", model_of(classes), "--classes", str(tmp_path / "labels.json")]) == 0
    with TestClient(create_app(Settings(registry=tmp_path / "registry", model_name="many"))) as client:
        wait_until_ready(client)
        answer = client.post("/predict", files={"image": encoded(noise(8, 8))}, params={"top_k": classes}).json()
        assert sorted(entry["label"] for entry in answer["top_k"]) == sorted(names)
        assert client.get("/").status_code == 200
