"""Digests: the two algorithms, and nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_empty_bytes() -> None:
    assert Digest.parse(EMPTY) == Digest.of(b"")
    assert str(Digest.of(b"")) == EMPTY
    assert Digest.of(b"") < Digest.of(b"", "sha512")
    assert len({Digest.of(b""), Digest.parse(EMPTY)}) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected algorithm:hex, got ''"),
        ("e3b0", "expected algorithm:hex, got 'e3b0'"),
        ("md5:d41d8cd98f00b204e9800998ecf8427e", "unknown algorithm 'md5'"),
        (":", "unknown algorithm ''"),
        ("sha256:", "sha256 has 64 lower-case hex characters, got ''"),
        (EMPTY[:-1], "sha256 has 64 lower-case hex characters, got "),
        (EMPTY + "0", "sha256 has 64 lower-case hex characters, got "),
        (EMPTY[:-1] + "g", "sha256 has 64 lower-case hex characters, got "),
        (EMPTY[:-1] + "\n", "sha256 has 64 lower-case hex characters, got "),
        (EMPTY.upper().replace("SHA", "sha"), "sha256 has 64 lower-case hex characters, got "),
        (EMPTY.replace("256", "512"), "sha512 has 128 lower-case hex characters, got "),
    ],
)
def test_anything_else_is_refused(text: str, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        Digest.parse(text)
    assert str(caught.value).startswith(f"digest: {problem}")


@given(st.text())
def test_any_text_is_a_digest_or_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        Digest.parse(text)


@given(st.lists(st.binary()), st.sampled_from(["sha256", "sha512"]))
def test_hasher_takes_pieces(pieces: list[bytes], algorithm: str) -> None:
    data = b"".join(pieces)
    expected = Digest.of(data, algorithm)
    assert expected.hex == hashlib.new(algorithm, data).hexdigest()
    hasher = expected.hasher()
    for piece in pieces:
        hasher.update(memoryview(piece))
    assert hasher.size == len(data)
    assert hasher.matches()
    assert hasher.digest() == expected
    hasher.update(b"x")
    assert not hasher.matches()
    assert hasher.digest() != expected
