"""The border to construct."""

from __future__ import annotations

import pytest
from construct import Computed as Computation
from construct import Const, Int8ub, Int16ul, Struct, this

from lazyimg_formats.codec import Layout
from lazyimg_formats.errors import FormatError

pair = Layout("pair", Struct("first" / Int8ub, "second" / Int16ul))


def test_fields_under_their_names() -> None:
    fields = pair.decode(b"\1\2\3")
    assert (fields.first, fields.second) == (1, 0x0302)
    assert (pair.name, pair.size) == ("pair", 3)


@pytest.mark.parametrize("data", [b"", b"\1\2", b"\1\2\3\4"])
def test_any_other_length(data: bytes) -> None:
    with pytest.raises(FormatError, match=f"^pair: expected 3 bytes, got {len(data)}$"):
        pair.decode(data)


def test_wrong_constant() -> None:
    with pytest.raises(FormatError, match=r"^magic: ConstError$"):
        Layout("magic", Struct(Const(b"m"))).decode(b"x")


def test_declaration_that_fails_in_its_own_way() -> None:
    ratio = Layout("ratio", Struct("by" / Int8ub, "value" / Computation(1 // this.by)))
    assert ratio.decode(b"\1").value == 1
    with pytest.raises(FormatError, match=r"^ratio: (integer )?(division|modulo).*zero"):
        ratio.decode(b"\0")


def test_failure_without_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        raise KeyError

    monkeypatch.setattr(pair, "_parse", fail)
    with pytest.raises(FormatError, match=r"^pair: KeyError$"):
        pair.decode(b"\1\2\3")


def test_bytes_of_fields() -> None:
    assert pair.encode(first=1, second=0x0302) == b"\1\2\3"


@pytest.mark.parametrize("fields", [{"first": 1}, {"first": 256, "second": 0}, {}])
def test_fields_that_are_missing_or_do_not_fit(fields: dict[str, int]) -> None:
    with pytest.raises(FormatError, match=r"^pair: ."):
        pair.encode(**fields)
