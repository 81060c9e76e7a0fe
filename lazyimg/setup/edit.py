"""Settings put into a configuration's text, with nothing else changed. Pure."""

from __future__ import annotations

import copy
import difflib
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError

from lazyimg.errors import ConfigurationError
from lazyimg.setup.settings import Entries, find, show_path, show_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lazyimg.setup.settings import Settings, Table, Value

_BY_HAND: Final = "put the lines in by hand ('lazyimg setup containerd --print' shows them)"


def parse_configuration(text: str) -> dict[str, Any]:
    """Read TOML; numbers with a point stay text, so that documents can be compared.

    Raises:
        ConfigurationError: it is not TOML.
    """
    try:
        return tomllib.loads(text, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError("configuration", f"is not TOML: {error}") from error


def serialize_settings(settings: Settings) -> str:
    """Give settings as they stand in a file that has none of them."""
    return "\n".join(_as_text(each, {}) for each in settings)


def edit_configuration(text: str, version: int, settings: Settings) -> str:
    """Give a configuration's text with the settings in it.

    Tables that are not there are added at the end; in those that are, lines are changed, or added
    below the head.

    Args:
        text: of the file.
        version: in which it is written; written into it if it is empty.
        settings: what it must have.

    Raises:
        ConfigurationError: it is not TOML, or cannot be edited without changing something else.
    """
    document = parse_configuration(text)
    if not document:
        text = f"{_with_end(text)}version = {version}\n"
        document = {"version": version}
    for each in settings:
        if each.missing(document):
            text = _put_in(text, document, each)
            document = parse_configuration(text)
    return text


def show_changes(name: str, before: str, after: str) -> str:
    """Give the difference between two texts, as ``diff -u`` does."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), name, name
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _with_setting(document: Mapping[str, Any], setting: Table | Entries) -> dict[str, Any]:
    """Give what the edited text must read as."""
    wanted = copy.deepcopy(dict(document))
    *above, last = setting.path
    table: Any = wanted
    for part in above:
        table = _inner(table, part, {}, setting)
    if isinstance(setting, Entries):
        added = [dict(entry) for entry in setting.added_to(document)]
        array = _inner(table, last, [], setting)
        array.extend(added)
    else:
        _inner(table, last, {}, setting).update(setting.values)
    return wanted


def _inner(table: dict[str, Any], key: str, default: Any, setting: Table | Entries) -> Any:
    found = table.setdefault(key, default)
    if type(found) is not type(default):
        kind = "table" if isinstance(default, dict) else "array"
        raise ConfigurationError(
            "configuration", f"'{key}' is no {kind}, as [{show_path(setting.path)}] has it"
        )
    return found


def _put_in(text: str, document: Mapping[str, Any], setting: Table | Entries) -> str:
    whole = _prove(text, setting, _with_setting(document, setting), [_append])
    if whole is not None:
        return whole
    for part in setting.parts():
        if part.missing(document):
            document = _with_setting(document, part)
            edited = _prove(text, part, document, [_insert, _change])
            if edited is None:
                raise ConfigurationError(
                    "configuration",
                    f"[{show_path(setting.path)}] cannot be added without harm",
                    _BY_HAND,
                )
            text = edited
    return text


def _prove(
    text: str,
    setting: Table | Entries,
    wanted: Mapping[str, Any],
    edits: Sequence[Callable[[str, Table | Entries], str]],
) -> str | None:
    """Give the first edited text that reads as it must, or None."""
    for edit in edits:
        edited = edit(text, setting)
        try:
            if tomllib.loads(edited, parse_float=str) == wanted:
                return edited
        except (ValueError, RecursionError):
            continue  # such as a table that is there twice
    return None


def _append(text: str, setting: Table | Entries) -> str:
    document = tomllib.loads(text, parse_float=str)
    return f"{_with_end(text)}\n{_as_text(setting, document)}"


def _as_text(setting: Table | Entries, document: Mapping[str, Any]) -> str:
    name = show_path(setting.path)
    tables: tuple[Mapping[str, Value], ...] = (setting.values,)
    head = f"[{name}]"
    if isinstance(setting, Entries):
        head, tables = f"[{head}]", setting.added_to(document)
    return "\n".join(
        "".join([f"{head}\n", *(f"{key} = {show_value(value)}\n" for key, value in table.items())])
        for table in tables
    )


def _with_end(text: str) -> str:
    return text if text.endswith("\n") or not text else f"{text}\n"


def _insert(text: str, setting: Table | Entries) -> str:
    """Add lines below the head of a table. The result is not proved to be right."""
    lines = text.split("\n")
    heads = [number for number, line in enumerate(lines) if _is_head(line, setting.path)]
    for number in heads[:1]:
        below = lines[number + 1] if number + 1 < len(lines) else ""
        like = below if re.match(r"\s*[^\s\[]", below) else lines[number]
        indent = like[: len(like) - len(like.lstrip())]
        end = "\r" if lines[number].endswith("\r") else ""
        lines[number + 1 : number + 1] = [
            f"{indent}{key} = {show_value(value)}{end}" for key, value in setting.values.items()
        ]
    return "\n".join(lines)


def _is_head(line: str, path: tuple[str, ...]) -> bool:
    if not line.lstrip().startswith("["):
        return False
    try:
        return bool(find(tomllib.loads(line.strip()), path) == {})
    except ValueError:
        return False


def _change(text: str, setting: Table | Entries) -> str:
    """Edit the tables that are there. The result is not proved to be right."""
    try:
        document = tomlkit.parse(text)
        *above, last = setting.path
        table: Any = document
        for part in above:
            table = table.setdefault(part, {})
        if isinstance(setting, Entries):
            for entry in setting.added_to(document.unwrap()):
                line = tomlkit.inline_table()
                line.update(entry)
                table.setdefault(last, []).append(line)
        else:
            table.setdefault(last, {}).update(setting.values)
        return tomlkit.dumps(document)
    except (TOMLKitError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            "configuration", f"[{show_path(setting.path)}] cannot be added: {error}", _BY_HAND
        ) from error
