"""Tests of nginx with the image's nginx.conf in front of two workers: pages, streams, limits, headers, HTTPS."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import sync_playwright
from support.nginx import Nginx, certificate_in, running_nginx
from support.servers import Server, load_on, need, wait_for_workers
from support.waiting import until

from cifar import CLASS_NAMES
from cifar.settings import ROOT, Settings

EXAMPLES = ROOT / "examples"
CAT = (EXAMPLES / "cat.jpg").read_bytes()
MAX_BODY_BYTES = Settings.model_fields["max_body_bytes"].default

pytestmark = pytest.mark.slow


def client_from(address: str, **options) -> httpx2.Client:
    """Return a client that uses another loopback address."""
    return httpx2.Client(transport=httpx2.HTTPTransport(local_address=address), timeout=30, **options)


def logged(nginx: Nginx, **fields: object) -> dict:
    """Return the line of the access log with these fields; it is written just after the response."""

    def found() -> dict | None:
        lines = [json.loads(line) for line in nginx.log.read_text().splitlines() if line.startswith("{")]
        return next((line for line in lines if fields.items() <= line.items()), None)

    return until(found, f"{fields} was not logged")


@contextmanager
def echo() -> Iterator[str]:
    """Run an upstream that responds with the headers it received; yields HOST:PORT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps([[name.lower(), value] for name, value in self.headers.items()]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_gradio_client_works_through_nginx(front):
    """Upload, queue and event stream: ten images get ten right answers."""
    client = Client(front.address, verbose=False)
    for name in CLASS_NAMES:
        answer = client.predict(handle_file(EXAMPLES / f"{name}.jpg"), api_name="/predict")
        assert answer["predicted_class"] == name


def test_a_stream_is_not_buffered(front):
    """The first event of a heartbeat arrives while the stream is open."""
    with httpx2.stream("GET", f"{front.address}/gradio_api/heartbeat/abc", timeout=30) as stream:
        assert stream.status_code == 200
        assert next(stream.iter_text())
        assert "content-encoding" not in stream.headers


def test_curl_can_fetch_its_event_through_nginx(front):
    """`POST /call/predict` is followed by `GET /call/predict/EVENT`."""
    (path,) = httpx2.post(f"{front.address}/gradio_api/upload", files={"files": ("cat.jpg", CAT)}).json()
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    event = httpx2.post(f"{front.address}/gradio_api/call/predict", json={"data": [image, 1, None]}).json()["event_id"]
    assert "event: complete" in httpx2.get(f"{front.address}/gradio_api/call/predict/{event}", timeout=30).text


def test_nginx_refuses_a_body_above_the_limit_and_passes_one_at_the_limit(front):
    """The limit is the same as the app's, and the refusal has the app's JSON shape."""
    headers = {"Content-Type": "image/png", "X-Request-ID": "large-1"}
    over = httpx2.post(f"{front.address}/predict", content=bytes(MAX_BODY_BYTES + 1), headers=headers, timeout=60)
    assert over.status_code == 413
    assert over.json()["code"] == "body_too_large"
    assert over.json()["request_id"] == over.headers["X-Request-ID"] == "large-1"
    at = httpx2.post(f"{front.address}/predict", content=bytes(MAX_BODY_BYTES), headers=headers, timeout=60)
    assert at.json()["code"] == "unsupported_image", "the app has read the whole body"


def test_assets_are_cached_for_a_year_and_pages_are_not(front):
    """A file with a hash in its name never changes; a 404 is not cached."""
    page = httpx2.get(front.address)
    asset = re.search(r"assets/[\w-]+\.js", page.text)[0]
    assert httpx2.get(f"{front.address}/{asset}").headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert "immutable" not in page.headers.get("Cache-Control", "")
    missing = httpx2.get(f"{front.address}/assets/nothing-abcd1234.js")
    assert missing.status_code == 404
    assert "immutable" not in missing.headers.get("Cache-Control", "")


def test_text_is_compressed_for_clients_that_accept_it(front):
    """Nginx compresses responses that the app has not compressed."""
    plain = httpx2.get(f"{front.address}/config", headers={"Accept-Encoding": "identity"})
    packed = httpx2.get(f"{front.address}/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in packed.headers["Vary"]


def test_nginx_does_not_reveal_its_version(front):
    """It is neither in a header nor on error pages."""
    for path in ("/", "/metrics", "/nothing"):
        response = httpx2.get(front.address + path)
        assert response.headers["Server"] == "nginx"
        assert "nginx/" not in response.text


SPOOFED = {
    "Forwarded": "for=6.6.6.6;host=evil.example",
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "6666",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Protocol": "ssl",
    "X-Forwarded-Server": "evil.example",
    "X-Forwarded-Ssl": "on",
    "X-Real-IP": "6.6.6.6",
    "X-Original-URL": "/metrics",
    "X-Rewrite-URL": "/metrics",
    "X-Gradio-Server": "http://evil.example",
    "X-Cifar-Forwarded": "1",
    "X_Forwarded_For": "6.6.6.6",
}


def test_forwarding_headers_of_a_client_never_reach_the_app(tmp_path):
    """Nginx sets address, scheme and host itself, and clears every other header that a library would believe."""
    with echo() as upstream, running_nginx(tmp_path, upstream) as nginx:
        host = f"127.0.0.1:{nginx.port}"
        for connection in ("keep-alive", "close, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Request-ID"):
            got = httpx2.get(nginx.address, headers={**SPOOFED, "Connection": connection}).json()
            received = {name: value for name, value in got if name not in {"accept", "accept-encoding", "user-agent"}}
            assert re.fullmatch("[0-9a-f]{32}", received.pop("x-request-id"))
            assert received == {
                "host": host,
                "x-forwarded-for": "127.0.0.1",
                "x-forwarded-proto": "http",
                "x-forwarded-host": host,
            }
            assert len(got) == len(dict(got)), "no header came twice"


@pytest.mark.parametrize(
    ("sent", "valid"),
    [("a.b_C-9", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("<i>", False), ("", False)],
)
def test_a_valid_request_id_is_kept(front, sent, valid):
    """The response and the access log of nginx have the client's id, or a new one if it is not valid."""
    response = httpx2.get(f"{front.address}/health", headers={"X-Request-ID": sent})
    answered = response.headers["X-Request-ID"]
    assert (answered == sent) == valid
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answered)
    assert logged(front, request_id=answered, path="/health")


def test_forwarding_headers_are_believed_from_trusted_proxies_only(tmp_path):
    """The last address before the proxy and its scheme count; from other addresses the headers are ignored."""
    headers = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7", "X-Forwarded-Proto": "https"}
    with echo() as upstream, running_nginx(tmp_path, upstream, NGINX_TRUSTED_PROXIES="127.0.0.9") as nginx:
        for address, client, scheme in (("127.0.0.9", "203.0.113.7", "https"), ("127.0.0.8", "127.0.0.8", "http")):
            with client_from(address) as http:
                received = dict(http.get(nginx.address, headers=headers).json())
            assert (received["x-forwarded-for"], received["x-forwarded-proto"]) == (client, scheme)
            assert logged(nginx, client=client, status=200)


def test_an_unknown_host_is_refused(upstream, tmp_path):
    """Gradio would build its URLs from any Host header. Health checks may use an address."""
    with running_nginx(tmp_path, upstream, NGINX_HOSTS="space.example, www.space.example") as nginx:
        good = httpx2.get(f"{nginx.address}/config", headers={"Host": "www.space.example:8443"})
        assert good.json()["root"] == "http://www.space.example:8443"
        for host in ("evil.example", "space.example.evil.example", "xspace.example", "spaceXexample", "127.0.0.1"):
            refused = httpx2.get(f"{nginx.address}/config", headers={"Host": host})
            assert refused.status_code == 421
            assert refused.json()["code"] == "other_host"
            assert httpx2.get(f"{nginx.address}/readyz", headers={"Host": host}).status_code == 200


def test_prometheus_can_read_metrics_by_address_when_hosts_are_named(tmp_path):
    """Prometheus scrapes containers by address; other clients get the same refusal as for any unknown host."""
    options = {"NGINX_HOSTS": "space.example", "NGINX_METRICS_FROM": "127.0.0.9"}
    with echo() as upstream, running_nginx(tmp_path, upstream, **options) as nginx:
        for address, path, status in (
            ("127.0.0.9", "metrics", 200),
            ("127.0.0.9", "config", 421),
            ("127.0.0.1", "metrics", 421),
        ):
            with client_from(address) as http:
                assert http.get(f"{nginx.address}/{path}").status_code == status
        with client_from("127.0.0.9") as http:
            assert dict(http.get(f"{nginx.address}/metrics").json())["host"] == "localhost"


def test_metrics_are_open_to_the_named_networks_only(upstream, tmp_path):
    """A forged X-Forwarded-For does not help."""
    with running_nginx(tmp_path, upstream, NGINX_METRICS_FROM="127.0.0.9") as nginx:
        with client_from("127.0.0.9") as http:
            assert "# HELP" in http.get(f"{nginx.address}/metrics").text
        with client_from("127.0.0.8", headers={"X-Forwarded-For": "127.0.0.9"}) as http:
            assert http.get(f"{nginx.address}/metrics").status_code == 404


def test_the_access_log_is_json_without_query_strings(front):
    """Each line is valid JSON even with quotes in a header, and a token in a URL is not logged."""
    httpx2.get(f"{front.address}/health?token=secret123", headers={"User-Agent": 'a"b\\c'})
    assert logged(front, method="GET", path="/health", status=200, user_agent='a"b\\c')
    assert "secret123" not in front.log.read_text()


def test_concurrent_requests_of_one_address_are_limited(upstream, tmp_path):
    """The fourth request is refused until one of three has ended; other addresses are served meanwhile."""
    with (
        running_nginx(tmp_path, upstream, NGINX_CONNECTIONS_PER_ADDRESS="3") as nginx,
        client_from("127.0.0.5") as http,
    ):
        with ExitStack() as streams:
            for i in range(3):
                stream = http.stream("GET", f"{nginx.address}/gradio_api/heartbeat/h{i}")
                assert streams.enter_context(stream).status_code == 200
            refused = http.get(f"{nginx.address}/health")
            assert refused.status_code == 429
            assert refused.headers["Retry-After"] == "1"
            assert refused.json()["code"] == "too_many_connections"
            assert httpx2.get(f"{nginx.address}/health").status_code == 200
        until(lambda: http.get(f"{nginx.address}/health").status_code == 200)


def test_without_the_app_nginx_answers_503_with_retry_after(tmp_path):
    """The response has the app's JSON shape, also for a body that is not kept for another worker."""
    with running_nginx(tmp_path, "127.0.0.1:9") as nginx:
        responses = [httpx2.post(f"{nginx.address}/predict", content=CAT * times) for times in (1, 200)]
    for response in responses:
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert response.json()["code"] == "not_ready"


def test_nginx_names_the_methods_where_it_refuses_one_itself(front):
    """It answers TRACE alone. Each 405 needs `Allow`, and a body of the usual form."""
    refused = httpx2.request("TRACE", f"{front.address}/health")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")
    assert refused.json()["code"] == "method_not_allowed"
    by_the_app = httpx2.put(f"{front.address}/predict")
    assert (by_the_app.status_code, by_the_app.headers.get_list("allow")) == (405, ["POST"])


def test_a_killed_worker_costs_at_most_a_half_sent_response(two_workers, front):
    """A request that the killed worker had not begun to answer is sent to the other worker."""
    with load_on(Server(front.address, two_workers.process, two_workers.log)) as load:
        for _ in range(2):
            time.sleep(1)
            ready = two_workers.log.read_text().count("is ready on")
            os.kill(min(two_workers.workers()), signal.SIGKILL)
            wait_for_workers(two_workers, ready + 1)
        time.sleep(1)
    print(f"{len(load.right)} answered, broken: {load.errors}")
    assert len(load.right) > 20
    assert all(load.right)
    assert len(load.errors) <= 2, "a worker writes one response at a time"
    assert all("without sending complete message body" in str(error) for error in load.errors)


def test_with_a_certificate_plain_http_redirects(secure):
    """Status 308 keeps a POST a POST; health checks are answered without a redirect."""
    response = httpx2.post(f"{secure.address}/predict?top_k=1", content=CAT)
    assert response.status_code == 308
    assert response.headers["Location"] == "https://127.0.0.1/predict?top_k=1"
    assert "Strict-Transport-Security" not in response.headers
    for path in ("/health", "/healthz", "/readyz"):
        assert httpx2.get(secure.address + path).status_code == 200


def https_client(certificate: Path, **options) -> httpx2.Client:
    trusted = ssl.create_default_context(cafile=certificate / "tls.crt")
    return httpx2.Client(verify=trusted, timeout=30, **options)


def test_https_offers_http_2_and_hsts(secure, certificate):
    """HTTP/2 and HTTP/1.1 give the same answer, and the app builds https URLs."""
    address = f"https://localhost:{secure.tls_port}"
    for http2, version in ((True, "HTTP/2"), (False, "HTTP/1.1")):
        with https_client(certificate, http2=http2) as http:
            response = http.post(f"{address}/predict", files={"image": CAT})
            assert (response.status_code, response.http_version) == (200, version)
            assert response.json()["predicted_class"] == "cat"
            assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
            refused = http.get(f"{address}/metrics")
            assert refused.status_code == 404
            assert refused.headers["Strict-Transport-Security"] == "max-age=31536000"
            assert http.get(f"{address}/config").json()["root"] == address


def test_a_renewed_certificate_is_served_after_the_signal_that_compose_names(tmp_path):
    """The container need not be restarted for a new certificate."""
    served = set()
    with running_nginx(tmp_path, "127.0.0.1:1", NGINX_TLS_FOLDER=str(certificate_in(tmp_path))) as nginx:
        for _ in range(2):
            renewed = (tmp_path / "tls.crt").read_text()
            until(lambda now=renewed: ssl.get_server_certificate(("127.0.0.1", nginx.tls_port)) == now)
            served.add(renewed)
            certificate_in(tmp_path)
            nginx.process.send_signal(signal.SIGHUP)
    assert len(served) == 2
    signal_line = next(line for line in (ROOT / "compose.yaml").read_text().splitlines() if "--signal HUP" in line)
    assert "docker compose kill --signal HUP nginx" in signal_line
    assert "renewed" in signal_line


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ("-tls1_3", True),
        ("-tls1_2", True),
        ("-tls1_1 -cipher ALL:@SECLEVEL=0", False),
        ("-tls1 -cipher ALL:@SECLEVEL=0", False),
        ("-tls1_2 -cipher AES128-SHA", False),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", False),
    ],
)
def test_only_modern_tls_is_accepted(secure, options, accepted):
    """TLS 1.3, and TLS 1.2 with forward secrecy and authenticated encryption."""
    command = [need("openssl"), "s_client", "-connect", f"127.0.0.1:{secure.tls_port}", *options.split()]
    result = subprocess.run(command, input="", capture_output=True, text=True, timeout=20, check=False)
    assert (result.returncode == 0) == accepted, result.stdout + result.stderr


def test_the_page_works_over_https(secure):
    """A browser loads everything over HTTPS and classifies a photo."""
    path = need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(ignore_https_errors=True).new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"https://localhost:{secure.tls_port}")
        page.locator("#photo input[type=file]").wait_for(state="attached", timeout=60_000)
        page.set_input_files("#photo input[type=file]", EXAMPLES / "ship.jpg")
        page.locator("#answer [data-label=ship]").wait_for(timeout=60_000)
        browser.close()
    assert len(asked) > 5
    assert [url for url in asked if url.startswith("http:")] == []
