"""Who may reach what: every route, every trick with a path, keys, scopes, and what must not be said aloud."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from jwt import encode
from pydantic import ValidationError
from starlette.routing import Mount
from starlette.websockets import WebSocketDisconnect
from support.cli import cifar
from support.identities import AUDIENCE, ISSUER, SECRET, OneUserProvider, claims
from support.servers import running, wait_until_ready

from app import create_app
from cifar.errors import InvalidCredentials, KeysError
from cifar.serving.auth.api_keys import ApiKeys, create, read, revoke
from cifar.serving.auth.signin import SignIn
from cifar.serving.routes import ROUTES, rule_of
from cifar.settings import ROOT, Settings

CAT = ROOT / "examples" / "cat.jpg"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]
OPEN = {"/health", "/healthz", "/readyz", "/signin", "/signin/callback", "/signout"}
"""The whole of what anybody may reach. A route that joins it has to be written here, by somebody who thought about it."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A file for keys."""
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(keys) -> dict[str, str]:
    """A key of each kind, by its name."""
    scopes = {"caller": ["predict"], "critic": ["feedback"], "boss": ["predict", "feedback", "admin"]}
    return {name: create(keys, name, which) for name, which in scopes.items()}


@pytest.fixture(autouse=True)
def _keys_are_read_at_each_request(monkeypatch):
    monkeypatch.setattr("cifar.serving.auth.api_keys.RELOAD_SECONDS", 0)


@pytest.fixture(scope="module")
def closed(keys):
    """The whole app in this process, with every way to sign in."""
    settings = Settings(
        api_keys_file=keys,
        jwt_secret=SECRET,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        oidc_provider_url="http://127.0.0.1:9",
        oidc_client_id=OneUserProvider.CLIENT[0],
        oidc_client_secret=OneUserProvider.CLIENT[1],
        public_url="https://cifar.example",
    )
    with TestClient(create_app(settings), raise_server_exceptions=False, follow_redirects=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture(scope="module")
def closed_server(keys, tmp_path_factory):
    """`python app.py` behind keys and tokens; yields its address and the file of its log."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "secret").write_text(f"{SECRET}\n")
    tokens = {
        "CIFAR_JWT_SECRET_FILE": str(folder / "secret"),
        "CIFAR_JWT_ISSUER": ISSUER,
        "CIFAR_JWT_AUDIENCE": AUDIENCE,
    }
    with running(folder, CIFAR_API_KEYS_FILE=str(keys), **tokens) as server:
        yield server.address, server.log


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def every_path(app) -> set[str]:
    """The paths of all routes of an app, of what is mounted in it, and of what that includes."""
    paths = set()
    for route in getattr(app, "routes", []):
        if isinstance(route, Mount):
            inner = route.app
            while hasattr(inner, "gradio"):
                inner = inner.gradio
            paths |= {route.path + path for path in every_path(inner)}
        elif hasattr(route, "effective_route_contexts"):
            paths |= {context.path for context in route.effective_route_contexts()}
        else:
            paths.add(route.path)
    return paths


# --- the policy ---------------------------------------------------------------------------------------------------------


def test_no_route_is_reachable_without_a_caller_but_those_on_the_list(closed):
    """Every route of ours and of Gradio's, with every method: 401, or it is on the list above."""
    paths = every_path(closed.app)
    assert {"/predict", "/metrics", "/docs", "/openapi.json", "/", "/config", "/gradio_api/upload"} <= paths
    assert len(paths) > 80, "the walk finds Gradio's routes"
    reachable = set()
    for path in paths:
        address = re.sub(r"\{[^}]*\}", "x", path)
        for method in METHODS:
            answer = closed.request(method, address)
            if answer.headers.get("WWW-Authenticate") != 'Bearer realm="CIFAR Space"':
                reachable.add(path)
            else:
                assert answer.status_code == 401
                assert method == "HEAD" or answer.json()["code"] == "not_signed_in"
    assert reachable == OPEN


def test_the_table_of_routes_says_what_this_list_says():
    """The policy, read aloud: change it here and there, or not at all."""
    assert {path: rule_of(path).scope for path in sorted(OPEN)} == {
        "/health": "open to all",
        "/healthz": "open to all",
        "/readyz": "open to all",
        "/signin": "open to all where people can sign in to the page",
        "/signin/callback": "open to all where people can sign in to the page",
        "/signout": "open to all where people can sign in to the page",
    }
    for path in ("/predict", "/v1/models/cifar_classifier:predict", "/gradio_api/queue/join", "/gradio_api/mcp/"):
        assert rule_of(path).scope == "predict"
    assert rule_of("/feedback").scope == rule_of("/feedback/1").scope == "feedback"
    assert rule_of("/admin").scope == rule_of("/admin/versions/2").scope == "admin"
    for path in ("/", "/docs", "/metrics", "/config", "/healthy", "/health/", "/health\n", "/signing", "", "/new"):
        assert rule_of(path).scope == "any caller"


def test_every_route_of_the_app_stands_in_the_table(closed):
    """A route that is added must be given a scope, a rate limit and a label."""
    own = [route for route in closed.app.routes if not isinstance(route, Mount)]
    assert len(own) > 20
    assert {route.path_format for route in own} - {rule.path for rule in ROUTES} == set()


def test_a_line_feed_behind_a_path_does_not_lead_around_its_scope(closed, key):
    """Starlette's router accepts `/explain%0A` as `/explain`; it needs the same scope."""
    for path, name in (("/explain", "critic"), ("/predict", "critic"), ("/feedback", "caller"), ("/admin/models", "caller")):
        answer = closed.post(f"{path}%0A", files={"image": CAT.read_bytes()}, headers=bearer(key[name]))
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), path


