"""A small OCI registry in memory, over real HTTP on the loopback interface.

It follows the distribution specification, and does on request what real registries do to their
clients: asks for tokens, redirects blobs to a second host and port with a signed URL, ignores
ranges, fails in every way. It counts what it was asked for.

    async with run_registry() as registry:
        layer = registry.add_blob("library/debian", b"...")
        registry.add_image("library/debian", "12", manifest)
        reference = parse_reference(f"{registry.host}/library/debian:12")
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from aiohttp import web

from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    Descriptor,
    Index,
    Manifest,
    describe,
    parse_document,
    serialize_document,
)
from lazyimg_formats.oci.referrers import describe_referrer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

NAME = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers)/(?P<rest>.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Asked:
    """One request: what was asked, and what was answered (`sent`: bytes of the body)."""

    method: str
    path: str
    range: str
    authorized: bool
    namespace: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose method and path fit.

    Attributes:
        kind: ``status`` answers `status`; ``reset`` closes the connection; ``half`` sends half of
            the body; ``wrong`` changes the body's first byte; ``long`` sends a byte more;
            ``headers`` only adds `headers`; ``lost`` does the work, then closes the connection;
            ``hang`` never answers; ``pause`` sends half of the body, and the rest after `go_on`;
            ``dribble`` sends a byte now and then; ``barrier`` answers when it has been asked
            `times` times.
        go_on: ends the pause.
    """

    kind: Literal[
        "status",
        "reset",
        "half",
        "wrong",
        "long",
        "headers",
        "lost",
        "hang",
        "pause",
        "barrier",
        "dribble",
    ]
    method: str = "GET"
    path: str = "/blobs/"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    times: int = 1
    go_on: asyncio.Event = field(default_factory=asyncio.Event)


