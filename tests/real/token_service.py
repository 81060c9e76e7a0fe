"""An authorization service whose tokens the real registry takes, on loopback, in a thread.

    with running_token_service(tmp_path) as service:
        service.users["alice"] = User("secret", {"team/app": {"pull"}})
        with running_registry(tmp_path, tokens=service) as registry:
            ...

Source: the distribution project's token specification; RFC 7515 (x5c).
"""

from __future__ import annotations

import base64
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import trustme
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME: Final = "service-of-the-tests"
LEEWAY: Final = 60
"""Seconds for which the registry takes a token that has expired."""


@dataclass
class User:
    """Somebody who has a password, and may do some things with some repositories."""

    password: str
    rights: dict[str, set[str]]


@dataclass
class TokenService:
    """A running service.

    Attributes:
        realm: its URL.
        bundle: certificates by which the registry knows its tokens (PEM).
        users: by name.
        expired: whether its tokens are too old when they are given out.
        asked: user ("" for nobody) and scopes of each request.
    """

    realm: str
    bundle: Path
    users: dict[str, User] = field(default_factory=dict)
    expired: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)


class _Signer:
    def __init__(self, authority: trustme.CA) -> None:
        leaf = authority.issue_cert("token.test", key_type=trustme.KeyType.ECDSA)
        key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        self._key = key
        certificate = load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
        self._certificate = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()

    def sign(self, claims: dict[str, object]) -> str:
        """Give the claims as a JSON web token."""
        header = {"typ": "JWT", "alg": "ES256", "x5c": [self._certificate]}
        text = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
        one, two = decode_dss_signature(self._key.sign(text.encode(), ECDSA(SHA256())))
        return f"{text}.{_encode(one.to_bytes(32, 'big') + two.to_bytes(32, 'big'))}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def running_token_service(directory: Path) -> Iterator[TokenService]:
    """Run a service that keeps its certificate in `directory`."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    bundle = directory / "tokens.pem"
    authority.cert_pem.write_to_path(str(bundle))
    signer = _Signer(authority)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            scopes = query.get("scope", [])
            name = _who(service, self.headers.get("Authorization", ""))
            service.asked.append((name or "", " ".join(scopes)))
            if name is None:
                self.send_error(401)
                return
            claims = _claims(service, name, query["service"][0], scopes)
            body = json.dumps({"token": signer.sign(claims), "expires_in": 300}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service = TokenService(f"http://127.0.0.1:{server.server_port}/token", bundle)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()


def _who(service: TokenService, authorization: str) -> str | None:
    """Give the user; "" for nobody, None for a wrong password."""
    if not authorization:
        return ""
    credential = base64.b64decode(authorization.removeprefix("Basic ")).decode()
    name, _, password = credential.partition(":")
    user = service.users.get(name)
    return name if user is not None and user.password == password else None


def _claims(
    service: TokenService, name: str, audience: str, scopes: list[str]
) -> dict[str, object]:
    rights = service.users[name].rights if name else {}
    access = []
    for scope in scopes:
        kind, repository, actions = scope.split(":")
        granted = sorted(set(actions.split(",")) & rights.get(repository, set()))
        access.append({"type": kind, "name": repository, "actions": granted})
    now = int(time.time()) - (300 + 2 * LEEWAY if service.expired else 0)
    return {
        "iss": NAME, "sub": name, "aud": audience, "exp": now + 300, "nbf": now - 10,
        "iat": now, "jti": str(len(service.asked)), "access": access,
    }  # fmt: skip
