"""Every fuzzing target takes its own seeds, whole, cut and damaged, and what was once a finding."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

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


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=600))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


def test_findings() -> None:
    """Files are called TARGET.what-was-wrong."""
    for finding in FINDINGS:
        TARGETS[finding.name.partition(".")[0]].run(finding.read_bytes())