class FakeRegistry:
    """The registry's contents and switches; all may be changed while it runs.

    Attributes:
        host: host and port, for references.
        blobs: by repository and digest.
        manifests: by repository and tag or digest: media type and bytes.
        auth: what it wants of a client.
        users: names and passwords; with none, tokens are given to anybody.
        readers: who may use a repository, where not all users may (basic authorization only).
        identity_token: what a refresh token must be.
        token_lifetime: seconds, as it says and as it keeps.
        redirect: send blobs from a second host and port.
        signed_lifetime: seconds for which a redirect is good.
        ignore_range: answer 200 with everything.
        min_chunk: announced bytes of an upload's chunk.
        mount: whether blobs can be taken over from other repositories.
        referrers: how many referrers an answer lists; 0: it does not list them.
        deletes: whether manifests can be removed.
        faults: what goes wrong next.
        asked: every request so far, of both hosts.
    """

    def __init__(self) -> None:
        self.host = ""
        self.storage = ""
        self.scheme = "http"
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.auth: Literal["", "basic", "token"] = ""
        self.users: dict[str, str] = {}
        self.readers: dict[str, set[str]] = {}
        self.identity_token = "identity"
        self.token_lifetime = 300
        self.tokens: dict[str, tuple[set[str], float]] = {}
        self.refuse_with = 401
        self.redirect = False
        self.signed_lifetime = 300
        self.ignore_range = False
        self.min_chunk = 0
        self.mount = True
        self.referrers = 0
        self.deletes = True
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self._serial = 0

    def add_blob(self, name: str, data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
        """Put a blob into a repository."""
        self.blobs.setdefault(name, {})[str(Digest.of(data))] = data
        return describe(data, media_type)

    def add_manifest(self, name: str, tag: str, document: Manifest | Index) -> Descriptor:
        """Put a manifest or index into a repository, under its digest and, unless "", a tag."""
        data = serialize_document(document)
        descriptor = describe(data, document.media_type)
        kept = self.manifests.setdefault(name, {})
        kept[str(descriptor.digest)] = (document.media_type, data)
        if tag:
            kept[tag] = (document.media_type, data)
        return descriptor

    def add_image(
        self, name: str, tag: str, layers: Mapping[bytes, bytes], architecture: str = "amd64"
    ) -> Descriptor:
        """Put an image into a repository: `layers` are compressed bytes -> uncompressed bytes."""
        config = {
            "os": "linux",
            "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(t)) for t in layers.values()]},
        }
        document = Manifest(
            config=self.add_blob(name, msgspec.json.encode(config), OCI_CONFIG),
            layers=tuple(self.add_blob(name, data) for data in layers),
        )
        return self.add_manifest(name, tag, document)

    def fail(self, kind: Any, **options: Any) -> Fault:
        """Let the next fitting requests go wrong; see `Fault`."""
        self.faults.append(Fault(kind, **options))
        return self.faults[-1]

    def count(self, method: str = "GET", path: str = "/") -> int:
        """Give the number of requests so far whose method and path fit."""
        return sum(1 for one in self.asked if one.method == method and path in one.path)

    def sent(self, path: str = "/blobs/") -> int:
        """Give the bytes of bodies sent so far for paths that fit."""
        return sum(one.sent for one in self.asked if path in one.path)

    def expire_tokens(self) -> None:
        """Let every token that was given out be refused from now on."""
        self.tokens.clear()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request to the registry's own host."""
        asked = Asked(
            request.method,
            request.path,
            request.headers.get("Range", ""),
            "Authorization" in request.headers,
            request.query.get("ns", ""),
            request.headers,
        )
        self.asked.append(asked)
        fault = self._take_fault(request)
        if fault is not None and fault.kind == "hang":
            await asyncio.Event().wait()
        if fault is not None and fault.kind == "barrier":
            if not fault.times:
                fault.go_on.set()
            await fault.go_on.wait()
        if fault is not None and fault.kind == "status":
            asked.status = fault.status
            return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
        if fault is not None and fault.kind == "reset":
            return _abort(request)
        response = await self._answer(request)
        asked.status = response.status
        if fault is not None and fault.kind != "barrier":
            return await _spoil(request, response, fault)
        if isinstance(response.body, bytes) and request.method != "HEAD":
            asked.sent = len(response.body)
        return response

    def _take_fault(self, request: web.Request) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == request.method and fault.path in request.path:
                fault.times -= 1
                return fault
        return None

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == "/token":
            return await self._token(request)
        if request.path.startswith("/signed/"):
            return self._signed(request)
        return await self._answer_api(request)

    async def _answer_api(self, request: web.Request) -> web.Response:
        match = NAME.fullmatch(request.path)
        name = match["name"] if match else ""
        if not self._is_authorized(request, name):
            return self._challenge(request, name)
        if request.path == "/v2/":
            return web.Response(body=b"{}")
        if match is None:
            return _error(404, "NAME_UNKNOWN")
        if match["kind"] != "blobs":
            kind = self._manifest if match["kind"] == "manifests" else self._list_referrers
            return await kind(request, name, match["rest"])
        if match["rest"].startswith("uploads/"):
            return await self._upload(request, name, match["rest"].removeprefix("uploads/"))
        return self._blob(request, name, match["rest"])

    # Authorization.

    def _is_authorized(self, request: web.Request, name: str) -> bool:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if self.auth == "basic":
            return scheme == "Basic" and self._knows(value) and self._may_read(value, name)
        if self.auth == "token":
            scopes, end = self.tokens.get(value, (set[str](), 0.0))
            action = "pull" if request.method in {"GET", "HEAD"} else "push"
            if request.method == "DELETE" and "/manifests/" in request.path:
                action = "delete"
            allowed = not name or f"{name}:{action}" in scopes
            return scheme == "Bearer" and time.time() < end and allowed
        return True

    def _knows(self, basic: str) -> bool:
        user, _, password = base64.b64decode(basic).decode().partition(":")
        return user in self.users and self.users[user] == password

    def _may_read(self, basic: str, name: str) -> bool:
        user = base64.b64decode(basic).decode().partition(":")[0]
        return user in self.readers.get(name, self.users)

    def _challenge(self, request: web.Request, name: str) -> web.Response:
        if self.auth == "basic":
            challenge = 'Basic realm="here"'
        else:
            action = "pull" if request.method in {"GET", "HEAD"} else "pull,push"
            challenge = (
                f'Bearer realm="{self.scheme}://{self.host}/token",service="fake, \\"really\\"",'
                f'scope="repository:{name}:{action}"'
            )
        response = _error(self.refuse_with, "UNAUTHORIZED")
        response.headers["WWW-Authenticate"] = challenge
        return response

    async def _token(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            form = await request.post()
            allowed = form["refresh_token"] == self.identity_token
            asked = str(form["scope"]).split()
        else:
            scheme, _, value = request.headers.get("Authorization", "").partition(" ")
            allowed = not self.users or (scheme == "Basic" and self._knows(value))
            asked = request.query.getall("scope", [])
        if not allowed:
            return _error(401, "UNAUTHORIZED")
        self._serial += 1
        token = f"token-{self._serial}"
        scopes = set[str]()
        for scope in asked:
            _, name, actions = scope.split(":")
            scopes.update(f"{name}:{action}" for action in actions.split(","))
        self.tokens[token] = (scopes, time.time() + self.token_lifetime)
        return web.json_response({"token": token, "expires_in": self.token_lifetime})

    # Manifests and blobs.

    async def _manifest(self, request: web.Request, name: str, reference: str) -> web.Response:
        if request.method == "PUT":
            data = await request.read()
            kept = self.manifests.setdefault(name, {})
            kept[reference] = kept[str(Digest.of(data))] = (request.content_type, data)
            headers = {"Docker-Content-Digest": str(Digest.of(data))}
            if self.referrers and (subject := parse_document(data).subject):
                headers["OCI-Subject"] = str(subject.digest)
            return web.Response(status=201, headers=headers)
        if request.method == "DELETE":
            return self._delete_manifest(name, reference)
        found = self.manifests.get(name, {}).get(reference)
        if found is None:
            return _error(404, "MANIFEST_UNKNOWN")
        media_type, data = found
        if media_type not in request.headers.get("Accept", ""):
            return _error(404, "MANIFEST_UNKNOWN", "OCI index found, but Accept does not list it")
        return web.Response(
            body=data,
            headers={"Content-Type": media_type, "Docker-Content-Digest": str(Digest.of(data))},
        )

    def _delete_manifest(self, name: str, reference: str) -> web.Response:
        if not self.deletes:
            return _error(405, "UNSUPPORTED", "The operation is unsupported.")
        found = self.manifests.get(name, {}).pop(reference, None)
        return web.Response(status=202) if found else _error(404, "MANIFEST_UNKNOWN")

    async def _list_referrers(self, request: web.Request, name: str, subject: str) -> web.Response:
        if not self.referrers:
            return web.Response(status=404, text="404 page not found")
        entries = []
        for key, (media_type, data) in sorted(self.manifests.get(name, {}).items()):
            document = parse_document(data, media_type)
            if ":" in key and document.subject and str(document.subject.digest) == subject:
                assert isinstance(document, Manifest)
                entries.append(describe_referrer(describe(data, media_type), document))
        start = int(request.query.get("from", "0"))
        end = start + self.referrers
        headers = {"Content-Type": OCI_INDEX}
        if end < len(entries):
            headers["Link"] = f'<{request.path}?from={end}>; rel="next"'
        page = Index(manifests=tuple(entries[start:end]))
        return web.Response(body=serialize_document(page), headers=headers)

    def _blob(self, request: web.Request, name: str, digest: str) -> web.Response:
        data = self.blobs.get(name, {}).get(digest)
        if data is None:
            return _error(404, "BLOB_UNKNOWN")
        if self.redirect:
            when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            query = (
                f"X-Amz-Date={when}&X-Amz-Expires={self.signed_lifetime}&X-Amz-Signature=sec%2Fret"
            )
            location = f"{self.scheme}://{self.storage}/signed/{name}/{digest}?{query}"
            return web.Response(status=307, headers={"Location": location})
        return self._send(request, data)

    def _signed(self, request: web.Request) -> web.Response:
        if "Authorization" in request.headers:
            return web.Response(status=400, text="Only one auth mechanism allowed")
        if request.method == "HEAD" or "X-Amz-Signature=sec%2Fret" not in request.raw_path:
            return web.Response(status=403)
        if self.signed_lifetime <= 0:
            return web.Response(status=403, text="Request has expired")
        name, _, digest = request.path.removeprefix("/signed/").rpartition("/")
        return self._send(request, self.blobs[name][digest])

    def _send(self, request: web.Request, data: bytes) -> web.Response:
        match = RANGE.fullmatch(request.headers.get("Range", ""))
        if match is None or self.ignore_range:
            return web.Response(body=data, headers={"Content-Type": "application/octet-stream"})
        start = int(match[1])
        end = min(len(data), int(match[2] or len(data)) + 1)
        if start >= len(data):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        return web.Response(status=206, body=data[start:end], headers=headers)

    # Uploads.

    async def _upload(self, request: web.Request, name: str, upload: str) -> web.Response:
        if request.method == "POST":
            return self._begin_upload(request, name)
        buffer = self.uploads.get(upload)
        if buffer is None:
            return _error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "DELETE":
            del self.uploads[upload]
            return web.Response(status=204)
        if request.method == "PATCH":
            start = request.headers.get("Content-Range", "0-").partition("-")[0]
            if int(start) != len(buffer):
                return _error(416, "BLOB_UPLOAD_INVALID")
            buffer += await request.read()
        if request.method == "PUT":
            return self._end_upload(request, name, upload, bytes(buffer) + await request.read())
        return self._progress(202 if request.method == "PATCH" else 204, name, upload)

    def _begin_upload(self, request: web.Request, name: str) -> web.Response:
        mount, source = request.query.get("mount", ""), request.query.get("from", "")
        data = self.blobs.get(source, {}).get(mount)
        if self.mount and data is not None:
            self.blobs.setdefault(name, {})[mount] = data
            return web.Response(status=201, headers={"Location": f"/v2/{name}/blobs/{mount}"})
        self._serial += 1
        upload = f"upload-{self._serial}"
        self.uploads[upload] = bytearray()
        return self._progress(202, name, upload)

    def _progress(self, status: int, name: str, upload: str) -> web.Response:
        # As the distribution project does: 0-0 stands for no byte, too.
        headers = {
            "Location": f"/v2/{name}/blobs/uploads/{upload}?state=a%2Fb",
            "Range": f"0-{max(0, len(self.uploads[upload]) - 1)}",
        }
        if self.min_chunk:
            headers["OCI-Chunk-Min-Length"] = str(self.min_chunk)
        return web.Response(status=status, headers=headers)

    def _end_upload(
        self, request: web.Request, name: str, upload: str, data: bytes
    ) -> web.Response:
        digest = request.query.get("digest", "")
        if request.query.get("state") != "a/b":
            return _error(400, "BLOB_UPLOAD_INVALID", "the upload's own query is lost")
        if str(Digest.of(data)) != digest:
            return _error(400, "DIGEST_INVALID", "provided digest did not match")
        self.blobs.setdefault(name, {})[digest] = data
        del self.uploads[upload]
        return web.Response(
            status=201,
            headers={"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest},
        )


def _error(status: int, code: str, message: str = "") -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status)


def _abort(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _spoil(request: web.Request, response: web.Response, fault: Fault) -> web.StreamResponse:
    """Send an answer as the fault has it."""
    response.headers.update(fault.headers)
    body = response.body if isinstance(response.body, bytes) else b""
    if fault.kind == "headers":
        return response
    if fault.kind == "lost":
        return _abort(request)
    if fault.kind == "wrong":
        response.body = bytes([body[0] ^ 0xFF]) + body[1:]
        return response
    cut = web.StreamResponse(status=response.status, headers=response.headers)
    if fault.kind in {"half", "pause", "dribble"}:
        cut.content_length = len(body)
        await cut.prepare(request)
        await _send_slowly(request, cut, body, fault)
        return cut
    del cut.headers["Content-Length"]
    cut.enable_chunked_encoding()
    await cut.prepare(request)
    await cut.write(body + b"x")
    return cut


async def _send_slowly(
    request: web.Request, response: web.StreamResponse, body: bytes, fault: Fault
) -> None:
    if fault.kind == "dribble":
        for position in range(len(body)):
            await response.write(body[position : position + 1])
            await asyncio.sleep(0.02)
        return
    await response.write(body[: len(body) // 2])
    if fault.kind == "pause":
        await fault.go_on.wait()
        await response.write(body[len(body) // 2 :])
        return
    assert request.transport is not None
    request.transport.close()


def name_mirrors(directory: Path, registry: str, *mirrors: str, more: str = "") -> None:
    """Write the hosts.toml of a registry: `mirrors` are host:port or tables, `more` goes first."""
    tables = [one if "[" in one else f'[host."http://{one}"]\n' for one in mirrors]
    (directory / registry).mkdir(parents=True, exist_ok=True)
    (directory / registry / "hosts.toml").write_text(more + "\n" + "\n".join(tables))


@asynccontextmanager
async def run_registry(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeRegistry]:
    """Run a registry, with TLS if a context is given, until the end of the block."""
    registry = FakeRegistry()
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", registry.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        ports = []
        for _ in range(2):
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            ports.append(runner.addresses[-1][1])
        registry.host, registry.storage = (f"127.0.0.1:{port}" for port in ports)
        registry.scheme = "https" if tls else "http"
        yield registry
    finally:
        await runner.cleanup()