def test_each_route_asks_for_its_scope(closed, key):
    """A key for feedback does not predict, and a key for predictions does not administrate."""
    for path, allowed in (
        ("/feedback", {"critic", "boss"}),
        ("/admin/x", {"boss"}),
        ("/gradio_api/info", {"caller", "boss"}),
    ):
        for name in key:
            answer = closed.get(path, headers=bearer(key[name]))
            assert (answer.status_code != 403) == (name in allowed), (path, name)
            if name not in allowed:
                assert answer.json()["code"] == "missing_scope"
    answer = closed.post("/predict", files={"image": CAT.read_bytes()}, headers=bearer(key["critic"]))
    assert answer.status_code == 403
    assert answer.json()["error"] == "This needs the scope predict; key:critic has feedback."
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/config"):
        assert closed.get(path, headers=bearer(key["critic"])).status_code == 200


@pytest.mark.slow
def test_without_a_setting_nothing_asks_and_nothing_is_loaded():
    """Off is off: no middleware in the chain, no library in the process."""
    code = (
        "import sys; from app import create_app; from cifar.settings import Settings; app = create_app(Settings())\n"
        "names, part = [], app.front\n"
        "while hasattr(part, 'app'): names.append(type(part).__name__); part = part.app\n"
        "print(names, [name for name in ('jwt', 'authlib', 'itsdangerous') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    chain = ["RequestId", "Observe", "SecurityHeaders", "CORSMiddleware", "VisitorCookie", "RateLimit", "BodyLimit"]
    assert result.stdout.strip() == f"{chain} []"


def chain_of(part):
    """The middlewares of the front, outermost first."""
    while hasattr(part, "app"):
        yield part
        part = part.app


def test_the_caller_is_noted_for_who_comes_after(keys, key):
    """Rate limits go by this name, which no caller can choose."""
    seen = []
    api = create_app(Settings(api_keys_file=keys, jwt_secret=SECRET, jwt_issuer=ISSUER, jwt_audience=AUDIENCE))
    guard = next(part for part in chain_of(api.front) if isinstance(part, SignIn))
    inner = guard.app

    async def note(scope, receive, send):
        seen.append(scope["state"].get("principal"))
        await inner(scope, receive, send)

    guard.app = note
    with TestClient(api) as client:
        client.get("/docs", headers=bearer(key["caller"]))
        client.get("/docs", headers=bearer(encode(claims(sub="key:caller"), SECRET, "HS256")))
        client.get("/health", headers={"X-API-Key": "anything"})
    assert [caller and caller.name for caller in seen] == ["key:caller", "jwt:key:caller", None]
    assert seen[0].scopes == {"predict"}


def test_openapi_says_how_to_sign_in_only_where_one_must(closed, api, key):
    """Generated clients know both headers; without sign-in they are not asked for a key."""
    described = closed.get("/openapi.json", headers=bearer(key["boss"])).json()
    assert described["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    assert {"401", "403"} <= described["paths"]["/predict"]["post"]["responses"].keys()
    assert "security" not in described["paths"]["/health"]["get"]
    assert "securitySchemes" not in api.get("/openapi.json").json()["components"]


# --- tricks -------------------------------------------------------------------------------------------------------------

TRICKS = [
    "//predict", "///predict", "/predict/", "/predict//", "/./predict", "/%70redict", "/%2570redict", "/predict%20", "/predict%00",
    "/predict;x=1", "/predict%3bx", "/PREDICT", "/predict?x=/health", "/predict%3f/health", "/predict%23/health", "/predict/../predict",
    "/..;/predict", "/health/../predict", "/health/..;/predict", "/health/%2e%2e/predict", "/health%2f..%2fpredict",
    "/healthz%2f%2e%2e%2fdocs", "/health;/../docs", "/health/", "/health%00", "/health%0a", "/health%0d%0a", "/HEALTH", "//health",
    "/health/x", "/signin/../docs", "/signin/x", "/signin%2f..%2fmetrics", "/gradio_api/../predict", "/gradio_api/..%2fpredict",
    "/gradio_api//info", "/gradio_api/info/", "/gradio_api%2finfo", "/gradio_api/health", "\\predict", "/\\predict", "/docs/",
    "/docs;/health", "/metrics/", "/metrics%2f", "/%6detrics", "/config/", "/static/../config", "/assets/..%2f..%2fconfig",
    "http://127.0.0.1/predict", "http://health/predict", "http://127.0.0.1/health/../docs", "/gradio_api/queue/join/", "*", "",
]  # fmt: skip


def speak(address: str, method: str, target: str, headers: str = "") -> tuple[int, str]:
    """One request as these very bytes, which no client library would send."""
    host, port = address.removeprefix("http://").split(":")
    image = CAT.read_bytes() if method == "POST" else b""
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/jpeg\r\n{headers}"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image)
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1")
    return int(answer.split(" ", 2)[1]), answer


@pytest.mark.parametrize("target", TRICKS)
def test_no_spelling_of_a_path_goes_around_the_sign_in(closed_server, key, target):
    """What is not on the list is 401 for a stranger, and never an answer of the model's for a key without the scope."""
    for method in ("GET", "POST", "OPTIONS", "HEAD", "PUT"):
        status, answer = speak(closed_server[0], method, target)
        assert status in {400, 401}, (method, target, answer)
        assert '"predicted_class":' not in answer
        status, answer = speak(closed_server[0], method, target, f"X-API-Key: {key['critic']}\r\n")
        assert '"predicted_class":' not in answer, (method, target)
        assert "cifar_images_total" not in answer or "metrics" in target.replace("%6d", "m")


@pytest.mark.parametrize(
    "header",
    [
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Forwarded-Prefix",
        "X-HTTP-Method-Override",
        "X-Cifar-Forwarded",
        "Forwarded",
    ],
)
def test_no_header_turns_one_route_into_another(closed_server, header):
    """What proxies and frameworks elsewhere believe, nobody believes here."""
    for value in ("/health", "GET", "1", "for=127.0.0.1"):
        status, answer = speak(closed_server[0], "POST", "/predict", f"{header}: {value}\r\n")
        assert status == 401, answer


def test_a_websocket_needs_a_caller_too(closed):
    """There is none today; the first one that somebody adds is not open."""
    with pytest.raises(WebSocketDisconnect) as refused, closed.websocket_connect("/gradio_api/ws"):
        pass
    assert refused.value.code == 1008


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer {good}"), ("Authorization", "Bearer {good}")],
        [("X-API-Key", "{good}"), ("X-API-Key", "{good}")],
        [("X-API-Key", "wrong"), ("Authorization", "Bearer {good}")],
        [("X-API-Key", ""), ("Authorization", "Bearer {good}")],
        [("Authorization", "Bearer {good}x")],
        [("Authorization", "Bearer {other}")],
        [("X-API-Key", "{other}")],
        [("X-API-Key", "{mixed}")],
        [("Authorization", "Bearer x{good}")],
        [("Authorization", "Bearer {upper}")],
        [("Authorization", "Bearer")],
        [("Authorization", "{good}")],
        [("Authorization", "Basic {good}")],
        [("Authorization", "Bearer {good},{good}")],
        [("X-API-Key", "Bearer {good}")],
        [("Cookie", "__Host-cifar_session={good}")],
        [("X-HF-Authorization", "Bearer {good}")],
    ],
    ids=str,
)  # fmt: skip
def test_a_key_counts_only_whole_and_only_once(closed, key, headers):
    """Two of them are a mistake or an attack, and a wrong one is not saved by a right one."""
    good = key["boss"]
    start, secret = good[:23], good[23:]
    wrong = {
        "upper": good.upper(),
        "other": start + ("B" if secret[0] == "A" else "A") + secret[1:],
        "mixed": start + key["critic"][23:],
    }
    sent = [(name, value.format(good=good, **wrong)) for name, value in headers]
    answer = closed.get("/docs", headers=sent)
    assert answer.status_code == 401
    assert good not in answer.text


