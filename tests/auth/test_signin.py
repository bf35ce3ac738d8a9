"""Sign-in: every route, every spelling of a path, and the scopes that they need."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from jwt import encode
from starlette.routing import Mount
from starlette.websockets import WebSocketDisconnect
from support.identities import AUDIENCE, ISSUER, SECRET, bearer, claims
from support.servers import running

from app import create_app
from cifar.serving.auth.signin import SignIn
from cifar.serving.routes import ROUTES, rule_of
from cifar.settings import ROOT, Settings

CAT = ROOT / "examples" / "cat.jpg"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]
OPEN = {
    "/health",
    "/healthz",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
    "/signin",
    "/signin/callback",
    "/signout",
}
"""All routes that need no caller. A route that is opened must be added here too, on purpose."""


def every_path(app) -> set[str]:
    """Return the paths of all routes of an app, including mounted apps and their routers."""
    paths = set()
    for route in getattr(app, "routes", []):
        if isinstance(route, Mount):
            inner = route.app
            while wrapped := getattr(inner, "gradio", None) or getattr(inner, "app", None):
                if hasattr(inner, "routes"):
                    break
                inner = wrapped
            paths |= {route.path + path for path in every_path(inner)}
        elif hasattr(route, "effective_route_contexts"):
            paths |= {context.path for context in route.effective_route_contexts()}
        else:
            paths.add(route.path)
    return paths


# --- the policy ---------------------------------------------------------------------------------------------------------


def test_without_a_caller_only_the_listed_routes_are_reachable(closed):
    """Every route of ours and of Gradio's answers 401 to every method, unless it is in the list above."""
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


def test_the_table_of_routes_gives_each_path_the_scope_of_this_list():
    """A change of a scope in the table must be repeated here, so that it is never made by accident."""
    assert {path: rule_of(path).scope for path in sorted(OPEN)} == {
        "/health": "open to all",
        "/healthz": "open to all",
        "/readyz": "open to all",
        "/v2/health/live": "open to all",
        "/v2/health/ready": "open to all",
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
    caller, critic = key["caller"], key["critic"]
    for path, other in (("/explain", critic), ("/predict", critic), ("/feedback", caller), ("/admin/models", caller)):
        answer = closed.post(f"{path}%0A", files={"image": CAT.read_bytes()}, headers=bearer(other))
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), path


