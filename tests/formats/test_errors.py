"""The error of this package."""

from __future__ import annotations

import pickle

from lazyimg_formats.errors import FormatError


def test_text_and_fields() -> None:
    error = FormatError("superblock", "magic is 0, expected 1")
    assert str(error) == "superblock: magic is 0, expected 1"
    assert (error.what, error.problem) == ("superblock", "magic is 0, expected 1")
    assert isinstance(error, ValueError)


def test_survives_a_process_border() -> None:
    error = pickle.loads(pickle.dumps(FormatError("entry", "too long")))  # noqa: S301 - our own
    assert str(error) == "entry: too long"
