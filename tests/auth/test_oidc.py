"""Sign-in to the page at a provider, and attempts to tamper with each step of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from itsdangerous import TimestampSigner
from playwright.sync_api import expect, sync_playwright
from support.identities import EC_KEY, ISSUER, OneUserProvider, public, serving
from support.servers import free_port, need, running, wait_until_ready

from app import create_app
from cifar.serving.auth.oidc import own_path
from cifar.settings import ROOT, Settings

BROWSER = {"Accept": "text/html,application/xhtml+xml", "Sec-Fetch-Mode": "navigate"}
COOKIE = "cifar_session"

pytestmark = pytest.mark.slow  # nearly every test starts an app of its own


@pytest.fixture(scope="module")
def provider() -> Iterator[OneUserProvider]:
    """One provider for all tests."""
    provider = OneUserProvider()
    with serving(provider) as address:
        provider.address = address
        yield provider


def settings_for(provider: OneUserProvider, **others: object) -> Settings:
    named = {
        "oidc_provider_url": provider.address,
        "oidc_client_id": provider.CLIENT[0],
        "oidc_client_secret": provider.CLIENT[1],
        "public_url": "http://localhost",
    }
    return Settings(**{**named, **others})


@pytest.fixture(scope="module")
def app(provider):
    return create_app(settings_for(provider))


def visit(app: FastAPI, address: str = "http://localhost") -> TestClient:
    return TestClient(app, base_url=address, follow_redirects=False, raise_server_exceptions=False)


@pytest.fixture
def browser(app, provider) -> Iterator[TestClient]:
    """A browser without cookies that does not follow redirects."""
    provider.lies, provider.status, provider.keys = {}, 200, provider.keys[:1]
    with visit(app) as client:
        wait_until_ready(client)
        client.headers.update(BROWSER)
        yield client


def to_provider(browser: TestClient, path: str = "/signin") -> str:
    """Start a sign-in. Return the address to which the provider redirects the browser."""
    answer = browser.get(path)
    assert answer.status_code == 303, answer.text
    return httpx2.get(answer.headers["Location"]).headers["Location"].removeprefix("http://localhost")


def sign_in(browser: TestClient, target: str = "/") -> httpx2.Response:
    return browser.get(to_provider(browser, f"/signin?next={target}"))


def is_signed_in(browser: TestClient) -> bool:
    return browser.get("/config").status_code == 200


def test_after_the_sign_in_a_person_sees_the_page_that_they_opened(browser):
    """The browser goes to the provider and back. The page and its calls work with the session, and not without."""
    target = "/?__theme=dark&a=%2Fb"
    answer = browser.get(target)
    assert answer.status_code == 303
    answer = browser.get(to_provider(browser, answer.headers["Location"]))
    assert answer.status_code == 303
    assert answer.headers["Location"] == target
    assert is_signed_in(browser)
    assert "<gradio-app" in browser.get("/").text
    image = (ROOT / "examples" / "cat.jpg").read_bytes()
    assert browser.post("/predict", files={"image": image}).json()["predicted_class"] == "cat"
    assert browser.get("/admin/x").status_code == 403, "people have the scopes of CIFAR_OIDC_SCOPES"
    browser.cookies.clear()
    assert not is_signed_in(browser)


def test_only_browsers_that_open_a_page_are_redirected_to_the_provider(browser):
    """Programs get 401 as JSON, and so do scripts of a page whose session has ended."""
    for method, accept in (("GET", "application/json"), ("GET", "*/*"), ("POST", BROWSER["Accept"])):
        answer = browser.request(method, "/", headers={"Accept": accept})
        assert answer.status_code == 401
        assert answer.json()["code"] == "not_signed_in"
    refused = browser.get("/", headers={"Authorization": "Bearer x"})
    assert refused.status_code == 401, "a wrong key is answered 401, not redirected"


def test_the_request_to_the_provider_is_bound_to_this_browser(browser):
    """State, nonce and PKCE challenge are long and new each time, and the client's secret is not sent."""
    asked = [parse_qs(urlsplit(browser.get("/signin").headers["Location"]).query) for _ in range(2)]
    for query in asked:
        assert query["code_challenge_method"] == ["S256"]
        assert query["redirect_uri"] == ["http://localhost/signin/callback"]
        assert query["scope"] == ["openid profile"]
        assert OneUserProvider.CLIENT[1] not in str(query)
    for name in ("state", "nonce", "code_challenge"):
        values = [query[name][0] for query in asked]
        assert len(set(values)) == 2
        assert min(map(len, values)) >= 43


