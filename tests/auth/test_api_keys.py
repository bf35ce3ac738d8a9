"""API keys, their file, and secrets that must not be shown."""

from __future__ import annotations

import json
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from gradio_client import Client, handle_file
from jwt import encode
from pydantic import ValidationError
from support.cli import cifar
from support.identities import AUDIENCE, ISSUER, SECRET, bearer, claims

from cifar.errors import InvalidCredentials, KeysError
from cifar.serving.auth.api_keys import ApiKeys, create, read, revoke
from cifar.settings import ROOT, Settings

CAT = ROOT / "examples" / "cat.jpg"


def test_a_key_works_by_either_header_until_it_is_revoked(closed_server, keys):
    """A running server notices a key that is created or revoked."""
    address = closed_server[0]
    new = create(keys, "short-lived", ["predict"])

    def status(headers: dict[str, str]) -> int:
        return httpx2.post(f"{address}/predict", files={"image": CAT.read_bytes()}, headers=headers).status_code

    def becomes(expected: int) -> bool:
        for _ in range(100):
            if status(bearer(new)) == expected:
                return True
            time.sleep(0.1)
        return False

    assert becomes(200)
    assert status({"X-API-Key": new}) == 200
    revoke(keys, "short-lived")
    assert becomes(401)
    assert status({"X-API-Key": new}) == 401


def test_gradio_client_works_only_with_a_key(closed_server, key):
    """It sends the header when it fetches the configuration, uploads files and opens streams."""
    client = Client(closed_server[0], headers=bearer(key["caller"]), verbose=False)
    assert client.predict(handle_file(CAT), top_k=2, api_name="/predict")["predicted_class"] == "cat"
    by_header = Client(closed_server[0], headers={"X-API-Key": key["caller"]}, verbose=False)
    assert by_header.predict(handle_file(CAT), api_name="/predict")["predicted_class"] == "cat"
    with pytest.raises(Exception, match="credentials were not provided"):
        Client(closed_server[0], verbose=False)


def test_the_file_of_keys_holds_only_hashes_and_only_its_owner_can_read_it(keys, key):
    """A backup of the file gives no access, and other users of the machine cannot read it."""
    text = keys.read_text()
    for secret in key.values():
        assert secret not in text
        assert secret.split("_", 2)[2] not in text
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600


def test_keys_created_at_the_same_time_are_all_kept(tmp_path):
    """Of twenty writers none overwrites another's key or brings back a revoked one."""
    file = tmp_path / "keys.json"
    create(file, "gone", ["predict"])
    with ThreadPoolExecutor(20) as pool:
        made = [pool.submit(create, file, f"key-{i}", ["predict"]) for i in range(20)]
        revoke(file, "gone")
        assert len({future.result() for future in made}) == 20
    assert sorted(entry.name for entry in read(file)) == sorted(f"key-{i}" for i in range(20))


def test_while_the_file_of_keys_is_damaged_the_keys_read_before_stay_valid(tmp_path, caplog):
    """One log line reports the damage. At start it is an error. A deleted file means that there are no keys."""
    file = tmp_path / "keys.json"
    good = create(file, "ci", ["predict"])
    keys = ApiKeys(file)
    whole = file.read_text()
    file.write_text(whole[:50])
    for _ in range(3):
        assert keys.principal(good).name == "key:ci"
    assert len(caplog.records) == 1
    with pytest.raises(KeysError, match="damaged"):
        ApiKeys(file)
    with pytest.raises(KeysError, match="damaged"):
        create(file, "other", ["predict"])
    file.unlink()
    with pytest.raises(InvalidCredentials):
        keys.principal(good)
    file.write_text(whole)
    assert keys.principal(good).name == "key:ci"


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "é" * 64},
        {"id": "0" * 15},
        {"scopes": ["Predict"]},
        {"name": "a\nb"},
        {"id": "0" * 16},
        {"name": "b"},
    ],
    ids=ascii,
)
def test_a_file_with_a_key_that_cannot_work_is_refused(tmp_path, change):
    """A key that is refused, or an error in each request, would be found much later. Of two keys with one name, `revoke` removed one."""
    file = tmp_path / "keys.json"
    for name in ("a", "b"):
        create(file, name, ["predict"])
    a, b = json.loads(file.read_text())
    file.write_text(json.dumps([{**a, **change}, {**b, "id": "0" * 16}]))
    with pytest.raises(KeysError, match=r"damaged: 0\.|two keys with the"):
        ApiKeys(file)


