"""Every fuzzing target takes its own seeds, whole, cut and damaged, and what was once a finding."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lazyimg
import lazyimg_formats
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

CUTS = 40
DAMAGED = 150
FINDINGS = sorted(Path(__file__).with_name("findings").glob("*"))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_whole_cut_and_damaged(name: str) -> None:
    target = TARGETS[name]
    chance = random.Random(name)  # noqa: S311 - the same damage in every run
    for seed in target.seeds():
        target.run(seed)
        target.run(seed + b"\0")
        for _ in range(CUTS):
            target.run(seed[: chance.randrange(len(seed))])
        for _ in range(DAMAGED):
            damaged = bytearray(seed)
            for _ in range(chance.choice((1, 1, 2, 8))):
                damaged[chance.randrange(len(seed))] = chance.randrange(256)
            target.run(bytes(damaged))


def test_every_parser_is_reached() -> None:
    """By what a target does with its seeds."""
    called: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            called.add((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        for target in TARGETS.values():
            for seed in target.seeds():
                target.run(seed)
    finally:
        sys.setprofile(None)
    parsers = {
        (str(path), name)
        for package in (lazyimg, lazyimg_formats)
        for path in Path(package.__path__[0]).rglob("*.py")
        for name in re.findall(r"^def (parse_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(parsers) > 40
    assert parsers - called == set()


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=600))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from(["..", "/", ".wh..wh..opq", "a\0b", "sha256:" + "0" * 64, "AA==", "zeros"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
JSON_TARGETS = {
    name: [seed for seed in TARGETS[name].seeds() if seed.startswith(b"{")]
    for name in ("credentials", "documents", "messages", "stargz-toc", "toc", "tokens")
}


def change(data: st.DataObject, value: Any) -> Any:
    """Give a document with one value in it replaced, left out, or moved elsewhere."""
    inside: Sequence[Any] = range(0)
    if isinstance(value, dict | list):
        inside = list(value) if isinstance(value, dict) else range(len(value))
    if not inside or data.draw(st.integers(0, 9)) == 0:
        return data.draw(VALUES)
    copy = value.copy()
    at = data.draw(st.sampled_from(inside))
    match data.draw(st.sampled_from(["inside", "inside", "inside", "remove", "swap"])):
        case "remove":
            del copy[at]
        case "swap":
            other = data.draw(st.sampled_from(inside))
            copy[at], copy[other] = copy[other], copy[at]
        case _:
            copy[at] = change(data, copy[at])
    return copy


@pytest.mark.parametrize("name", JSON_TARGETS)
@given(data=st.data())
def test_documents_with_other_values(name: str, data: st.DataObject) -> None:
    document = json.loads(data.draw(st.sampled_from(JSON_TARGETS[name])))
    for _ in range(data.draw(st.integers(1, 3))):
        document = change(data, document)
    TARGETS[name].run(json.dumps(document).encode())


def test_findings() -> None:
    """Files are called TARGET.what-was-wrong."""
    for finding in FINDINGS:
        TARGETS[finding.name.partition(".")[0]].run(finding.read_bytes())
