"""What fuzzing starts from: small valid inputs of every parser.

The project's own writers make them where there are any.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import struct
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zstandard

from lazyimg.api.messages import StatusReply
from lazyimg.config import Config
from lazyimg.config_file import serialize_config
from lazyimg.convert.layer import LayerConversion
from lazyimg.images.build import BuildReply
from lazyimg.images.check import CheckReply
from lazyimg.images.library import LayerRecord
from lazyimg.imageservice.proto import images_pb2
from lazyimg.snapshotter.lifecycle import GID_MAP, UID_MAP
from lazyimg_formats.containerd.labels import MANIFEST, REFERENCE
from lazyimg_formats.device_table import (
    BLOCK_SIZE,
    PARTS,
    Codec,
    Extent,
    Span,
    serialize_device_table,
)
from lazyimg_formats.erofs.chunk import Chunk, ChunkFormat, serialize_chunks
from lazyimg_formats.erofs.dirent import serialize_block
from lazyimg_formats.erofs.layout import EROFS_SUPER_OFFSET, FileType
from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.erofs.xattr import serialize_body
from lazyimg_formats.index_artifact import (
    ARTIFACT,
    INDEX_DIGEST,
    INDEX_SIZE,
    LAYER_DIGEST,
    LAYER_INDEX,
)
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import serialize_document
from lazyimg_formats.soci.writer import make_ztoc, serialize_ztoc
from lazyimg_formats.soci.ztoc import GZIP, POINTS
from lazyimg_formats.stream_index import StreamSpan
from lazyimg_formats.zstd_chunked.location import (
    TocLocation,
    serialize_annotations,
    serialize_footer,
)
from lazyimg_formats.zstd_frames import serialize_skippable
from tests.fakes.devices import encode
from tests.fakes.soci_layer import SociLayer, make_soci_index
from tests.fakes.stream_layers import make_stream_index

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DIGEST = "sha256:" + "ab" * 32
TEXT = b"The same words, the same words, again and again. " * 20


def memory_directory() -> str:
    """Give a directory in memory, if there is one."""
    shared = Path("/dev/shm")  # noqa: S108 - shared memory
    return str(shared) if shared.is_dir() else tempfile.gettempdir()


def cachefiles() -> list[bytes]:
    opened = struct.pack("=IIIIIIII", 7, 0, 50, 1, 13, 5, 9, 0) + b"erofs,domain\0" + b"image"
    read = struct.pack("=IIIIQQ", 7, 2, 32, 1, 4096, 131_072)
    return [opened, read, struct.pack("=IIII", 7, 1, 16, 1)]


def fanotify() -> list[bytes]:
    access = struct.pack("=IBBHQiiBBHIQQ", 48, 3, 0, 24, 1 << 20, 9, 77, 6, 0, 24, 0, 4096, 8192)
    overflow = struct.pack("=IBBHQii", 24, 3, 0, 24, 1 << 14, -1, 0)
    return [access, overflow, access + overflow + access]


def fuse() -> list[bytes]:
    bodies = {
        1: b"name\0",
        2: bytes(8),
        3: bytes(16),
        14: bytes(8),
        15: struct.pack("=QQIIQII", 0, 4096, 131_072, 0, 0, 0, 0),
        17: b"",
        26: struct.pack("=IIIII44x", 7, 45, 131_072, 1 << 30, 1 << 7),
        36: bytes(8),
        42: struct.pack("=IIQQ", 1, 0, 7, 1),
    }
    return [
        struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 7, 1, 0, 0, 0, 0, 0) + body
        for opcode, body in bodies.items()
    ]


def erofs() -> list[bytes]:
    """An image without a checksum, which a fuzzer would not find again."""
    file = Node(mode=0o100644, size=9, data=b"some text")
    far = Node(mode=0o100755, size=5000, mtime=-1, data=FlatData(0, 0), xattrs=((b"user.a", b"b"),))
    link = Node(mode=0o120777, target=b"b/far", size=5)
    device = Node(mode=0o020600, rdev=0x103)
    below = Node(mode=0o040755, children={b"far": far, b"again": file, b"null": device})
    root = Node(mode=0o040755, children={b"a": file, b"b": below, b"link": link})
    image = bytearray(serialize_image(root, [Device("d" * 64, 2)]))
    image[EROFS_SUPER_OFFSET + 8] &= ~1  # feature_compat: no checksum
    return [bytes(image)]


def erofs_parts() -> list[bytes]:
    """An image's structures, and a directory's block, attributes, chunks."""
    (image,) = erofs()
    names = (b".", b"..", b"name")
    kinds = [FileType.DIR, FileType.DIR, FileType.REG_FILE]
    attributes = ((b"user.a", b"b"), (b"security.capability", b"\x01\0\0\2"))
    inodes = [image[at : at + 64] for at in range(1280, 1280 + 512, 32)]
    return [
        image[EROFS_SUPER_OFFSET : EROFS_SUPER_OFFSET + 128],
        image[1152:1280],
        *inodes,
        serialize_block(names, [36, 36, 40], kinds),
        serialize_body(attributes, [1, 2]),
        serialize_chunks([Chunk(1, 7), Chunk(0, None)], ChunkFormat(12, indexes=True)),
    ]


@cache
def tar() -> bytes:
    """A tar with a member of every kind, in the PAX format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, kind in enumerate((b"5", b"0", b"1", b"2", b"3", b"4", b"6")):
            member = tarfile.TarInfo(f"d/m{number}" if number else "d")
            member.type = kind
            member.mtime = 1.5
            member.linkname = "d/m1" if kind in b"12" else ""
            member.devmajor, member.devminor = 1, 3
            data = TEXT if kind == b"0" else b""
            member.size = len(data)
            member.pax_headers = {"SCHILY.xattr.user.name": "value", "comment": "x" * 200}
            archive.addfile(member, io.BytesIO(data))
        for name in ("d/.wh.m2", "d/.wh..wh..opq", "d/" + "n" * 200):
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def tars() -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("long/" * 30))
    sparse = b"30 path=x\n22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    return [tar(), buffer.getvalue(), _pax_member(sparse, b"1\n0\n512\n".ljust(512, b"\0"))]