def test_another_sites_page_may_ask_with_a_key_where_its_origin_is_listed(keys):
    """The browser's question before the request needs no key; the request does."""
    settings = Settings(api_keys_file=keys, cors_origins=["https://a.example"])
    with TestClient(create_app(settings)) as client:
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        answer = client.options("/predict", headers={**asked, "Access-Control-Request-Headers": "authorization"})
        assert answer.status_code == 200
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
        refused = client.post("/predict", headers={"Origin": "https://a.example"})
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "https://a.example", "so that the page can read why"


# --- keys ---------------------------------------------------------------------------------------------------------------


def test_a_key_works_by_either_header_until_it_is_revoked(closed_server, keys):
    """Made and revoked while the server runs, which notices within the named time."""
    address = closed_server[0]
    new = create(keys, "short-lived", ["predict"])

    def status(headers: dict[str, str]) -> int:
        return httpx2.post(f"{address}/predict", files={"image": CAT.read_bytes()}, headers=headers).status_code

    def becomes(expected: int) -> bool:
        for _ in range(100):
            if status(bearer(new)) == expected:
                return True
            subprocess.run(["sleep", "0.1"], check=True)
        return False

    assert becomes(200)
    assert status({"X-API-Key": new}) == 200
    revoke(keys, "short-lived")
    assert becomes(401)
    assert status({"X-API-Key": new}) == 401


