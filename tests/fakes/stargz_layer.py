"""Layers as stargz-snapshotter makes them: eStargz, and its zstd:chunked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
from typing import TYPE_CHECKING, Any, Final

import zstandard

from lazyimg_formats.estargz.location import TOC_DIGEST
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Descriptor
from lazyimg_formats.zstd_chunked.location import OLD_CHECKSUM, OLD_POSITION
from lazyimg_formats.zstd_frames import serialize_skippable

if TYPE_CHECKING:
    from collections.abc import Mapping

LANDMARK: Final = ".no.prefetch.landmark"
WANTED: Final = ".prefetch.landmark"
TIME: Final = 1_700_000_000
TIME_TEXT: Final = "2023-11-14T22:13:20Z"


class StargzLayer:
    """A layer of regular files.

    Args:
        files: name to content.
        zstd: zstd frames, not gzip members.
        chunk: bytes of a file after which the next chunk begins.
        joined: how many chunks lie in one member.
        external: the TOC is elsewhere.
        wanted: how many of the files are wanted first.
        shifted: the TOC lies: the last chunk is a byte further inside its member.

    Attributes:
        blob: the layer, whole.
        tar: what it decompresses to.
        toc: the JSON.
        annotations: of its descriptor.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        zstd: bool = False,
        chunk: int = 4 << 20,
        joined: int = 1,
        external: bool = False,
        shifted: bool = False,
        wanted: int = 0,
    ) -> None:
        self._zstd = zstd
        self._members = [bytearray()]
        self._entries: list[tuple[int, dict[str, Any]]] = []
        self._chunk, self._joined, self._chunks = chunk, joined, 0
        landmark = (WANTED if wanted else LANDMARK, b"\x0f")
        contents = list(files.items())
        for name, content in (*contents[:wanted], landmark, *contents[wanted:]):
            self._add(name, content)
        if shifted:
            self._entries[-1][1]["innerOffset"] += 1
        self.annotations: dict[str, str] = {}
        self._finish(external=external)

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(content), TIME
        self._members[-1] += member.tobuf(tarfile.USTAR_FORMAT)
        entry: dict[str, Any] = {"name": name, "type": "reg", "mode": 420, "modtime": TIME_TEXT}
        entry |= {"size": len(content), "digest": digest_of(content)}
        if not content:
            self._entries.append((0, entry))
        for at in range(0, len(content), self._chunk):
            if self._chunks % self._joined == 0:
                self._members.append(bytearray())
            self._chunks += 1
            part = content[at : at + self._chunk]
            entry |= {"innerOffset": len(self._members[-1]), "chunkDigest": digest_of(part)}
            entry |= {"chunkOffset": at, "chunkSize": len(part) if len(part) == self._chunk else 0}
            self._entries.append((len(self._members) - 1, entry))
            self._members[-1] += part
            entry = {"name": name, "type": "chunk"}
        self._members[-1] += bytes(-len(content) % 512)

    def _finish(self, *, external: bool) -> None:
        self.blob = b""
        offsets = []
        for data in self._members:
            offsets.append(len(self.blob))
            self.blob += self._compress(bytes(data))
        for number, entry in self._entries:
            if number:
                entry["offset"] = offsets[number]
        entries = [{k: v for k, v in entry.items() if v} for _, entry in self._entries]
        self.toc = json.dumps({"version": 1, "entries": entries}).encode()
        self.annotations[TOC_DIGEST] = digest_of(self.toc)
        self.toc_offset = len(self.blob)
        self.tar = b"".join(self._members)
        if self._zstd:
            self._add_zstd_toc()
        elif external:
            self.blob += footer(b"SG\x11\0STARGZEXTERNALTOC")
        else:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                member = tarfile.TarInfo("stargz.index.json")
                member.size = len(self.toc)
                archive.addfile(member, io.BytesIO(self.toc))
            self.tar += buffer.getvalue()
            self.blob += gzip.compress(buffer.getvalue(), mtime=0)
            self.blob += footer(b"SG\x16\0%016xSTARGZ" % self.toc_offset)

    def _add_zstd_toc(self) -> None:
        stored = self._compress(self.toc)
        offset = len(self.blob) + 8
        numbers = (offset, len(stored), len(self.toc), 1)
        self.blob += serialize_skippable(stored)
        self.blob += serialize_skippable(struct.pack("<4Q8s", *numbers, b"GnUlInUx"))
        self.annotations[OLD_POSITION] = ":".join(map(str, numbers))
        self.annotations[OLD_CHECKSUM] = digest_of(stored)

    def _compress(self, data: bytes) -> bytes:
        if self._zstd:
            return zstandard.ZstdCompressor(write_content_size=False).compress(data)
        return gzip.compress(data, mtime=0)

    @property
    def diff_id(self) -> Digest:
        return Digest.of(self.tar)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(
            media_type=OCI_LAYER_ZSTD if self._zstd else OCI_LAYER_GZIP,
            digest=Digest.of(self.blob),
            size=len(self.blob),
            annotations=self.annotations,
        )


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def footer(extra: bytes) -> bytes:
    """Give an empty gzip member with an extra field, in one stored block."""
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra))
    return head + extra + b"\1\0\0\xff\xff" + bytes(8)