def _pax_member(records: bytes, payload: bytes) -> bytes:
    member = tarfile.TarInfo("pax")
    member.type, member.size = b"x", len(records)
    file = tarfile.TarInfo("file")
    file.size = len(payload)
    parts = [member.tobuf(tarfile.USTAR_FORMAT), records, bytes(-len(records) % 512)]
    parts += [file.tobuf(tarfile.USTAR_FORMAT), payload, bytes(-len(payload) % 512)]
    return b"".join(parts) + bytes(1024)


def tar_parts() -> list[bytes]:
    return [
        b"30 mtime=1350244992.023960108\n",
        b"19 SCHILY.xattr.a=b\n",
        b"29 GNU.sparse.map=0,512,1024,1\n26 GNU.sparse.size=2000\n",
        b"2\n0\n512\n1024\n512\n".ljust(512, b"\0"),
        b"\x80\0\0\0\0\0\0\0\0\0\0\x07",
        b"0000644\0",
        b"0,512,1024,512",
        tarfile.TarInfo("name").tobuf(tarfile.GNU_FORMAT),
    ]


def frames() -> list[bytes]:
    known = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    return [known, unknown, serialize_skippable(b"payload") + known, known + unknown]


def spans() -> list[bytes]:
    length = (len(TEXT) - 1).to_bytes(2, "little")
    stored = {
        Codec.RAW: TEXT,
        Codec.ZSTD: frames()[0],
        Codec.GZIP: gzip.compress(TEXT, mtime=0),
        Codec.ZSTD_PART: frames()[1],
        Codec.LZ4: encode(TEXT, Codec.LZ4),
        Codec.LZ4_PART: encode(TEXT, Codec.LZ4),
        Codec.DEFLATE_PART: encode(TEXT, Codec.DEFLATE) + bytes(8) + gzip.compress(TEXT),
    }
    whole = [bytes([codec]) + length + data for codec, data in stored.items()]
    return [*whole, *(bytes([codec + 2 * len(Codec)]) + b"\7\0" + stored[codec] for codec in PARTS)]