def test_gradio_client_works_with_a_key_and_not_without(closed_server, key):
    """Its configuration, its uploads and its streams all carry the header."""
    client = Client(closed_server[0], headers=bearer(key["caller"]), verbose=False)
    assert client.predict(handle_file(CAT), top_k=2, api_name="/predict")["predicted_class"] == "cat"
    by_header = Client(closed_server[0], headers={"X-API-Key": key["caller"]}, verbose=False)
    assert by_header.predict(handle_file(CAT), api_name="/predict")["predicted_class"] == "cat"
    with pytest.raises(Exception, match="credentials were not provided"):
        Client(closed_server[0], verbose=False)


def test_the_file_of_keys_holds_no_key_and_is_its_owners_alone(keys, key):
    """Who reads a backup of it cannot call; who shares the machine cannot read it."""
    text = keys.read_text()
    for secret in key.values():
        assert secret not in text
        assert secret.split("_", 2)[2] not in text
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600


def test_keys_made_at_the_same_time_are_all_kept(tmp_path):
    """Twenty writers, one file: none overwrites another's key, nor brings back one that was revoked."""
    file = tmp_path / "keys.json"
    create(file, "gone", ["predict"])
    with ThreadPoolExecutor(20) as pool:
        made = [pool.submit(create, file, f"key-{i}", ["predict"]) for i in range(20)]
        revoke(file, "gone")
        assert len({future.result() for future in made}) == 20
    assert sorted(entry.name for entry in read(file)) == sorted(f"key-{i}" for i in range(20))


