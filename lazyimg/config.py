"""The configuration: typed, frozen, with a documented default for everything.

A setting is taken from the first of: a flag, the environment (`LAZYIMG_` and the key in capitals,
`.` as `_`: `fill.workers` is `LAZYIMG_FILL_WORKERS`), the file, the default. The file is TOML. Its
path is `--config`, else `LAZYIMG_CONFIG`, else /etc/lazyimg/config.toml, which need not exist.

Sizes are bytes, as a number or as text with B, KiB, MiB, GiB or TiB. Durations are seconds, as a
number or as text with ms, s, m or h.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from lazyimg.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_FILE: Final = Path("/etc/lazyimg/config.toml")

MAX_FILE_SIZE: Final = 1 << 20
"""Bytes of a configuration file."""

_SIZES: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATIONS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})")

_QUANTITY_WORDS: Final = {
    "": "a whole number",
    "size": 'a size such as "64MiB"',
    "duration": 'a duration such as "30s"',
    "deadline": 'a duration such as "60s", or "wait"',
}

_SIZE: Final = {"unit": "size"}
_DURATION: Final = {"unit": "duration"}
_DEADLINE: Final = {"unit": "deadline"}
_PATH: Final = {"unit": "path"}


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
    ] = 60.0
    memory: Annotated[
        int,
        Meta(
            ge=1 << 26,
            description="Bytes that fills may hold in memory at the same time.",
            extra=_SIZE,
        ),
    ] = 256 << 20
    fetch_size: Annotated[
        int,
        Meta(
            ge=1 << 12,
            le=1 << 26,
            description="Bytes of a blob up to which neighbouring pieces that readers wait for are "
            "fetched by one request.",
            extra=_SIZE,
        ),
    ] = 1 << 20
    prefetch_size: Annotated[
        int,
        Meta(
            ge=1 << 12,
            le=1 << 26,
            description="The same for prefetch, where nobody waits.",
            extra=_SIZE,
        ),
    ] = 4 << 20
    workers: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="Threads that decode and check. 0: one for each processor.",
        ),
    ] = 0


class RegistrySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How registries are reached."""

    connections: Annotated[
        int, Meta(ge=1, le=256, description="Connections to one registry host at the same time.")
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


class CachefilesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's cache: its tag, and at which percentage of free space (b) and files (f) it acts.

    Culling starts below `cull` and ends above `run`; below `stop` nothing more is stored, and what
    is not in the cache cannot be read. stop < cull < run < 100.
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


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    root: Annotated[
        str, Meta(pattern="^/", description="Where the daemon keeps its state.", extra=_PATH)
    ] = "/var/lib/lazyimg"
    address: Annotated[
        str, Meta(pattern="^/", description="The daemon's unix socket.", extra=_PATH)
    ] = "/run/lazyimg/lazyimg.sock"
    cache: Annotated[
        str,
        Meta(
            description="The kernel's cache directory; on ext4 or xfs. Empty: cache below root.",
            extra=_PATH,
        ),
    ] = ""
    domain_id: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9._-]{1,63}$",
            description="The domain in which mounted images share devices.",
        ),
    ] = "lazyimg"
    log: LogSettings = LogSettings()
    fill: FillSettings = FillSettings()
    registry: RegistrySettings = RegistrySettings()
    cachefiles: CachefilesSettings = CachefilesSettings()
    mount: MountSettings = MountSettings()

    @property
    def cache_directory(self) -> Path:
        """Where the kernel keeps what was fetched."""
        return Path(self.cache) if self.cache else Path(self.root, "cache")


class Setting(msgspec.Struct, frozen=True):
    """One setting's documentation.

    Attributes:
        key: with its section, as in `fill.workers`.
        annotation: its type, as `msgspec.convert` takes it.
        unit: "size", "duration", "deadline", "path" or "".
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
        if pattern:
            return "letters, digits, '.', '_' and '-', at most 63"
        if get_origin(base) is list:
            return "a list of hosts"
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


def list_settings() -> Iterator[Setting]:
    """Give every setting, in the file's order."""
    yield from _settings_of(Config, "")


def sections() -> Iterator[tuple[str, str]]:
    """Give each section's name and what it is about; "" for the settings outside of sections."""
    yield "", "What the daemon is and where its files are."
    for name, kind in get_type_hints(Config).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield name, " ".join((kind.__doc__ or "").split())


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


