"""What a PullImage says: the image, and the credential for it.

Sources: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto; what the kubelet puts into an AuthConfig,
and what containerd makes of it: kubernetes, pkg/kubelet/kuberuntime/kuberuntime_image.go;
containerd, internal/cri/server/images/image_pull.go (ParseAuth).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from lazyimg.imageservice.proto import images_pb2 as pb
from lazyimg.registry.auth import Credential
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.reference import DOCKER_HUB, parse_reference

if TYPE_CHECKING:
    from lazyimg_formats.oci.reference import Reference

MAX_AUTH: Final = 64 << 10
"""Bytes of an AuthConfig; more is no credential."""

_HUB_NAMES: Final = frozenset({"index.docker.io", "registry-1.docker.io", "registry.docker.io"})


@dataclass(frozen=True, slots=True)
class Pull:
    """A credential for a repository.

    Attributes:
        repository: registry and name.
        credential: what to show it.
    """

    repository: str
    credential: Credential


def parse_pull(data: bytes) -> Pull | None:
    """Give the credential that comes with a PullImage; None if none does.

    Raises:
        FormatError: the request cannot be read, or there is a credential that cannot be used. The
            text has nothing of it.
    """
    try:
        request = pb.PullImageRequest.FromString(data)
    except DecodeError:
        request = None  # without the cause: its text may quote the message
    if request is None:
        raise FormatError("PullImage", "is no such request")
    if not request.HasField("auth"):
        return None
    reference = parse_reference(request.image.image)
    auth = request.auth
    if auth.ByteSize() > MAX_AUTH:
        raise FormatError("PullImage", f"its credential has {auth.ByteSize()} bytes")
    if auth.server_address and not _is_for(auth.server_address, reference):
        raise FormatError("PullImage", "its credential is for another registry")
    credential = _parse_auth(auth)
    return None if credential is None else Pull(reference.name, credential)


def _is_for(server: str, reference: Reference) -> bool:
    """Tell whether a server's address, host or URL, is that of a registry."""
    scheme, separator, rest = server.partition("://")
    if separator and scheme not in {"http", "https"}:
        return False
    host = (rest if separator else server).partition("/")[0]
    return host in {reference.registry, reference.host} or (
        reference.registry == DOCKER_HUB and host in _HUB_NAMES
    )


def _parse_auth(auth: pb.AuthConfig) -> Credential | None:
    """Give the first of: name and password, identity token, both in base64, registry token."""
    if auth.username:
        return Credential(auth.username, auth.password)
    if auth.identity_token:
        return Credential(identity_token=auth.identity_token)
    if auth.auth:
        return _parse_basic(auth.auth)
    if auth.registry_token:
        if not (auth.registry_token.isascii() and auth.registry_token.isprintable()):
            raise FormatError("PullImage", "its registry token has characters that none has")
        return Credential(registry_token=auth.registry_token)
    return None


def _parse_basic(text: str) -> Credential:
    try:
        decoded = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        decoded = ""  # without the cause, as above
    username, colon, password = decoded.rstrip("\0").partition(":")
    if not (colon and username):
        raise FormatError("PullImage", "its auth is not base64 of user:password")
    return Credential(username, password)
