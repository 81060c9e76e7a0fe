"""Every failure that a user is told of: its text, its exit code, its kind."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

from lazyimg import errors
from lazyimg.errors import LazyimgError, NotFoundError, RegistryError

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "exit-codes.md"

FAMILIES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, LazyimgError)
]


def test_text_is_one_line_of_where_what_and_remedy() -> None:
    error = NotFoundError("reg/app:1", "is not there", "look at its tags")
    assert str(error) == "reg/app:1: is not there; look at its tags"
    assert (error.what, error.problem, error.remedy) == (
        "reg/app:1", "is not there", "look at its tags",
    )  # fmt: skip


def test_text_without_remedy() -> None:
    assert str(LazyimgError("here", "is wrong")) == "here: is wrong"
    assert LazyimgError("here", "is wrong").remedy == ""


def test_what_a_registry_answered() -> None:
    error = RegistryError("reg", "is away", "wait", status=503, retryable=True)
    assert (error.status, error.retryable, str(error)) == (503, True, "reg: is away; wait")
    plain = RegistryError("reg", "is away")
    assert (plain.status, plain.retryable) == (0, False)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_can_be_made_of_its_facts_alone(kind: type[LazyimgError]) -> None:
    error = kind("what", "problem", "remedy")
    assert str(error) == "what: problem; remedy"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - made here


def test_exit_codes_and_kinds_are_unique_and_leave_room_for_the_shells_own() -> None:
    assert len({kind.exit_code for kind in FAMILIES}) == len(FAMILIES)
    assert len({kind.kind for kind in FAMILIES}) == len(FAMILIES)
    assert all(0 < kind.exit_code < 126 for kind in FAMILIES)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.kind) for kind in FAMILIES)


def test_exit_codes_are_documented() -> None:
    rows = re.findall(r"^\| (\d+) \| ([a-z-]+) \|", DOCUMENTATION.read_text(), re.MULTILINE)
    assert {(int(code), kind) for code, kind in rows} == {
        (kind.exit_code, kind.kind) for kind in FAMILIES
    }
