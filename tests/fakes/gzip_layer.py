"""A small layer as most images have them: a tar, compressed with gzip."""

from __future__ import annotations

import gzip
import io
import tarfile

FILES = {"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 2000}


def make_tar(files: dict[str, bytes] | None = None) -> bytes:
    """Give a layer's tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (FILES if files is None else files).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def make_layer(files: dict[str, bytes] | None = None) -> dict[bytes, bytes]:
    """Give a gzip layer and its tar, as `FakeRegistry.add_image` takes them."""
    tar = make_tar(files)
    return {gzip.compress(tar, mtime=0): tar}
