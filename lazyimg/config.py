"""The configuration: typed, frozen, with a documented default for everything.

The structures are the settings' one home: the commented default file and the reference in
docs/configuration.md are made from them. `lazyimg.config_file` reads and writes them.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
import msgspec.structs
from msgspec import Meta

from lazyimg.limits import BuildLimits, FillLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
"""What stands behind a number of bytes, and what it is worth."""

_QUANTITY_WORDS: Final = {
    "": "a whole number",
    "size": 'a size such as "64MiB"',
    "duration": 'a duration such as "30s"',
    "deadline": 'a duration such as "60s", or "wait"',
    "patterns": "a list of patterns",
}

_SIZE: Final = {"unit": "size"}
_DURATION: Final = {"unit": "duration"}
_DEADLINE: Final = {"unit": "deadline"}
_PATH: Final = {"unit": "path"}
_PATTERNS: Final = {"unit": "patterns"}
_PROXY: Final = {"unit": "proxy"}

_FILL: Final = FillLimits()
_BUILD: Final = BuildLimits()


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged, and how. Logs go to standard error."""

    level: Annotated[
        str,
        Meta(pattern="^(debug|info|warning|error)$", description="The least severe level shown."),
    ] = "info"
    format: Annotated[
        str,
        Meta(
            pattern="^(text|json)$",
            description="text: a line for people; json: an object on each line.",
        ),
    ] = "text"


class FillSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How missing ranges are fetched, decoded and checked."""

    read_deadline: Annotated[
        float | None,
        Meta(
            description='How long a read waits before it fails with an input/output error. "wait": '
            "until it is killed.",
            extra=_DEADLINE,
        ),
    ] = _FILL.read_deadline
    memory: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 40,
            description="What all fills together hold in memory.",
            extra=_SIZE,
        ),
    ] = _FILL.memory
    background_memory: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 40,
            description="How much of `memory` prefetching may hold; the rest is for readers.",
            extra=_SIZE,
        ),
    ] = _FILL.background_memory
    fetches: Annotated[
        int,
        Meta(ge=1, le=1024, description="Requests to registries at the same time."),
    ] = _FILL.fetches
    background_fetches: Annotated[
        int,
        Meta(ge=1, le=1024, description="How many of `fetches` prefetching may use."),
    ] = _FILL.background_fetches
    merge_gap: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="What lies between two wanted ranges of a blob and is fetched too, "
            "to save a request.",
            extra=_SIZE,
        ),
    ] = _FILL.merge_gap
    min_fetch: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="What a reader's request is widened to, with the data beside it.",
            extra=_SIZE,
        ),
    ] = _FILL.min_fetch
    max_fetch: Annotated[
        int,
        Meta(ge=1 << 12, le=1 << 40, description="What one request asks for at most.", extra=_SIZE),
    ] = _FILL.max_fetch
    max_decode: Annotated[
        int,
        Meta(
            ge=1 << 12,
            le=1 << 40,
            description="What the data of one request may decompress to.",
            extra=_SIZE,
        ),
    ] = _FILL.max_decode
    ahead: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="What is fetched ahead of a reader that reads a file in order. 0: nothing.",
            extra=_SIZE,
        ),
    ] = _FILL.ahead
    ahead_after: Annotated[
        int,
        Meta(ge=0, le=1024, description="Requests in order after which fetching ahead begins."),
    ] = _FILL.ahead_after
    decode_workers: Annotated[
        int,
        Meta(ge=1, le=1024, description="Threads that decompress and compute digests."),
    ] = _FILL.decode_workers
    recent: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="Decompressed data that is kept for the next reads.",
            extra=_SIZE,
        ),
    ] = _FILL.recent
    first: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="What is fetched of an image when it is mounted, before it is read, where "
            "its layers say what is wanted first (eStargz). 0: nothing.",
            extra=_SIZE,
        ),
    ] = _FILL.first
    prefetch_piece: Annotated[
        int,
        Meta(ge=1 << 12, le=1 << 40, description="What a prefetch fills at a time.", extra=_SIZE),
    ] = _FILL.prefetch_piece
    prefetch_pieces: Annotated[
        int,
        Meta(ge=1, le=1024, description="Pieces of one prefetch that are filled side by side."),
    ] = _FILL.prefetch_pieces

    def limits(self) -> FillLimits:
        """Give the same as the fill engine takes it."""
        return FillLimits(**msgspec.structs.asdict(self))


class RegistrySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How registries are reached."""

    connections: Annotated[
        int, Meta(ge=1, le=256, description="Reads of blobs at one registry host at the same time.")
    ] = 16
    connect_timeout: Annotated[
        float,
        Meta(gt=0, le=3600, description="To connect, TLS included.", extra=_DURATION),
    ] = 10.0
    read_timeout: Annotated[
        float,
        Meta(gt=0, le=3600, description="Between two pieces of an answer.", extra=_DURATION),
    ] = 30.0
    retries: Annotated[
        int,
        Meta(ge=0, le=100, description="New tries of a request that may succeed later."),
    ] = 5
    plain_http: Annotated[
        list[str],
        Meta(
            description="Hosts (host or host:port) that are spoken to without TLS. Those on the "
            "loopback interface may be anyway."
        ),
    ] = []
    insecure: Annotated[
        list[str], Meta(description="Hosts whose certificates are not verified.")
    ] = []
    ca_file: Annotated[
        str,
        Meta(description="Further root certificates, PEM. Empty: the system's only.", extra=_PATH),
    ] = ""
    authfile: Annotated[
        str,
        Meta(
            description="Credentials, in the format of Docker's config.json. Empty: those places "
            "where podman and docker keep theirs.",
            extra=_PATH,
        ),
    ] = ""
    hosts_dir: Annotated[
        str,
        Meta(
            description="Mirrors and certificates: a directory with a hosts.toml for each "
            "registry, as containerd has it. It need not exist. Empty: none.",
            extra=_PATH,
        ),
    ] = "/etc/containerd/certs.d"
    mirror_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long a mirror may send nothing before the next one is asked.",
            extra=_DURATION,
        ),
    ] = 10.0
    bytes_in_flight: Annotated[
        int,
        Meta(
            ge=1 << 16,
            le=1 << 40,
            description="What reads may have asked of one registry host and not received yet.",
            extra=_SIZE,
        ),
    ] = 64 << 20
    spool: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 50,
            description="Disk space, below root, for blobs of hosts that send a whole blob where a "
            "part of it was asked for. 0: what was not asked for is passed over.",
            extra=_SIZE,
        ),
    ] = 1 << 30
    proxy: Annotated[
        str,
        Meta(
            description="HTTP proxy for all registries but those on the loopback interface: a URL, "
            "or 'none'. Empty: as HTTP_PROXY and HTTPS_PROXY say.",
            extra=_PROXY,
        ),
    ] = ""
    no_proxy: Annotated[
        list[str],
        Meta(
            description="Hosts that are reached without the proxy, besides those in NO_PROXY: "
            "domains, with all below them, addresses, networks."
        ),
    ] = []


class CachefilesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's cache: its tag, and at which percentage of free space (b) and files (f) it acts.

    The percentages hold for the cache of the other transports as well. Culling starts below `cull`
    and ends above `run`; below `stop` nothing more is stored, and what is not in the cache cannot
    be read. stop < cull < run < 100.
    """

    tag: Annotated[
        str,
        Meta(pattern="^[A-Za-z0-9._-]{1,63}$", description="The cache's name in the kernel."),
    ] = "lazyimg"
    brun: Annotated[int, Meta(ge=0, lt=100, description="Blocks: culling ends.")] = 7
    bcull: Annotated[int, Meta(ge=0, lt=100, description="Blocks: culling starts.")] = 5
    bstop: Annotated[int, Meta(ge=0, lt=100, description="Blocks: storing ends.")] = 1
    frun: Annotated[int, Meta(ge=0, lt=100, description="Files: culling ends.")] = 7
    fcull: Annotated[int, Meta(ge=0, lt=100, description="Files: culling starts.")] = 5
    fstop: Annotated[int, Meta(ge=0, lt=100, description="Files: storing ends.")] = 1


class FuseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """FUSE, for images that are mounted through it."""

    complete: Annotated[
        str,
        Meta(
            pattern="^(file|passthrough)$",
            description="What layers are mounted from that are complete then. file: the cache's "
            "files. passthrough: files of FUSE's tree, which the kernel reads by itself; slower.",
        ),
    ] = "file"
    mount: Annotated[
        str,
        Meta(
            pattern="^(auto|file|loop)$",
            description="How EROFS comes by the files. file: it mounts them, as Linux 6.12 and "
            "later can. loop: by read-only loop devices. auto: file where that works, else loop.",
        ),
    ] = "auto"


class MountSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How images are mounted."""

    read_ahead: Annotated[
        int,
        Meta(
            ge=1 << 12,
            le=1 << 26,
            description="What the kernel reads ahead: the size of its requests when a file is read "
            "from start to end.",
            extra=_SIZE,
        ),
    ] = 1 << 20
    unindexed: Annotated[
        str,
        Meta(
            pattern="^(stream|refuse)$",
            description="What `lazyimg mount` and `prefetch` do with a layer that nobody has made "
            "an index of. stream: the first use reads it whole, once, and makes the index. refuse: "
            "the image is not mounted.",
        ),
    ] = "stream"


class BuildSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What making an image's metadata may take, when it is mounted for the first time here."""

    memory: Annotated[
        int,
        Meta(
            ge=64 << 20,
            le=1 << 40,
            description="What the process that does it may hold in memory: some 1.6 KiB for each "
            "entry of an image of one layer. More is refused: an image may lie.",
            extra=_SIZE,
        ),
    ] = _BUILD.memory
    processor_time: Annotated[
        float,
        Meta(
            ge=1,
            le=86400,
            description="Processor time of that process; an image that takes more is refused.",
            extra=_DURATION,
        ),
    ] = float(_BUILD.processor_time)

    def limits(self) -> BuildLimits:
        """Give the same as the builder takes it."""
        return BuildLimits(memory=self.memory, processor_time=math.ceil(self.processor_time))


class IndexesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the indexes of layers that have none themselves come from, and go.

    What an image's manifest commits to, and what this node has made, is used always.
    """

    referrers: Annotated[
        str,
        Meta(
            pattern="^(off|same-repository)$",
            description="Indexes that refer to an image, as `lazyimg index push` leaves them. "
            "Nothing commits to them: whoever may write to the image's repository decides what its "
            "containers see, until the background check of the layers finds a lie. "
            "same-repository: those in the image's own repository are used.",
        ),
    ] = "off"
    push: Annotated[
        str,
        Meta(
            pattern="^(off|first-use)$",
            description="Whether indexes are pushed to the image's repository without being told "
            "to. first-use: those that a first mount or prefetch has made, in the background, with "
            "the credentials of who asked for it, if these may write there.",
        ),
    ] = "off"


class SnapshotterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshotter that containerd calls."""

    address: Annotated[
        str,
        Meta(
            description="The unix socket for containerd, such as /run/lazyimg/snapshotter.sock. "
            "Empty: there is none.",
            extra=_PATH,
        ),
    ] = ""
    lazy: Annotated[
        list[str],
        Meta(
            description="Which repositories (registry/name, with * and ? as in a shell) are loaded "
            "lazily; images of others are unpacked as usual. Empty: all.",
            extra=_PATTERNS,
        ),
    ] = []
    unindexed: Annotated[
        str,
        Meta(
            pattern="^(eager|stream)$",
            description="What becomes of a layer that nobody has made an index of. eager: "
            "containerd downloads and unpacks it as usual; but not small ones that SOCI leaves "
            "out, below layers that have an index. stream: it is read whole, once, as containerd "
            "pulls the image, and its index made; nothing is unpacked.",
        ),
    ] = "eager"


class CompletionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Images of containers are made local and checked in the background, one after the other.

    Only this finds out that an image's layers are others than it says.
    """

    bytes_per_second: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="What it fetches in a second. 0: images are not completed, nor checked.",
            extra=_SIZE,
        ),
    ] = 16 << 20


class ImageServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The image service that the kubelet may call instead of containerd's.

    It passes every call on, and has lazily loaded images read with the credentials of their pulls.
    """

    address: Annotated[
        str,
        Meta(
            description="The unix socket for the kubelet, such as /run/lazyimg/images.sock. Empty: "
            "there is none.",
            extra=_PATH,
        ),
    ] = ""
    containerd: Annotated[
        str,
        Meta(pattern="^/", description="containerd's socket.", extra=_PATH),
    ] = "/run/containerd/containerd.sock"
    keep: Annotated[
        float,
        Meta(
            gt=0,
            le=8784 * 3600,
            description="How long the credentials of a pull are kept after it, in memory only.",
            extra=_DURATION,
        ),
    ] = 720 * 3600.0


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    root: Annotated[
        str, Meta(pattern="^/", description="Where the daemon keeps its state.", extra=_PATH)
    ] = "/var/lib/lazyimg"
    address: Annotated[
        str, Meta(pattern="^/", description="The daemon's unix socket.", extra=_PATH)
    ] = "/run/lazyimg/lazyimg.sock"
    transport: Annotated[
        str,
        Meta(
            pattern="^(auto|cachefiles|fuse|fanotify)$",
            description="How the kernel asks for what is not local yet. auto: by cachefiles where "
            "the kernel has it, else by fuse; `lazyimg doctor` tries each. docs/kernel.md says "
            "what fanotify cannot promise.",
        ),
    ] = "auto"
    cache: Annotated[
        str,
        Meta(
            description="Where what was fetched is kept; on ext4 or xfs, or btrfs without "
            "cachefiles. Empty: below root, in cache (cachefiles) or devices.",
            extra=_PATH,
        ),
    ] = ""
    domain_id: Annotated[
        str,
        Meta(
            # Newer kernels name a mount by 36 characters of domain and fsid: these must differ.
            pattern="^[A-Za-z0-9._-]{1,16}$",
            description="The domain in which mounted images share devices.",
        ),
    ] = "lazyimg"
    log: LogSettings = LogSettings()
    fill: FillSettings = FillSettings()
    registry: RegistrySettings = RegistrySettings()
    cachefiles: CachefilesSettings = CachefilesSettings()
    fuse: FuseSettings = FuseSettings()
    mount: MountSettings = MountSettings()
    build: BuildSettings = BuildSettings()
    indexes: IndexesSettings = IndexesSettings()
    snapshotter: SnapshotterSettings = SnapshotterSettings()
    completion: CompletionSettings = CompletionSettings()
    image_service: ImageServiceSettings = ImageServiceSettings()

    @property
    def cache_directory(self) -> Path:
        """Where the kernel keeps what was fetched."""
        return Path(self.cache) if self.cache else Path(self.root, "cache")

    @property
    def devices_directory(self) -> Path:
        """Where lazyimg itself keeps what was fetched, if the kernel does not."""
        return Path(self.cache or self.root, "devices")

    @property
    def snapshotter_directory(self) -> Path:
        """Where the snapshotter keeps its records, and what was unpacked."""
        return Path(self.root, "snapshotter")