def compressed() -> list[bytes]:
    packed = gzip.compress(TEXT, mtime=0)
    return [packed, packed + packed, frames()[1] + frames()[0], tar()]


@cache
def _converted() -> tuple[bytes, TocLocation]:
    """Convert the tar; give the index's JSON and where it was."""

    async def convert() -> tuple[bytes, TocLocation]:
        async def source() -> AsyncIterator[bytes]:
            yield tar()

        with ThreadPoolExecutor(1) as executor:
            conversion = LayerConversion(
                "layer", Digest.of(tar()), level=1, executor=executor, depth=1
            )
            blob = b"".join([piece async for piece in conversion.convert(source())])
        location = conversion.result.toc
        data = blob[location.offset : location.offset + location.length]
        return location.decode(data), location

    return asyncio.run(convert())


def tocs() -> list[bytes]:
    return [_converted()[0]]


def stargz_tocs() -> list[bytes]:
    file = {"type": "reg", "size": 9, "offset": 100, "digest": DIGEST, "chunkDigest": DIGEST}
    entries = [
        {"name": ".no.prefetch.landmark"} | file | {"size": 1, "offset": 90},
        {"name": "a/", "type": "dir", "mode": 493, "modtime": "2023-11-14T22:13:20Z"},
        {"name": "a/b", "xattrs": {"user.a": "AP8="}, "chunkSize": 5} | file,
        {"name": "a/b", "type": "chunk", "offset": 200, "chunkOffset": 5, "chunkDigest": DIGEST},
        {"name": "a/c"} | file | {"offset": 200, "innerOffset": 512},
        {"name": "a/d", "type": "symlink", "linkName": "b"},
        {"name": "a/e", "type": "hardlink", "linkName": "a/b"},
        {"name": "a/f", "type": "char", "devMajor": 1, "devMinor": 3},
        {"name": "a/.wh.g", "type": "reg"},
    ]
    return [json.dumps({"version": 1, "entries": entries}).encode()]