def test_a_key_reaches_only_the_routes_of_its_scopes(closed, key):
    """A key for feedback cannot predict, and a key for predictions cannot administrate."""
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
def test_without_a_setting_there_is_no_sign_in_and_no_library_of_it():
    """The middleware is not installed, and its libraries are not imported."""
    code = (
        "import sys; from app import create_app; from cifar.settings import Settings; app = create_app(Settings())\n"
        "names, part = [], app.front\n"
        "while hasattr(part, 'app'): names.append(type(part).__name__); part = part.app\n"
        "print(names, [name for name in ('jwt', 'authlib', 'itsdangerous') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    chain = ["Observe", "LastResort", "Head", "CrossOrigin", "VisitorCookie", "BodyLimit"]
    assert result.stdout.strip() == f"{chain} []"


def chain_of(part):
    """Yield the middleware, outermost first."""
    while hasattr(part, "app"):
        yield part
        part = part.app


def test_the_principal_is_passed_on_to_the_inner_middleware(keys, key):
    """Rate limits use its name, which no caller can choose."""
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


def test_the_log_names_the_caller_of_each_request_refused_ones_included(closed, key, caplog):
    """A 401, 403 or 429 that nobody can be asked about helps no operator. The secret of a key is never logged."""
    caplog.set_level(logging.INFO, "cifar.access")
    gone = f"cifar_{'ab' * 8}_{'s' * 43}"
    sent = {
        "key:critic": {"X-API-Key": key["critic"]},
        "jwt:ann": bearer(encode(claims(sub="ann", scope="feedback"), SECRET)),
        f"unknown key {'ab' * 8}": bearer(gone),
        "anonymous": bearer("nonsense"),
    }
    statuses = [closed.post("/predict", headers=headers).status_code for headers in sent.values()]
    assert statuses == [403, 403, 401, 401]
    assert [record.caller for record in caplog.records if record.name == "cifar.access"] == list(sent)
    assert all(
        record.getMessage().endswith(f" by {record.caller}")
        for record in caplog.records
        if record.name == "cifar.access"
    )
    assert "s" * 43 not in caplog.text


def test_openapi_describes_sign_in_only_when_it_is_needed(closed, api, key):
    """Generated clients support both headers. Without sign-in they require no key."""
    described = closed.get("/openapi.json", headers=bearer(key["boss"])).json()
    assert described["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    assert {"401", "403"} <= described["paths"]["/predict"]["post"]["responses"].keys()
    assert "security" not in described["paths"]["/health"]["get"]
    assert "securitySchemes" not in api.get("/openapi.json").json()["components"]


# --- spellings of paths and headers -------------------------------------------------------------------------------------------------------------

SPELLINGS = [
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
    """Send one request exactly as written, which a client library would not."""
    host, port = address.removeprefix("http://").split(":")
    image = CAT.read_bytes() if method == "POST" else b""
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/jpeg\r\n{headers}"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image)
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1")
    return int(answer.split(" ", 2)[1]), answer


@pytest.mark.parametrize("target", SPELLINGS)
def test_no_spelling_of_a_path_avoids_the_sign_in(closed_server, key, target):
    """Without a key the answer is 401, and with a key without the scope it is never a prediction."""
    for method in ("GET", "POST", "OPTIONS", "HEAD", "PUT"):
        status, answer = speak(closed_server[0], method, target)
        assert status in {400, 401}, (method, target, answer)
        assert '"predicted_class":' not in answer
        status, answer = speak(closed_server[0], method, target, f"X-API-Key: {key['critic']}\r\n")
        assert '"predicted_class":' not in answer, (method, target)
        assert "cifar_images_total" not in answer or "metrics" in target.replace("%6d", "m")


@pytest.mark.parametrize(
    "header", ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-HTTP-Method-Override", "X-Cifar-Forwarded", "Forwarded"]
)  # fmt: skip
def test_no_header_changes_the_route_of_a_request(closed_server, header):
    """Some proxies and frameworks evaluate these headers; this server ignores them."""
    for value in ("/health", "GET", "1", "for=127.0.0.1"):
        status, answer = speak(closed_server[0], "POST", "/predict", f"{header}: {value}\r\n")
        assert status == 401, answer


def test_a_websocket_needs_a_caller_too(closed):
    """There is no WebSocket route today. One that is added is closed by default."""
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
def test_a_key_must_be_complete_and_sent_only_once(closed, key, headers):
    """Two credentials are a mistake or an attack: a wrong one is refused even beside a right one."""
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


def test_a_listed_origin_may_send_requests_with_a_key(keys):
    """The browser's preflight request needs no key; the request itself does."""
    settings = Settings(api_keys_file=keys, cors_origins=["https://a.example"])
    with TestClient(create_app(settings)) as client:
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        answer = client.options("/predict", headers={**asked, "Access-Control-Request-Headers": "authorization"})
        assert answer.status_code == 200
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
        refused = client.post("/predict", headers={"Origin": "https://a.example"})
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "https://a.example", "so that the page can read why"


# --- several workers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradio_sessions_across_workers_need_a_key_too(keys, key, tmp_path):
    """A request that one worker forwards to another is checked by both."""
    caller = bearer(key["caller"])
    with running(tmp_path, workers=3, CIFAR_API_KEYS_FILE=str(keys)) as server:

        def run(_: int) -> int:
            client = Client(server.address, headers=caller, verbose=False)
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
            (path,) = httpx2.post(f"{server.address}/gradio_api/upload", files=files, headers=caller).json()
            data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 1, None]}
            event = httpx2.post(call, json=data, headers=caller).json()["event_id"]
            assert httpx2.get(f"{call}/{event}").status_code == 401
            assert '"cat"' in httpx2.get(f"{call}/{event}", headers=caller, timeout=30).text