def test_a_damaged_file_of_keys_neither_opens_nor_closes_the_service(tmp_path, caplog):
    """The keys of before stay in force, one line says so; a file that is gone is no key at all; at start it is an error."""
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


def test_the_command_line_makes_lists_and_revokes_keys(tmp_path):
    """The key goes to stdout, once, so that it can be piped to where secrets are kept; words go to stderr."""
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


def test_no_secret_and_no_key_is_ever_logged(closed_server, key):
    """Good ones and refused ones, in headers and where they do not belong: none is in the log of the server."""
    address, log = closed_server
    token = encode(claims(), SECRET, "HS256")
    for credential in (key["boss"], token, f"{key['boss']}x", f"{token[:-5]}AAAAA"):
        httpx2.get(f"{address}/docs", headers=bearer(credential))
        httpx2.get(f"{address}/docs", headers={"X-API-Key": credential})
        httpx2.post(f"{address}/predict", headers=bearer(credential), files={"image": b"no image"})
    text = log.read_text()
    assert "/predict" in text, "requests are logged"
    for secret in (
        SECRET,
        token,
        token.split(".")[2],
        *key.values(),
        *(value.split("_", 2)[2] for value in key.values()),
    ):
        assert secret not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"CIFAR_JWT_SECRET": "hunter2"}, "CIFAR_JWT_SECRET is not usable: expected at least 32 characters; got 7"),
        ({"OAUTH_CLIENT_SECRET": "hunter2"}, "OAUTH_CLIENT_SECRET is not usable: expected at least 32"),
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
def test_half_a_sign_in_does_not_start_and_says_no_secret(tmp_path, settings, words):
    """A service that was to be closed never starts open; the sentence names the setting and not its content."""
    (tmp_path / "secret").write_text("hunter2\n")
    environment = {name: value.format(file=tmp_path / "secret") for name, value in settings.items()}
    result = cifar("models", **environment)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not {"hunter2", SECRET} & set(re.split(r"[\s'\"=]", result.stdout + result.stderr))


def test_settings_do_not_show_their_secrets():
    """Somebody logs the settings one day."""
    settings = Settings(jwt_secret=SECRET, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    assert SECRET not in repr(settings) + str(settings) + str(settings.model_dump()) + settings.model_dump_json()
    with pytest.raises(ValidationError) as wrong:
        Settings(jwt_secret="hunter2")  # noqa: S106 - too short to be one
    assert "hunter2" not in str(wrong.value)


# --- several workers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sessions_across_workers_work_for_callers_and_for_nobody_else(keys, key, tmp_path):
    """A request that one worker passes on to another is checked by both; who has no key gets to neither."""
    with running(tmp_path, workers=3, CIFAR_API_KEYS_FILE=str(keys)) as server:

        def run(_: int) -> int:
            client = Client(server.address, headers=bearer(key["caller"]), verbose=False)
            answers = [client.predict(handle_file(CAT), api_name="/predict") for _ in range(5)]
            return sum(answer["predicted_class"] == "cat" for answer in answers)

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(run, range(4))) == 20
        for i in range(12):  # whichever worker the session belongs to
            refused = httpx2.get(f"{server.address}/gradio_api/queue/data", params={"session_hash": f"abc{i}"})
            assert refused.status_code == 401
        call = f"{server.address}/gradio_api/call/predict"
        for _ in range(6):
            files = {"files": ("cat.jpg", CAT.read_bytes())}
            (path,) = httpx2.post(
                f"{server.address}/gradio_api/upload", files=files, headers=bearer(key["caller"])
            ).json()
            data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 1, None]}
            event = httpx2.post(call, json=data, headers=bearer(key["caller"])).json()["event_id"]
            assert httpx2.get(f"{call}/{event}").status_code == 401
            assert '"cat"' in httpx2.get(f"{call}/{event}", headers=bearer(key["caller"]), timeout=30).text
