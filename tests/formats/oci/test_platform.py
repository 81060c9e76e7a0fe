"""Platforms: names as written, and which image serves which machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.platform import (
    Platform,
    normalize_platform,
    parse_platform,
    rank_platform,
)

LOCAL = Platform("linux", "x86_64")


def platform(text: str) -> Platform:
    return Platform(*text.split("/"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/X86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/i686", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/armv7l", "linux/arm/v7"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/riscv64", "linux/riscv64"),
        ("riscv64", "linux/riscv64"),
        ("windows", "windows/amd64"),
        ("linux", "linux/amd64"),
        ("macOS", "darwin/amd64"),
        ("local", "linux/amd64"),
        ("", "linux/amd64"),
    ],
)
def test_parse(text: str, expected: str) -> None:
    assert str(parse_platform(text, LOCAL)) == expected


@pytest.mark.parametrize("text", ["linux/", "/", "a/b/c/d", "linux/arm 64", "linux/ärm", "a\n"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_platform(text, LOCAL)
    assert str(caught.value) == f"platform: expected os/arch[/variant], got {text!r}"


@given(st.text())
def test_any_text_is_a_platform_or_format_error(text: str) -> None:
    try:
        parsed = parse_platform(text, LOCAL)
    except FormatError:
        return
    assert normalize_platform(parsed) == parsed
    assert rank_platform(parsed, parsed) == 0


def test_normalizing_keeps_the_rest() -> None:
    whole = Platform("linux", "aarch64", "v8", "10", {"os.features": ["x"]})
    assert normalize_platform(whole) == Platform("linux", "arm64", "", "10", {"os.features": ["x"]})


@pytest.mark.parametrize(
    ("wanted", "offered", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64", "linux/x86_64", 0),
        ("linux/amd64", "windows/amd64", None),
        ("linux/amd64", "linux/arm64", None),
        ("linux/amd64", "linux/amd64/v2", None),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/amd64/v3", "linux/amd64/v2", 1),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64", "linux/arm/v7", None),
        ("linux/arm64/v9", "linux/arm64", 1),
        ("linux/arm64/v9.2", "linux/arm64/v8", 1),
        ("linux/arm64", "linux/arm64/v7", None),
        ("linux/arm/v8", "linux/arm/v7", 1),
        ("linux/arm/v8", "linux/arm/v6", 2),
        ("linux/arm", "linux/arm/v6", 1),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm/v7", "linux/arm/v12", None),
        ("linux/arm/v7", "linux/arm/hf", None),
        ("linux/arm/odd", "linux/arm/v7", None),
        ("linux/arm/odd", "linux/arm/odd", 0),
        ("linux/mips64le/softfloat", "linux/mips64le", 1),
        ("linux/mips64le", "linux/mips64le/softfloat", None),
    ],
)
def test_rank(wanted: str, offered: str, rank: int | None) -> None:
    assert rank_platform(platform(wanted), platform(offered)) == rank


def test_unknown() -> None:
    assert Platform("unknown", "unknown").is_unknown
    assert not Platform("unknown", "amd64").is_unknown
    assert not Platform("linux", "unknown").is_unknown
