"""Bearer tokens: forged ones are refused, valid ones are accepted."""

from __future__ import annotations

import json
import time
import warnings

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.testclient import TestClient
from support.identities import (
    AUDIENCE,
    EC_KEY,
    ISSUER,
    RSA_KEY,
    SECRET,
    OneUserProvider,
    base64url,
    claims,
    public,
    serving,
)
from support.servers import wait_until_ready

from app import create_app
from cifar.errors import SettingsError
from cifar.serving.auth.tokens import bearer_tokens
from cifar.settings import ROOT, Settings

CAT = (ROOT / "examples" / "cat.jpg").read_bytes()
STRANGER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER_EC = ec.generate_private_key(ec.SECP256R1())
SHORT_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - too short on purpose
OCT = "a symmetric key that a careless provider lists"
KEYS = [
    public(RSA_KEY, "rsa"),
    public(EC_KEY, "ec"),
    public(SHORT_RSA, "short"),
    public(STRANGER_RSA, "encrypts", use="enc"),
    public(STRANGER_RSA, "rs512", alg="RS512"),
    {"kty": "oct", "kid": "oct", "use": "sig", "alg": "HS256", "k": base64url(OCT.encode())},
]


@pytest.fixture(scope="module")
def by_secret():
    """An app that accepts tokens signed with a secret."""
    settings = Settings(jwt_secret=SECRET, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    with TestClient(create_app(settings, page=False), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture(scope="module")
def by_jwks():
    """An app that accepts tokens signed with the keys of a JWKS address."""
    provider = OneUserProvider()
    provider.keys = KEYS
    with serving(provider) as address:
        settings = Settings(jwks_url=f"{address}/jwks", jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
        with TestClient(create_app(settings, page=False), raise_server_exceptions=False) as client:
            wait_until_ready(client)
            yield client


def ask(client: TestClient, token: str):
    return client.post("/predict", files={"image": CAT}, headers={"Authorization": f"Bearer {token}".encode()})


def signed(key=SECRET, algorithm: str = "HS256", headers: dict | None = None, **changes: object) -> str:
    with warnings.catch_warnings(action="ignore"):  # about the key that is too short
        return jwt.encode(claims(**changes), key, algorithm, headers=headers)


def raw(header: object, payload: object, key: bytes = SECRET.encode()) -> str:
    """Return a token of any JSON with a valid HS256 signature, which a library would not write."""
    texts = [part if isinstance(part, str) else json.dumps(part) for part in (header, payload)]
    body = ".".join(base64url(text.encode()) for text in texts)
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(body.encode(), key)
    return f"{body}.{base64url(signature)}"


def unsigned(algorithm: str, signature: str = "") -> str:
    return raw({"alg": algorithm, "typ": "JWT"}, claims()).rpartition(".")[0] + f".{signature}"


def with_payload_of(token: str, other: str) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{other.split('.')[1]}.{signature}"


HS256 = {"alg": "HS256", "typ": "JWT"}
LATER = int(time.time()) + 3600
FORGED = {
    "no algorithm": unsigned("none"),
    "no algorithm, in capitals": unsigned("NONE"),
    "no algorithm, in mixed case": unsigned("nOnE"),
    "no algorithm, with a signature": unsigned("none", signed().split(".")[2]),
    "an empty algorithm": unsigned(""),
    "HS256 and no signature": unsigned("HS256"),
    "another secret": signed("b" * 32),
    "an empty secret": raw(HS256, claims(), b""),
    "another payload under a good signature": with_payload_of(signed(), signed(sub="root")),
    "a cut signature": signed()[:-4],
    "a lengthened signature": signed() + "AAAA",
    "the right secret with HS512": signed(algorithm="HS512"),
    "a stranger's RSA key": signed(STRANGER_RSA, "RS256"),
    "expired": signed(exp=int(time.time()) - 3600),
    "expired in 1970": signed(exp=0),
    "no expiry": signed(exp=None),
    "an expiry that is a word": raw(HS256, claims(exp="never")),
    "an infinite expiry": raw(HS256, json.dumps(claims()).replace('"exp": ', '"exp": 1e999, "x": ')),
    "an expiry that is true": raw(HS256, claims(exp=True)),
    "not valid yet": signed(nbf=LATER),
    "issued in the future": signed(iat=LATER),
    "another issuer": signed(iss="https://evil.example"),
    "an issuer that begins like ours": signed(iss=ISSUER + ".evil.example"),
    "no issuer": signed(iss=None),
    "another audience": signed(aud="another-service"),
    "a list of other audiences": signed(aud=["another-service", AUDIENCE + "2"]),
    "no audience": signed(aud=None),
    "no name": signed(sub=None),
    "an empty name": signed(sub=""),
    "a name that is a number": raw(HS256, claims(sub=1)),
    "a name with a line break": signed(sub="alice\nroot"),
    "a name of 300 characters": signed(sub="a" * 300),
    "a payload that is a list": raw(HS256, [claims()]),
    "a payload that is no JSON": raw(HS256, "{not json"),
    "a header that is a list": raw([HS256], claims()),
    "a header 2,500 lists deep": raw('{"alg":"HS256","x":' + "[" * 2500 + "]" * 2500 + "}", claims()),
    "an unknown critical extension": raw({**HS256, "crit": ["x"], "x": 1}, claims()),
    "a payload that is not encoded": raw({**HS256, "b64": False, "crit": ["b64"]}, claims()),
    "two parts": ".".join(signed().split(".")[:2]),
    "four parts": signed() + ".x",
    "five parts, as if encrypted": ".".join(["eyJhbGciOiJkaXIifQ"] * 5),
    "no token at all": "",
    "words": "let me in",
    "bytes beyond ASCII": "\u00e9\u00e8.\u00fc.\u00df",
    "20 kB": signed(sub="alice", filler="x" * 20_000),
    "an API key that looks right": "cifar_0123456789abcdef_" + "A" * 43,
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_token_is_answered_401(by_secret, kind):
    """It is refused before the image is read, and the answer does not say why."""
    answer = ask(by_secret, FORGED[kind])
    assert answer.status_code == 401, answer.text
    assert answer.json()["code"] == "invalid_credentials"
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="CIFAR Space", error="invalid_token"'


def hs256_with(secret: bytes) -> str:
    """Return a token that is signed with public bytes as if they were a secret."""
    return raw({**HS256, "kid": "rsa"}, claims(), secret)


def ec_signed(signature: bytes) -> str:
    header, payload, _ = signed(EC_KEY, "ES256", {"kid": "ec"}).split(".")
    return f"{header}.{payload}.{base64url(signature)}"


def der(token: str) -> bytes:
    signature = jwt.utils.base64url_decode(token.split(".")[2])
    return encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))


PEM, DER = (
    RSA_KEY.public_key().public_bytes(form, PublicFormat.SubjectPublicKeyInfo) for form in (Encoding.PEM, Encoding.DER)
)
GOOD_EC = signed(EC_KEY, "ES256", {"kid": "ec"})
FORGED_FOR_JWKS = {
    "no algorithm": raw({"alg": "none", "kid": "rsa"}, claims()),
    "HS256 with the public key as PEM": hs256_with(PEM),
    "HS256 with the public key as PEM, no last line break": hs256_with(PEM.strip()),
    "HS256 with the public key as DER": hs256_with(DER),
    "HS256 with the public key as JSON": hs256_with(json.dumps(public(RSA_KEY, "rsa")).encode()),
    "HS256 with the public key's number": hs256_with(str(KEYS[0]["n"]).encode()),
    "HS256 with a symmetric key that the provider lists": signed(OCT, "HS256", {"kid": "oct"}),
    "a stranger's RSA key under a known name": signed(STRANGER_RSA, "RS256", {"kid": "rsa"}),
    "a stranger's EC key under a known name": signed(STRANGER_EC, "ES256", {"kid": "ec"}),
    "an unknown name": signed(STRANGER_RSA, "RS256", {"kid": "mine"}),
    "no name": signed(RSA_KEY, "RS256"),
    "a name that is a path": signed(STRANGER_RSA, "RS256", {"kid": "../../../../dev/null"}),
    "a name that is a query": signed(STRANGER_RSA, "RS256", {"kid": "rsa' OR '1'='1"}),
    "a name that is a number": raw({"alg": "RS256", "kid": 7}, claims()),
    "a key in the header": signed(STRANGER_RSA, "RS256", {"kid": "rsa", "jwk": public(STRANGER_RSA, "rsa")}),
    "an address of keys in the header": signed(STRANGER_RSA, "RS256", {"kid": "k", "jku": "http://127.0.0.1:1/jwks"}),
    "a certificate in the header": signed(STRANGER_RSA, "RS256", {"kid": "rsa", "x5c": [base64url(DER)]}),
    "a certificate's address in the header": signed(STRANGER_RSA, "RS256", {"kid": "rsa", "x5u": "http://127.0.0.1:1"}),
    "RS512 with the right key": signed(RSA_KEY, "RS512", {"kid": "rsa"}),
    "PS256 with the right key": signed(RSA_KEY, "PS256", {"kid": "rsa"}),
    "RS512 with a key for it": signed(STRANGER_RSA, "RS512", {"kid": "rs512"}),
    "RS256 under the name of an EC key": signed(RSA_KEY, "RS256", {"kid": "ec"}),
    "ES256 under the name of an RSA key": signed(EC_KEY, "ES256", {"kid": "rsa"}),
    "a key for encryption": signed(STRANGER_RSA, "RS256", {"kid": "encrypts"}),
    "a key of 1024 bits": signed(SHORT_RSA, "RS256", {"kid": "short"}),
    "an EC signature of zeros": ec_signed(bytes(64)),
    "an EC signature as long as two orders": ec_signed(b"\xff" * 64),
    "an EC signature as DER": ec_signed(der(GOOD_EC)),
    "an RSA signature of zeros": f"{signed(RSA_KEY, 'RS256', {'kid': 'rsa'}).rpartition('.')[0]}.{base64url(bytes(256))}",
    "expired": signed(RSA_KEY, "RS256", {"kid": "rsa"}, exp=int(time.time()) - 3600),
    "another audience": signed(EC_KEY, "ES256", {"kid": "ec"}, aud="another-service"),
    "another issuer": signed(EC_KEY, "ES256", {"kid": "ec"}, iss="https://evil.example"),
}


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")  # it is refused, and not because of the warning
@pytest.mark.parametrize("kind", FORGED_FOR_JWKS)
def test_a_token_forged_with_public_knowledge_is_answered_401(by_jwks, kind):
    """Examples: another key, another algorithm, a key that the token itself contains."""
    answer = ask(by_jwks, FORGED_FOR_JWKS[kind])
    assert answer.status_code == 401, answer.text
    assert answer.json()["code"] == "invalid_credentials"


def test_a_valid_token_of_each_algorithm_is_accepted(by_secret, by_jwks):
    """Otherwise the tests above would also pass for an app that refuses every token."""
    for client, token in (
        (by_secret, signed()),
        (by_secret, raw(HS256, claims())),
        (by_secret, signed(aud=["another-service", AUDIENCE])),
        (by_secret, signed(exp=int(time.time()) - 10)),  # within the accepted clock skew
        (by_secret, signed(scope=None, scp=["predict"])),
        (by_secret, signed(scope=None, scp="predict")),
        (by_jwks, signed(RSA_KEY, "RS256", {"kid": "rsa"})),
        (by_jwks, GOOD_EC),
    ):
        answer = ask(client, token)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predicted_class"] == "cat"


@pytest.mark.parametrize("scope", ["", "feedback admin", "predictor", "PREDICT", "predict,feedback", 7, {"predict": 1}])
def test_a_token_without_the_scope_is_answered_403(by_secret, scope):
    """The token is valid, so the answer is not 401."""
    answer = ask(by_secret, signed(scope=scope))
    assert answer.status_code == 403, answer.text
    assert answer.json()["code"] == "missing_scope"
    challenge = 'Bearer realm="CIFAR Space", error="insufficient_scope", scope="predict"'
    assert answer.headers["WWW-Authenticate"] == challenge


def test_a_public_key_is_refused_as_the_secret_of_tokens():
    """If the two settings were mixed up, every reader of the public key could sign tokens."""
    settings = Settings(jwt_secret=PEM.decode(), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    with pytest.raises(SettingsError, match="CIFAR_JWT_SECRET is not a secret"):
        bearer_tokens(settings)


def test_a_token_is_answered_503_while_the_provider_is_unreachable():
    """The token may be valid, so the answer is not 401."""
    settings = Settings(jwks_url="http://127.0.0.1:9/jwks", jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    with TestClient(create_app(settings, page=False), raise_server_exceptions=False) as client:
        answer = ask(client, GOOD_EC)
        wait_until_ready(client)
        assert client.get("/readyz").json()["without"] == ["jwks"]
    assert answer.status_code == 503
    assert answer.json()["code"] == "sign_in_unavailable"
    assert answer.headers["Retry-After"]