def test_an_answer_of_the_provider_is_valid_once_and_in_one_browser(browser, app):
    """The address of the callback is useless when it is stolen or repeated."""
    callback = to_provider(browser)
    with visit(app) as thief:
        assert thief.get(callback).json()["code"] == "sign_in_failed"
        to_provider(thief)
        assert thief.get(callback).status_code == 401, "another sign-in of the thief does not help"
        assert not is_signed_in(thief)
    assert browser.get(callback).status_code == 303
    assert is_signed_in(browser)
    browser.post("/signout")
    assert browser.get(callback).status_code == 401
    assert not is_signed_in(browser)


@pytest.mark.parametrize(
    "change",
    [
        lambda address: address.replace("state=", "state=x"),
        lambda address: address.partition("&state")[0],
        lambda address: address.replace("code=", "code=x"),
        lambda address: "/signin/callback?" + address.partition("&")[2],
        lambda address: address + "&error=access_denied",
        lambda address: address.partition("?")[0],
    ],
)
def test_a_changed_callback_starts_no_session(browser, change):
    """A wrong or missing state or code, or an error, is answered 401 with a link to try again."""
    answer = browser.get(change(to_provider(browser)))
    assert answer.status_code == 401
    assert '<a href="../signin">Try again</a>' in answer.text
    assert not is_signed_in(browser)


@pytest.mark.parametrize(
    "lies",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"iss": ISSUER},
        {"aud": "another-service"},
        {"aud": ["another-service", "cifar-space"], "azp": "another-service"},
        {"exp": 1},
        {"exp": None},
        {"sub": None},
        {"sub": ""},
    ],
    ids=str,
)
def test_an_id_token_for_another_sign_in_starts_no_session(browser, provider, lies):
    """Issuer, audience, expiry, subject and nonce are checked."""
    provider.lies = lies
    callback = to_provider(browser)
    assert browser.get(callback).status_code == 401
    assert "was not started in this browser" in browser.get(callback).text, "there is one attempt"
    assert not is_signed_in(browser)


def test_an_id_token_signed_with_another_key_starts_no_session(provider):
    """The id of a key is not enough; the signature must fit the provider's key."""
    provider.keys = [public(EC_KEY, "first")]
    try:
        with visit(create_app(settings_for(provider))) as new:
            assert sign_in(new).json()["code"] == "sign_in_failed"
            assert not is_signed_in(new)
    finally:
        provider.keys = [OneUserProvider().keys[0]]


@pytest.mark.parametrize(
    "target",
    ["https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example", "javascript:alert(1)",
     "/%0d%0aSet-Cookie:x", "evil.example", "", "/" + "a" * 600, "http:evil.example", "/\n/evil.example", " /x", "/x y"],
)  # fmt: skip
def test_the_sign_in_never_redirects_to_another_site(browser, target):
    """A link to the sign-in must not end on another site's page."""
    answer = browser.get("/signin", params={"next": target})
    callback = httpx2.get(answer.headers["Location"]).headers["Location"].removeprefix("http://localhost")
    location = browser.get(callback).headers["Location"]
    assert location == own_path(target)
    assert location in {"/", "/%0d%0aSet-Cookie:x"}
    assert own_path("/docs?a=b") == "/docs?a=b"


def test_the_cookie_is_signed_and_scripts_cannot_read_it(browser, provider):
    """It is HttpOnly and SameSite=Lax, and with https Secure and bound to the host. A changed cookie is no session."""
    cookie = sign_in(browser).headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "path=/" in cookie
    assert "secure" not in cookie
    mine = browser.cookies[COOKIE]
    forged = base64.b64encode(json.dumps({"subject": "root"}).encode())
    for content in (
        mine[:-3] + "AAA",
        forged.decode() + "." + mine.split(".", 1)[1],
        TimestampSigner("guess").sign(forged).decode(),
        TimestampSigner(provider.CLIENT[1]).sign(forged).decode(),
        forged.decode(),
    ):
        browser.cookies.clear()
        browser.cookies.set(COOKIE, content)
        assert not is_signed_in(browser), content
    public_https = settings_for(provider, public_url="https://cifar.example")
    with visit(create_app(public_https), "https://cifar.example") as client:
        cookie = client.get("/signin").headers["Set-Cookie"]
    assert cookie.startswith("__Host-cifar_session=")
    assert "; secure" in cookie.lower()


