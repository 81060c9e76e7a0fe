"""The configuration's file, environment and flags, checked and put together.

A setting is taken from the first of: a flag, the environment (`LAZYIMG_` and the key in capitals,
`.` as `_`: `fill.memory` is `LAZYIMG_FILL_MEMORY`), the file, the default. The file is TOML. Its
path is `--config`, else `LAZYIMG_CONFIG`, else /etc/lazyimg/config.toml, which need not exist.

Sizes are bytes, as a number or as text with B, KiB, MiB, GiB or TiB. Durations are seconds, as a
number or as text with ms, s, m or h.
"""

from __future__ import annotations

import json
import re
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin

import msgspec

from lazyimg.config import (
    SIZE_UNITS,
    CachefilesSettings,
    Config,
    Setting,
    format_value,
    list_sections,
    list_settings,
)
from lazyimg.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_FILE: Final = Path("/etc/lazyimg/config.toml")

MAX_FILE_SIZE: Final = 1 << 20
"""Bytes of a configuration file."""

_DURATIONS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})")


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
        document = _parse_toml(path, data)
    except FileNotFoundError as error:
        if named is None:
            return
        raise ConfigurationError(str(path), "does not exist") from error
    except OSError as error:
        raise ConfigurationError(str(path), f"cannot be read: {error.strerror}") from error
    names = {name for name, _ in list_sections()}
    for key, value in document.items():
        if key not in names:
            yield key, value, str(path)
        elif not isinstance(value, dict):
            raise ConfigurationError(str(path), f"'{key}': expected a section, [{key}]")
        else:
            for inner, inner_value in value.items():
                yield f"{key}.{inner}", inner_value, str(path)


def _parse_toml(path: Path, data: bytes) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  most machines have no file

    try:
        return tomllib.loads(data.decode())
    except ValueError as error:
        raise ConfigurationError(str(path), f"is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigurationError(str(path), "is not TOML: nested too deeply") from error


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
        if not 0 < seconds < inf:  # nor is it a NaN
            raise ValueError(value)
        return seconds
    if unit == "size":
        size = _parse_quantity(value, SIZE_UNITS)
        if size % 1:  # also of infinity and NaN
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


def serialize_config(config: Config, *, comments: bool = False) -> str:
    """Give a configuration as TOML; with `comments`, each setting's description above it."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    lines = []
    for section, text in list_sections():
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
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML wants it so


def _comment(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > 76:
            lines.append("")
        lines[-1] += f" {word}"
    return [f"#{line}" for line in lines]