def test_the_command_line_creates_lists_and_revokes_keys(tmp_path):
    """Only the key goes to stdout, so that it can be piped into a secret store; messages go to stderr."""
    setting = {"CIFAR_API_KEYS_FILE": str(tmp_path / "new-folder" / "keys.json")}
    made = cifar("keys", "create", "ci", "--scopes", "predict,feedback", **setting)
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"cifar_[0-9a-f]{16}_[\w-]{43}\n", made.stdout)
    assert made.stdout.strip() not in made.stderr
    (row,) = json.loads(cifar("keys", "list", "--json", **setting).stdout)
    assert (row["name"], row["scopes"]) == ("ci", "predict,feedback")
    assert made.stdout.strip().split("_", 2)[2] not in json.dumps(row)
    for arguments, words in (
        (["create", "ci"], "There is a key ci already"),
        (["create", "two words"], "A key's name"),
        (["create", "x", "--scopes", "predict,root"], "There is no scope 'root'"),
        (["revoke", "cd"], "There is no key 'cd'; there are: ci"),
    ):
        wrong = cifar("keys", *arguments, **setting)
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert words in wrong.stderr
    assert cifar("keys", "revoke", "ci", **setting).returncode == 0
    assert json.loads(cifar("keys", "list", "--json", **setting).stdout) == []
    assert "CIFAR_API_KEYS_FILE" in cifar("keys", "list").stderr


# --- secrets ------------------------------------------------------------------------------------------------------------


def test_no_secret_and_no_key_is_logged(closed_server, key):
    """This holds for valid and refused credentials, also in the wrong header."""
    address, log = closed_server
    token = encode(claims(), SECRET, "HS256")
    for credential in (key["boss"], token, f"{key['boss']}x", f"{token[:-5]}AAAAA"):
        httpx2.get(f"{address}/docs", headers=bearer(credential))
        httpx2.get(f"{address}/docs", headers={"X-API-Key": credential})
        httpx2.post(f"{address}/predict", headers=bearer(credential), files={"image": b"no image"})
    text = log.read_text()
    assert "/predict" in text, "requests are logged"
    for secret in (SECRET, token, token.split(".")[2], *(value.split("_", 2)[2] for value in key.values())):
        assert secret not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"CIFAR_JWT_SECRET": "hunter2"}, "CIFAR_JWT_SECRET is not usable: expected at least 32 characters; got 7"),
        ({"OAUTH_CLIENT_SECRET": "hunter2"}, "OAUTH_CLIENT_SECRET is not usable: expected at least 32"),
        ({"CIFAR_TRAFFIC_SECRET": "hunter2"}, "CIFAR_TRAFFIC_SECRET is not usable: expected at least 32"),
        ({"CIFAR_JWT_SECRET_FILE": "{file}"}, "CIFAR_JWT_SECRET_FILE is not usable: expected at least 32"),
        ({"CIFAR_JWT_SECRET_FILE": "/no/such"}, "CIFAR_JWT_SECRET_FILE='/no/such' cannot be read"),
        ({"CIFAR_JWT_SECRET_FILE": "{file}", "CIFAR_JWT_SECRET": "hunter2"}, "not both"),
        ({"CIFAR_JWT_SECRET": SECRET}, "Bearer tokens need CIFAR_JWT_ISSUER and CIFAR_JWT_AUDIENCE too"),
        ({"CIFAR_JWT_ISSUER": ISSUER}, "Bearer tokens need CIFAR_JWT_SECRET or CIFAR_JWKS_URL"),
        ({"CIFAR_JWT_SECRET": SECRET, "CIFAR_JWKS_URL": "https://a.example/jwks"}, "not both"),
        ({"CIFAR_JWKS_URL": "http://a.example/jwks"}, "CIFAR_JWKS_URL='http://a.example/jwks' is not usable"),
        ({"OAUTH_CLIENT_ID": "x"}, "CIFAR_OIDC_PROVIDER_URL and CIFAR_OIDC_CLIENT_SECRET and CIFAR_PUBLIC_URL too"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_incomplete_settings_of_sign_in_end_the_start_and_show_no_secret(tmp_path, settings, words):
    """A service that was meant to be closed must not start open. The message names the setting but not its value."""
    (tmp_path / "secret").write_text("hunter2\n")
    environment = {name: value.format(file=tmp_path / "secret") for name, value in settings.items()}
    result = cifar("models", **environment)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not {"hunter2", SECRET} & set(re.split(r"[\s'\"=]", result.stdout + result.stderr))


def test_the_text_of_settings_hides_their_secrets():
    """The settings may be logged one day."""
    settings = Settings(jwt_secret=SECRET, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    assert SECRET not in repr(settings) + str(settings) + str(settings.model_dump()) + settings.model_dump_json()
    with pytest.raises(ValidationError) as wrong:
        Settings(jwt_secret="hunter2")  # noqa: S106 - too short to be one
    assert "hunter2" not in str(wrong.value)
