"""Results on standard output: tables for people, JSON for programs; and sizes in words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER = re.compile(r"[0-9.]+( ([kMGT]?B|%))?|-")


def show(text: str) -> str:
    r"""Give text that cannot upset a terminal or a table: other characters as ``\x0a``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a name that is not UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}"


def print_json(value: object) -> None:
    """Print a value, indented by two."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_line(text: str) -> None:
    """Print one line."""
    click.echo(text)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head; columns of numbers and sizes are aligned to the right.

    A cell of "" is none, and leaves a column what it is.
    """
    rows = [[show(cell) for cell in row] for row in rows]
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(map(_NUMBER.fullmatch, filter(None, column[1:]))) for column in columns]
    for row in (head, *rows):
        cells = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair on a line; a digest beside 8 characters fits 80 columns."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"{name:{width}} {show(value)}")


def format_size(size: float) -> str:
    """Give a number of bytes in decimal units: ``999 B``, ``1.2 kB``, ``34.5 MB``."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def format_part(part: int, whole: int) -> str:
    """Give a part in percent; 100 only for the whole, ``-`` of nothing."""
    if not whole:
        return "-"
    return f"{min(100, part * 100 // whole)} %"


def format_duration(seconds: float) -> str:
    """Give a duration in its two largest units: ``3 s``, ``2 min 5 s``, ``1 h 2 min``, ``3 d``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def short_digest(digest: str) -> str:
    """Give a digest's algorithm and first 12 characters."""
    algorithm, colon, value = digest.partition(":")
    return f"{algorithm}:{value[:12]}" if colon else digest[:12]


def without(value: msgspec.Struct, *names: str) -> dict[str, Any]:
    """Give a structure as a dictionary, some of its fields left out."""
    fields: dict[str, Any] = msgspec.to_builtins(value)
    return {name: field for name, field in fields.items() if name not in names}