def stargz_locations() -> list[bytes]:
    """A TOC's member, not compressed, and each kind of footer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("stargz.index.json")
        member.size = len(stargz_tocs()[0])
        archive.addfile(member, io.BytesIO(stargz_tocs()[0]))
    extras = [b"SG\x16\0" + b"0" * 15 + b"5STARGZ", b"0" * 15 + b"5STARGZ"]
    extras.append(b"SG\x11\0STARGZEXTERNALTOC")
    toc = b"files" + gzip.compress(buffer.getvalue(), compresslevel=0, mtime=0)
    heads = [b"\x1f\x8b\x08\4" + bytes(6) + struct.pack("<H", len(extra)) for extra in extras]
    footers = [
        head + extra + b"\1\0\0\xff\xff" + bytes(8)
        for head, extra in zip(heads, extras, strict=True)
    ]
    return [toc[5:], *(toc + footer for footer in footers)]


def toc_locations() -> list[bytes]:
    location = _converted()[1]
    annotations = serialize_annotations(location).items()
    text = "\n".join(f"{name}={value}" for name, value in annotations)
    return [text.encode(), serialize_footer(location), b"2024-02-29T01:02:03.5+01:00"]


def device_tables() -> list[bytes]:
    parts = [Extent(0, 4096, 0, 0), Extent(4096, 100, 1, 0), Extent(8192, 100, 1, 100)]
    stored = [
        Span(0, 100, 4096, bytes(32), Codec.ZSTD),
        Span(100, 200, 200, bytes(32), Codec.RAW),
    ]
    return [serialize_device_table(3 * BLOCK_SIZE, parts, stored)]


def ztocs() -> list[bytes]:
    """Small ones: an old zTOC leaves out the only point of entry, and so its window."""
    layer = SociLayer()
    members = [
        (Entry(b"dir/", Kind.DIRECTORY, 0o755, mtime=5), 512),
        (Entry(b"dir/file", Kind.REGULAR, 0o644, size=600, xattrs=((b"user.a", b"b"),)), 1024),
        (Entry(b"dir/link", Kind.HARDLINK, target=b"dir/file"), 2560),
    ]
    old = serialize_ztoc(900, 4096, members, GZIP, POINTS.pack(1, 4096), [bytes(32)])
    plain = make_ztoc(make_stream_index(tar(), 4096), [], 4096)
    return [old, plain, serialize_document(make_soci_index([layer]))]


def stream_indexes() -> list[bytes]:
    archive = tar()
    window = zstandard.compress(TEXT)
    half = len(archive) // 2
    stretches = [
        StreamSpan(0, half + 1, half, bytes(32)),
        StreamSpan(half, len(archive) - half, len(archive) - half, bytes(32), 5, len(window)),
    ]
    return [
        make_stream_index(archive, 1000),
        make_stream_index(archive, half, codec=Codec.DEFLATE, spans=stretches, windows=window),
    ]


def documents() -> list[bytes]:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 5}
    platform = {"architecture": "arm64", "os": "linux", "variant": "v8"}
    rootfs = {"type": "layers", "diff_ids": [DIGEST]}
    index = {"mediaType": LAYER_INDEX, "digest": DIGEST, "size": 500}
    artifact = {"artifactType": ARTIFACT, "config": layer, "subject": layer}
    committed = {INDEX_DIGEST: DIGEST, INDEX_SIZE: "500"}
    texts = (
        {
            "schemaVersion": 2,
            **artifact,
            "layers": [{**index, "annotations": {LAYER_DIGEST: DIGEST}}],
        },
        {"schemaVersion": 2, "config": layer, "layers": [{**layer, "annotations": committed}]},
        {"schemaVersion": 2, "config": layer, "layers": [layer, layer]},
        {"schemaVersion": 2, "manifests": [layer, {**layer, "platform": platform}]},
        {"architecture": "amd64", "os": "linux", "rootfs": rootfs},
        {"errors": [{"code": "DENIED", "message": "no", "detail": {"a": [1]}}]},
    )
    return [json.dumps(text).encode() for text in texts]


def hosts() -> list[bytes]:
    """Files that name the hosts of a registry."""
    return [
        b'server = "https://up.test"\nca = ["a.pem", "/b.pem"]\nproxy = "http://u:p@proxy:1"\n',
        b"""\
