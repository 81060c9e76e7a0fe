"""zTOCs that are made of the index of a node."""

from __future__ import annotations

import io
import tarfile

import pytest

from lazyimg_formats.device_table import Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.soci.toc import parse_ztoc
from lazyimg_formats.soci.writer import make_ztoc
from lazyimg_formats.soci.ztoc import Ztoc
from tests.fakes.soci_layer import SociLayer, compress, make_index, stored_digests
from tests.fakes.stream_layers import make_stream_index
from tests.formats.soci.test_ztoc import make


def make_tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in values.items():
        setattr(made, key, value)
    return made


def test_members_of_every_kind() -> None:
    tar = make_tar(
        (member("dir", tarfile.DIRTYPE, mode=0o1777, uid=70_000), b""),
        (member("dir/file", mtime=1.5, pax_headers={"SCHILY.xattr.user.a": "b"}), b"content"),
        (member("link", tarfile.LNKTYPE, linkname="dir/file"), b""),
        (member("symlink", tarfile.SYMTYPE, linkname="/nowhere"), b""),
        (member("null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (member("disk", tarfile.BLKTYPE, devmajor=8), b""),
        (member("fifo", tarfile.FIFOTYPE, gid=5), b""),
        (member("n" * 200), b"long"),
    )
    ztoc = Ztoc(SociLayer(tar).ztoc)
    assert ztoc.tar_size == len(tar.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    entries = list(ztoc.members())
    assert [entry.kind.name.lower() for entry, _ in entries] == [
        "directory", "regular", "hardlink", "symlink", "character", "block", "fifo", "regular",
    ]  # fmt: skip
    assert entries[1][0] == Entry(
        b"dir/file", Kind.REGULAR, 0o644, mtime=1, mtime_ns=500_000_000, size=7,
        xattrs=((b"user.a", b"b"),),
    )  # fmt: skip
    for entry, offset in entries:
        assert tar[offset : offset + entry.size] in {b"", b"content", b"long"}


def test_gzip_members_one_after_the_other() -> None:
    """Each begins at a point of entry, behind its header."""
    tar = make_tar((member("a"), b"a" * 3000), (member("b"), b"b" * 3000))
    blob = compress(tar[:4000]) + compress(b"") + compress(tar[4000:])
    layer = SociLayer(tar, blob, spacing=100_000)
    assert [point.position for point in Ztoc(layer.ztoc).points] == [0, 4000]
    assert parse_ztoc(layer.ztoc).starts == [0, 4000]


def test_sparse_file() -> None:
    headers = {
        "GNU.sparse.map": "10,20", "GNU.sparse.size": "2000", "GNU.sparse.numblocks": "1",
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1",
    }  # fmt: skip
    tar = make_tar((member("sparse", pax_headers=headers), b"a" * 20))
    with pytest.raises(FormatError, match=r"^zTOC: b'sparse' is a sparse file$"):
        SociLayer(tar)


def test_time_that_it_cannot_say() -> None:
    entry = Entry(b"late", Kind.FIFO, mtime=1 << 40)
    with pytest.raises(FormatError, match=r"^zTOC: b'late' has a time of year 0 or beyond 9999$"):
        make([(entry, 512)])


def test_layer_of_zstd_frames() -> None:
    index = make_stream_index(b"\0" * 1024, 1024, codec=Codec.ZSTD)
    with pytest.raises(FormatError, match=r"^zTOC: a layer compressed with zstd has none$"):
        make_ztoc(index, [], 4096)


def test_layer_without_spans() -> None:
    index = make_stream_index(b"\0" * 1024, 1024, spans=[])
    with pytest.raises(FormatError, match=r"^zTOC: a layer without bytes has none$"):
        make_ztoc(index, [], 4096)


def test_windows_are_those_of_the_index() -> None:
    layer = SociLayer()
    index = make_index(layer.blob, layer.tar, layer.spacing)
    ztoc = Ztoc(make_ztoc(index, stored_digests(layer.blob, index), layer.spacing))
    for point in ztoc.points:
        window = layer.tar[max(0, point.position - 32_768) : point.position]
        assert bytes(point.window) == window.rjust(32_768, b"\0")