class Setting(msgspec.Struct, frozen=True):
    """One setting's documentation.

    Attributes:
        key: with its section, as in `fill.workers`.
        annotation: its type, as `msgspec.convert` takes it.
        unit: "size", "duration", "deadline", "path", "patterns", "proxy" or "".
        default: the value in the structure.
        description: one or two sentences.
    """

    key: str
    annotation: Any
    unit: str
    default: Any
    description: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"LAZYIMG_{self.key.replace('.', '_').upper()}"

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        base, meta = get_args(self.annotation)
        pattern: str = meta.pattern or ""
        if pattern.startswith("^("):
            return pattern[2:-2].replace("|", ", ")
        if self.unit == "path":
            return "an absolute path" if pattern else 'an absolute path, or ""'
        if self.unit == "proxy":
            return '"", "none", or a URL such as "http://HOST:PORT"'
        if pattern:
            most = pattern.rpartition(",")[2].removesuffix("}$")
            return f"letters, digits, '.', '_' and '-', at most {most}"
        if get_origin(base) is list:
            return _QUANTITY_WORDS[self.unit] if self.unit else "a list of hosts"
        return _QUANTITY_WORDS[self.unit] + _limits_text(meta, self.unit)


def _limits_text(meta: Meta, unit: str) -> str:
    if unit == "deadline":
        return ""
    most = meta.le if meta.lt is None else meta.lt - 1
    if meta.ge is not None and most is not None:
        return f" from {format_value(meta.ge, unit)} to {format_value(most, unit)}"
    if meta.ge is not None:
        return f", at least {format_value(meta.ge, unit)}"
    return f", above 0, at most {format_value(most, unit)}"


@cache
def list_settings() -> tuple[Setting, ...]:
    """Give every setting, in the file's order."""
    return tuple(_settings_of(Config, ""))


@cache
def list_sections() -> tuple[tuple[str, str], ...]:
    """Give each section's name and what it is about; "" for the settings outside of sections."""
    return (
        ("", "What the daemon is and where its files are."),
        *(
            (name, " ".join((kind.__doc__ or "").split()))
            for name, kind in get_type_hints(Config).items()
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        ),
    )


def _settings_of(structure: type[msgspec.Struct], prefix: str) -> Iterator[Setting]:
    defaults = structure()
    for name, annotation in get_type_hints(structure, include_extras=True).items():
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            yield from _settings_of(annotation, f"{name}.")
        else:
            meta = get_args(annotation)[1]
            unit = (meta.extra or {}).get("unit", "")
            default = getattr(defaults, name)
            yield Setting(prefix + name, annotation, unit, default, meta.description)


def format_value(value: Any, unit: str) -> str:
    """Give a value as people write it: 64MiB, 60s, wait, or itself."""
    if value is None:
        return "wait"
    if unit == "size":
        for name, factor in reversed(SIZE_UNITS.items()):
            if name and value >= factor and value % factor == 0:
                return f"{value // factor}{name}"
    if unit in {"duration", "deadline"}:
        return f"{value:.6f}".rstrip("0").rstrip(".") + "s"
    return str(value)