def test_a_session_ends_after_the_seconds_of_the_setting(provider, monkeypatch):
    """The signature holds the time; a session older than the setting is not accepted."""
    with visit(create_app(settings_for(provider, session_seconds=60))) as client:
        began, age = int(time.time()), 0
        monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _: began + age)
        sign_in(client)
        for age, valid in ((0, True), (59, True), (62, False)):
            assert is_signed_in(client) is valid, age


def test_the_page_of_another_site_cannot_use_a_session(browser):
    """Browsers name the site of a request, and without https its origin. A POST from another site has no session, even with its cookie."""
    sign_in(browser)
    image = {"image": (ROOT / "examples" / "cat.jpg").read_bytes()}
    for name, value, status in (
        ("Sec-Fetch-Site", "same-origin", 200),
        ("Sec-Fetch-Site", "none", 200),
        ("Sec-Fetch-Site", "cross-site", 401),
        ("Sec-Fetch-Site", "same-site", 401),
        ("Origin", "http://localhost", 200),
        ("Origin", "http://localhost:8080", 401),
        ("Origin", "null", 401),
    ):
        assert browser.post("/predict", files=image, headers={name: value}).status_code == status, value


def test_signing_out_ends_the_session_after_a_confirmation(browser, provider):
    """A link alone does not sign out. The page that asks shows the name of the person, escaped, whatever it contains."""
    provider.lies = {"preferred_username": "Alice <a>\ud800"}
    sign_in(browser)
    provider.lies = {}
    asked = browser.get("/signout")
    assert "Signed in as Alice &lt;a&gt;?" in asked.text
    assert is_signed_in(browser)
    assert "You are signed out" in browser.post("/signout").text
    assert not is_signed_in(browser)
    assert "You are signed out" in browser.get("/signout").text


def test_many_unfinished_sign_ins_do_not_exceed_the_size_of_a_cookie(browser):
    """Browsers drop a cookie larger than 4 kB, and nginx used to answer 503. The latest sign-ins can still be finished."""
    for target in ("a" * 505, '"' * 250, '"' * 505) * 10:
        callback = to_provider(browser, f"/signin?next=/{target}")
        assert len(browser.cookies[COOKIE]) < 3500, "with the label and the subject of a session it has 4 kB"
    assert browser.get(callback).status_code == 303


def test_in_a_frame_the_sign_in_offers_a_new_window(browser):
    """Spaces show the page in a frame, and providers refuse to appear there."""
    answer = browser.get("/signin", headers={"Sec-Fetch-Dest": "iframe"})
    assert 'href="http://localhost/signin" target="_blank"' in answer.text


def test_a_provider_that_is_down_is_called_again_after_a_while(provider, monkeypatch):
    """Sign-in is answered 503. After a few failures the circuit opens, and `/readyz` names the provider."""
    provider.status = 500
    asked = provider.asked.get("/.well-known/openid-configuration", 0)
    settings = settings_for(provider)
    monkeypatch.setattr("cifar.dependency.MAX_FAILURES", 2)
    monkeypatch.setattr("cifar.dependency.RECOVERY_SECONDS", 1)
    try:
        with visit(create_app(settings)) as client:
            for _ in range(10):
                answer = client.get("/signin")
                assert answer.status_code == 503
                assert answer.json()["code"] == "sign_in_unavailable"
            assert provider.asked["/.well-known/openid-configuration"] == asked + 2
            wait_until_ready(client)
            assert client.get("/readyz").json()["without"] == ["oidc"]
            provider.status = 200
            for _ in range(50):
                if client.get("/signin").status_code == 303:
                    break
                time.sleep(0.1)
            assert sign_in(client).status_code == 303
            assert client.get("/readyz").json()["without"] == []
    finally:
        provider.status = 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "https://another.example"},
        {"issuer": 5},
        {"authorization_endpoint": None},
        {"token_endpoint_auth_methods_supported": None},
    ],
    ids=str,
)
def test_a_wrong_discovery_document_is_refused_and_asked_for_again(provider, monkeypatch, wrong):
    """It decides whose signatures are accepted and where the client's secret is sent. Kept, a damaged one was a 500 until a restart."""
    with visit(create_app(settings_for(provider))) as new:
        with monkeypatch.context() as patched:
            patched.setattr(provider, "described", wrong)
            assert new.get("/signin").json()["code"] == "sign_in_unavailable"
        assert new.get("/signin").status_code == 303