[host."http://mirror.test:5000/x"]
capabilities = ["pull", "resolve", "push"]
client = [["a", "b"], "c"]
skip_verify = true
override_path = true
dial_timeout = "1m0.5s"
[host."http://mirror.test:5000/x".header]
x-a = ["1", "2"]
""",
    ]


def references() -> list[bytes]:
    return [
        b"busybox",
        b"docker.io/library/busybox:1.36",
        b"[::1]:5000/a/b@" + DIGEST.encode(),
        b"oci:/a/b:tag",
        b"oci-archive:/a/b.tar@" + DIGEST.encode(),
        b"docker://localhost:5000/x:y@" + DIGEST.encode(),
        b"containerd:docker.io/library/x:latest",
        b"linux/arm64/v8",
    ]


def labels() -> list[bytes]:
    said = {REFERENCE: "docker.io/library/x:1", MANIFEST: DIGEST}
    return [
        b'labels."a.b"==x,name!="y\\x41",kind~=/^a|b$/, size',
        "\n".join(f"{name}={text}" for name, text in said.items()).encode(),
        f"{UID_MAP}=0:100000:65536,70000:1:1\n{GID_MAP}=0:100000:65536".encode(),
    ]


def containerd_configurations() -> list[bytes]:
    plugin = b'[proxy_plugins.lazyimg]\ntype = "snapshot"\naddress = "/x"\n'
    disabled = b'version = 3\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
    return [b"\n", plugin, disabled, b"# c\n[plugins.'a.b']\nx = 1.5 # y\n", b"containerd x v1.7.2"]


def mount_tables() -> list[bytes]:
    plain = b"36 35 98:0 /mnt1 /mnt\\0402 rw master:1 - ext3 /dev/root rw,errors=continue\n"
    served = b"25 1 0:22 / / rw shared:1 shared:2 - erofs none ro,fsid=a,domain_id=lazyimg\n"
    maps = b"7f0-7f1 r-xp 00000000 fe:00 1234   /usr/lib/x.so (deleted)\n7f1-7f2 rw-p 0 0:0 0\n"
    return [plain + served, maps]


def config() -> list[bytes]:
    return [
        serialize_config(Config()).encode(),
        b'[fill]\nread_deadline = "wait"\nmemory = "1.5GiB"\n[registry]\nplain_http = ["a:1"]\n',
        b"64MiB",
        b"host:5000, other",
        b"/var/lib",
        b"90 s",
    ]


def headers() -> list[bytes]:
    return [
        b'Bearer realm="https://a/token",service="a",scope="repository:x:pull", Basic realm=x',
        b"bytes 0-9/100",
        b"120",
        b"Fri, 31 Dec 1999 23:59:59 GMT",
        b"/v2/x/blobs/uploads/1?_state=a%20b",
        b"https://user:secret@host:1/p?X-Amz-Signature=1#f",
    ]


def tokens() -> list[bytes]:
    return [
        b'{"token":"abc","expires_in":300,"issued_at":"2024-01-01T00:00:00Z"}',
        b'{"access_token":"a.b-c","expires_in":1e3}',
        b'{"ServerURL":"r.test","Username":"me","Secret":"x"}',
    ]


def credentials() -> list[bytes]:
    return [
        b'{"auths":{"https://r.test:5000/v2/":{"auth":"bWU6c2VjcmV0"}}}',
        b'{"auths":{"r.test:5000/team":{"username":"me","password":"p"},"x":{}}}',
        b'{"auths":{"r.test:5000":{"identitytoken":"t"}},"credHelpers":{"r.test:5000":"x"}}',
        b'{"credsStore":"desktop","auths":null}',
    ]


def layouts() -> list[bytes]:
    """The marker, an index, and a tar of both."""
    index = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    marker = b'{"imageLayoutVersion":"1.0.0"}'
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("oci-layout", marker), ("index.json", index)):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(data), {"comment": "x"}
            archive.addfile(member, io.BytesIO(data))
    return [marker, index, buffer.getvalue()]


def proxies() -> list[bytes]:
    return [b"http://u:p@proxy.test:3128", b"proxy:1", b".a.test,b:80,10.0.0.0/8,[::1]:5,fe80::/10"]


def messages() -> list[bytes]:
    status = StatusReply(
        version="1", pid=1, transport="x", root="/", uptime=1.5, mounts=[], reads=0,
        reads_failed=0, fetched=0, fetches=0,
    )  # fmt: skip
    return [
        b'{"reference":"a","directory":"/b","access":{"username":"x"}}',
        b'{"references":["a"],"paths":["/x*"]}',
        b'{"reference":"a","present":1,"total":2,"done":true,"error":null}',
        b'{"kind":"not-found","what":"a","problem":"b","remedy":"","exit_code":70}',
        msgspec.json.encode(status),
    ]


def image_pulls() -> list[bytes]:
    auths = (
        images_pb2.AuthConfig(username="u", password="p", server_address="https://a.test/v1/"),
        images_pb2.AuthConfig(auth="dTpw", server_address="a.test"),
        images_pb2.AuthConfig(identity_token="i"),
        images_pb2.AuthConfig(registry_token="r"),
    )
    image = images_pb2.ImageSpec(image="a.test/b:c")
    requests = [images_pb2.PullImageRequest(image=image, auth=auth) for auth in auths]
    return [request.SerializeToString() for request in requests]


def records() -> list[bytes]:
    layer = LayerRecord("sha256:a", 1, "m", "zstd:chunked", "t", "d", 4096)
    access = b'{"authfile":"/a","plain_http":true,"insecure":false,"ca_file":"/b","hosts_dir":""}'
    return [
        access,
        msgspec.json.encode(BuildReply("f", 4096)),
        msgspec.json.encode([layer]),
        msgspec.json.encode(CheckReply()),
        b'{"repository":"r","end":1e9,"username":"u","password":"p"}\n',
        b'{"repository":"r","username":"u","password":"p","access":' + access + b"}\n",
        b"READY=1\nFDSTORE=1\nFDNAME=api\nSTATUS=serving",
    ]
