"""Where images come from and go to: a repository of a registry, or an image layout on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable
    from pathlib import Path

    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a registry and what to show it.

    Attributes:
        authfile: credentials in the format of Docker's config.json; None: the usual places.
        username: with `password`, taken before any file.
        password: see `username`.
        plain_http: allow HTTP without TLS to a registry that is not on the loopback interface.
        insecure: do not verify certificates.
        ca_file: further root certificates (PEM).
        hosts_dir: directory of hosts.toml files, as containerd has them; None: there are none.
        node: for what containerd asks for: a credential that came with one of its pulls counts
            before any file, and whoever it was, the node may read the image from then on.
    """

    authfile: Path | None = None
    username: str = ""
    password: str = ""
    plain_http: bool = False
    insecure: bool = False
    ca_file: Path | None = None
    hosts_dir: Path | None = None
    node: bool = False

    def __repr__(self) -> str:
        """Leave the password out: this may reach a log."""
        return f"Access(authfile={self.authfile!r}, username={self.username!r})"


@runtime_checkable
class ImageSource(Protocol):
    """One repository, to read from. Every method raises LazyimgError, NotFoundError among them."""

    @property
    def name(self) -> str:
        """What messages call it, without secrets: ``docker.io/library/debian``."""
        ...

    async def fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        """Give the manifest or index under a digest or a tag, and its descriptor.

        Duties: the bytes have the descriptor's digest, and the digest asked for; they are at most
        `MAX_DOCUMENT` long; the descriptor has the media type.
        """
        ...

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Give exactly `length` bytes at `offset`, not verified: a part has no digest.

        Duties: authenticate, and retry what may be retried. The caller sets the deadline by
        cancelling.
        """
        ...

    def distrust(self, descriptor: Descriptor, offset: int, length: int) -> bool:
        """Take note that what `read_blob` gave for this range is not what it should be.

        Returns:
            Whether asking again may give other bytes: they came from one of several hosts.
        """
        ...

    def stream_blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """Give the whole blob in pieces.

        Duties: after the last piece, CorruptError unless size and digest are the descriptor's;
        goes on where it was after a broken connection.
        """
        ...


class BlobFile(Protocol):
    """A blob in an open file of this machine, closed with the last reference to it."""

    def peek(self, offset: int, length: int) -> memoryview | None:
        """Give bytes of the blob that are in memory, valid until this thread peeks again.

        Duties: wait for nothing, not even a disk; None whatever goes wrong. Any thread may call.
        """
        ...


@runtime_checkable
class FileSource(ImageSource, Protocol):
    """A source whose blobs are files of this machine."""

    async def open_blob(self, descriptor: Descriptor) -> BlobFile:
        """Open a blob; raises LazyimgError when it is not there, or of another size."""
        ...


@runtime_checkable
class ProvingSource(ImageSource, Protocol):
    """A repository that not everybody may read."""

    async def user(self) -> str:
        """Give the user name that the registry is shown; "" for none."""
        ...

    async def hosts(self) -> frozenset[str]:
        """Give the hosts, the registry or mirrors of it, that are configured to be asked."""
        ...

    async def prove_blob(self, descriptor: Descriptor) -> str:
        """Ask whether a blob may be read here; raises AccessDeniedError if not.

        Returns:
            Which of the hosts has let it be read.
        """
        ...


@runtime_checkable
class ReferrerSource(ImageSource, Protocol):
    """A repository that knows what refers to its manifests."""

    async def referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        """Give the manifests whose subject has a digest: `artifact_type` says what each is.

        Nobody vouches for this list, nor for what is in it: whoever may write to the repository
        can add to it.
        """
        ...


@runtime_checkable
class ImageTarget(Protocol):
    """One repository, to write to. Every method raises LazyimgError."""

    @property
    def name(self) -> str:
        """What messages call it, without secrets."""
        ...

    async def has_blob(self, digest: Digest) -> bool:
        """Tell whether the blob is there already."""
        ...

    async def mount_blob_from(self, source: ImageSource, descriptor: Descriptor) -> bool:
        """Take the blob over from `source` without moving its bytes, where that is possible.

        Returns:
            Whether the blob is there now; otherwise push it.
        """
        ...

    async def push_blob(self, chunks: AsyncIterable[bytes], digest: Callable[[], Digest]) -> int:
        """Take in a blob; gives its size in bytes.

        Args:
            chunks: its bytes, in pieces of any size.
            digest: asked once, after the last piece, for the digest of them all.

        Duties: the blob exists only if its bytes have that digest (CorruptError otherwise);
        a failure, `chunks` failing among them, leaves nothing behind.
        """
        ...

    async def push_manifest(
        self, data: bytes, media_type: str, tag: str | None = None
    ) -> Descriptor:
        """Take in a manifest or index, after everything that it names.

        Args:
            data: its bytes, kept as they are.
            media_type: what it is.
            tag: what to call it from now on. None: an index names it, or is about to. "": an
                image of its own, without a name.
        """
        ...


@runtime_checkable
class ReferrerTarget(ReferrerSource, ImageTarget, Protocol):
    """A repository that takes manifests which refer to others."""

    async def push_referrer(self, data: bytes, media_type: str) -> Descriptor:
        """Take in a manifest that has a subject, after all blobs that it names; it is listed then.

        Args:
            data: its bytes, kept as they are.
            media_type: what it is.
        """
        ...

    async def remove_referrer(self, subject: Digest, referrer: Digest) -> str:
        """Take a manifest out of the list of what refers to `subject`, and remove it.

        Returns:
            Why it is still there, though no longer listed; "" if it is gone.
        """
        ...