def test_the_variables_of_spaces_suffice_for_sign_in(monkeypatch):
    """Hugging Face sets them for a Space with `hf_oauth: true`."""
    for name, value in {
        "OAUTH_CLIENT_ID": "id",
        "OAUTH_CLIENT_SECRET": "s" * 36,
        "OPENID_PROVIDER_URL": "https://huggingface.co",
        "SPACE_HOST": "someone-cifar.hf.space",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.requires_sign_in
    assert settings.page_url == "https://someone-cifar.hf.space"


def test_every_worker_accepts_a_session(provider, tmp_path):
    """A sign-in can start at one worker and finish at another. Each request uses a new connection."""
    provider.lies, provider.status, provider.keys = {}, 200, [OneUserProvider().keys[0]]
    environment = {
        "CIFAR_PUBLIC_URL": "http://localhost",
        "CIFAR_OIDC_PROVIDER_URL": provider.address,
        "CIFAR_OIDC_CLIENT_ID": provider.CLIENT[0],
        "CIFAR_OIDC_CLIENT_SECRET": provider.CLIENT[1],
    }
    with running(tmp_path, workers=3, **environment) as server:
        for _ in range(6):
            started = httpx2.get(f"{server.address}/signin")
            cookies = dict(started.cookies)
            callback = httpx2.get(started.headers["Location"]).headers["Location"].removeprefix("http://localhost")
            finished = httpx2.get(f"{server.address}{callback}", cookies=cookies)
            assert finished.headers["Location"] == "/"
        client = Client(server.address, httpx_kwargs={"cookies": dict(finished.cookies)}, verbose=False)
        for _ in range(12):
            answer = client.predict(handle_file(ROOT / "examples" / "cat.jpg"), api_name="/predict")
            assert answer["predicted_class"] == "cat"


@pytest.mark.parametrize("under", ["", "/demos/cifar"])
def test_a_person_signs_in_classifies_and_signs_out_in_a_real_browser(provider, tmp_path, under):
    """In Chromium a photo is classified, and after signing out the page is closed. Under a path, so is its cookie."""
    path = need("chromium")
    provider.lies, provider.status, provider.keys = {}, 200, [OneUserProvider().keys[0]]
    port = free_port()
    address = f"http://localhost:{port}{under}"
    environment = {
        "CIFAR_PUBLIC_URL": address,
        "OPENID_PROVIDER_URL": provider.address,
        "OAUTH_CLIENT_ID": provider.CLIENT[0],
        "OAUTH_CLIENT_SECRET": provider.CLIENT[1],
    }
    with running(tmp_path, port=port, **environment), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page()
        page.goto(address)
        assert page.url == f"{address}/"
        paths = {cookie["name"]: cookie["path"] for cookie in page.context.cookies(f"{address}/")}
        assert paths["cifar_session"] == (under or "/")
        expect(page.locator("#photo input[type=file]")).to_be_attached(timeout=30_000)
        page.set_input_files("#photo input[type=file]", ROOT / "examples" / "ship.jpg")
        expect(page.locator("#answer .answer")).to_have_attribute("data-label", "ship")
        page.get_by_role("link", name="Sign out").click()
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("body")).to_contain_text("You are signed out")
        assert page.request.get(f"{address}/config").status == 401
        chromium.close()
    text = (tmp_path / "log").read_text()
    assert provider.CLIENT[1] not in text
    assert [line for line in text.splitlines() if " ERROR " in line] == []