def load_config(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> Config:
    """Give the effective configuration.

    Args:
        file: the `--config` flag; None: the environment's, or the default one if it exists.
        environment: the process's.
        flags: values by key; None means not given.

    Raises:
        ConfigurationError: a file that cannot be read or is not TOML, an unknown key, a value of
            the wrong type or outside of its range.
    """
    settings = {setting.key: setting for setting in list_settings()}
    values: dict[str, Any] = {}
    for key, value, where in _file_values(file, environment):
        if key not in settings:
            raise ConfigurationError(
                where, f"unknown key '{key}'", "'lazyimg config default' lists those there are"
            )
        values[key] = _check(settings[key], value, f"{where}: '{key}'")
    for setting in settings.values():
        text = environment.get(setting.variable)
        if text is not None:
            values[setting.key] = _check(setting, _from_text(setting, text), setting.variable)
        flag = flags.get(setting.key)
        if flag is not None:
            name = f"--{setting.key.replace('.', '-').replace('_', '-')}"
            values[setting.key] = _check(setting, flag, name)
    config = _assemble(values)
    _check_cull_limits(config.cachefiles)
    return config


def _file_values(
    file: Path | None, environment: Mapping[str, str]
) -> Iterator[tuple[str, Any, str]]:
    named = file or (
        Path(environment["LAZYIMG_CONFIG"]) if "LAZYIMG_CONFIG" in environment else None
    )
    path = named or DEFAULT_FILE
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_SIZE + 1)
        if len(data) > MAX_FILE_SIZE:
            raise ConfigurationError(str(path), f"over {MAX_FILE_SIZE} bytes")
        document = tomllib.loads(data.decode())
    except FileNotFoundError as error:
        if named is None:
            return
        raise ConfigurationError(str(path), "does not exist") from error
    except OSError as error:
        raise ConfigurationError(str(path), f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), f"is not TOML: {error}") from error
    names = {name for name, _ in sections()}
    for key, value in document.items():
        if key not in names:
            yield key, value, str(path)
        elif not isinstance(value, dict):
            raise ConfigurationError(str(path), f"'{key}': expected a section, [{key}]")
        else:
            for inner, inner_value in value.items():
                yield f"{key}.{inner}", inner_value, str(path)


def _from_text(setting: Setting, text: str) -> Any:
    """Give a variable's text the form that it would have in the file."""
    base = get_args(setting.annotation)[0]
    if get_origin(base) is list:
        return [part for part in (part.strip() for part in text.split(",")) if part]
    if base is int and not setting.unit and re.fullmatch("-?[0-9]{1,15}", text):
        return int(text)
    return text


def _check(setting: Setting, value: Any, where: str) -> Any:
    """Give a value as the structure holds it."""
    try:
        return msgspec.convert(_normalize(setting.unit, value), setting.annotation)
    except (ValueError, msgspec.ValidationError) as error:
        shown = json.dumps(value, default=str)
        raise ConfigurationError(where, f"expected {setting.expected}, got {shown}") from error


def _normalize(unit: str, value: Any) -> Any:
    if unit == "path" and value and not str(value).startswith("/"):
        raise ValueError(value)
    if unit == "deadline" and value == "wait":
        return None
    if unit in {"duration", "deadline"}:
        seconds = _parse_quantity(value, _DURATIONS)
        if seconds <= 0:
            raise ValueError(value)
        return seconds
    if unit == "size":
        size = _parse_quantity(value, _SIZES)
        if size != int(size):
            raise ValueError(value)
        return int(size)
    return value


def _parse_quantity(value: Any, units: Mapping[str, float]) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError(value)
    return float(match[1]) * units[match[2]]


def _assemble(values: Mapping[str, Any]) -> Config:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return msgspec.convert(tree, Config)


def _check_cull_limits(cachefiles: CachefilesSettings) -> None:
    for kind in "bf":
        run, cull, stop = (getattr(cachefiles, kind + name) for name in ("run", "cull", "stop"))
        if not stop < cull < run:
            raise ConfigurationError(
                "[cachefiles]",
                f"expected {kind}stop < {kind}cull < {kind}run, got {stop}, {cull}, {run}",
            )


def format_value(value: Any, unit: str) -> str:
    """Give a value as people write it: 64MiB, 60s, wait, or itself."""
    if value is None:
        return "wait"
    if unit == "size":
        for name, factor in reversed(_SIZES.items()):
            if name and value >= factor and value % factor == 0:
                return f"{value // factor}{name}"
    if unit in {"duration", "deadline"}:
        return f"{value:g}s"
    return str(value)


def serialize_config(config: Config, *, comments: bool = False) -> str:
    """Give a configuration as TOML; with `comments`, each setting's description above it."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    lines = []
    for section, text in sections():
        if section:
            lines += ["", f"[{section}]"]
        if comments:
            lines += _comment(text)
        table = values[section] if section else values
        for setting in list_settings():
            owner, _, name = setting.key.rpartition(".")
            if owner != section:
                continue
            if comments:
                lines += ["", *_comment(f"{setting.description} ({setting.variable})")]
            lines.append(f"{name} = {_toml_value(table[name], setting.unit)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any, unit: str) -> str:
    if unit in {"size", "duration", "deadline"}:
        value = format_value(value, unit)
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > 76:
            lines.append("")
        lines[-1] += f" {word}"
    return [f"#{line}" for line in lines]
