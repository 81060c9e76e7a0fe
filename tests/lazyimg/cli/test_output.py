"""Tables, JSON and sizes."""

from __future__ import annotations

import json

import pytest

from lazyimg.api.messages import UnmountReply
from lazyimg.cli.output import (
    format_duration,
    format_part,
    format_size,
    print_facts,
    print_json,
    print_line,
    print_table,
    short_digest,
    show,
    without,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_960, "1.0 MB"),
        (26_214_400, "26.2 MB"),
        (5 * 10**9, "5.0 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "-"), (0, 5, "0 %"), (999, 1000, "99 %"), (5, 5, "100 %"), (6, 5, "100 %")],
)
def test_format_part(part: int, whole: int, text: str) -> None:
    assert format_part(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0 s"),
        (59, "59 s"),
        (125, "2 min 5 s"),
        (3725, "1 h 2 min"),
        (3 * 86400 + 7200, "3 d 2 h"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_short_digest() -> None:
    assert short_digest("sha256:" + "a" * 64) == "sha256:aaaaaaaaaaaa"
    assert short_digest("b" * 64) == "bbbbbbbbbbbb"


def test_table_aligns_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "SIZE", "LOCAL"), [("a", "1.0 kB", "5 %"), ("long name", "100.0 MB", "-")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME           SIZE  LOCAL",
        "a            1.0 kB    5 %",
        "long name  100.0 MB      -",
    ]


def test_cell_without_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("SIZE", "NAME"), [("1.0 kB", "a"), ("", "b")])
    assert capsys.readouterr().out.splitlines() == ["  SIZE  NAME", "1.0 kB  a", "        b"]


def test_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "SIZE"), [])
    assert capsys.readouterr().out == "NAME  SIZE\n"


def test_facts_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("a", "1"), ("longer", "2")])
    print_line("end")
    assert capsys.readouterr().out == "a      1\nlonger 2\nend\n"


def test_json_and_fields_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    reply = UnmountReply(reference="r", directory="/d")
    print_json([reply])
    assert json.loads(capsys.readouterr().out) == [{"reference": "r", "directory": "/d"}]
    assert without(reply, "directory") == {"reference": "r"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00fc", "plain \u00fc"),
        ("two\nlines\x1b[m", r"two\x0alines\x1b[m"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud800", r"\xd800"),
    ],
)
def test_characters_that_would_upset_a_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(text) == shown
    print_table(("NAME", "B"), [(text, "b")])
    print_facts([("name", text)])
    _, row, fact = capsys.readouterr().out.splitlines()
    assert (row, fact) == (f"{shown:4}  b", f"name {shown}")
