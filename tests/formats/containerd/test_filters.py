"""Filters of List calls: what they match, what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.containerd.filters import (
    MAX_SELECTORS,
    MAX_TEXT,
    Filter,
    Selector,
    parse_filter,
)
from lazyimg_formats.errors import FormatError

OBJECT = {
    ("name",): "web",
    ("kind",): "active",
    ("labels", "plain"): "x",
    ("labels", "containerd.io/snapshot.ref"): "sha256:abc",
    ("empty",): "",
}


@pytest.mark.parametrize("value", ["(" * 5000, "(?:a" * 1500, "a{99999999999999999999}", "["])
def test_expressions_that_are_none_match_nothing(value: str) -> None:
    assert not parse_filter(f"name~={quoted(value)}").matches(OBJECT.get)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "empty",
        "name==web",
        "name == web",
        " name==web",
        "name!=db",
        "missing!=web",
        "name~=^w",
        "name~=/^we?b$/",
        "name~=|w.b|",
        'name~="b$"',
        "missing~=^$",
        "name==web,kind==active",
        "name==web, labels.plain",
        'labels."containerd.io/snapshot.ref"==sha256:abc',
        'labels."containerd.io/snapshot.ref"=="sha256:abc"',
        'empty==""',
        r'name=="w\x65b"',
        r'name=="w\145b"',
        r'name=="\u0077eb"',
        r'name=="\U00000077eb"',
        r"name~=/\x2f|web/",
        r'name!="a\"b\t"',
    ],
)
def test_matches(text: str) -> None:
    assert parse_filter(text).matches(OBJECT.get)


@pytest.mark.parametrize(
    "text",
    [
        "missing",
        "missing==x",
        'missing==""',
        "name==db",
        "name!=web",
        "name~=^b",
        "name~=/(/",  # not a regular expression
        "name==web,kind==view",
        "labels.other",
        "labels",
    ],
)
def test_does_not_match(text: str) -> None:
    assert not parse_filter(text).matches(OBJECT.get)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (",", "expected the name of a field, at character 0 of ','"),
        ("name,", "expected the name of a field, at character 5 of 'name,'"),
        ("name==", "expected a value, at character 6 of 'name=='"),
        ("name=web", "'=' is none of ==, != and ~=, at character 5 of 'name=web'"),
        ("name===web", "'===' is none of ==, != and ~=, at character 7 of 'name===web'"),
        ("name==\0", "expected a value, at character 6 of 'name==\\x00'"),
        ("name==w\0b", "expected a comma or the end, at character 7 of 'name==w\\x00b'"),
        ("name==web x", "expected a comma or the end, at character 10 of 'name==web x'"),
        ("name==/web/", "expected a value, at character 6 of 'name==/web/'"),
        ('name=="web', "expected the closing quote, at character 10 of 'name==\"web'"),
        ('"na\nme"', "a quoted text ends within its line, at character 4 of '\"na\\nme\"'"),
        (r'name=="\q"', "\\q is no escape sequence, at character 9 of 'name==\"\\\\q\"'"),
        (r'name=="\xff"', "\\xff is no character, at character 11 of 'name==\"\\\\xff\"'"),
        (r'name=="\ud800"', "\\ud800 is no character, at character 13 of 'name==\"\\\\ud800\"'"),
        ('name=="\\', "expected an escaped character, at character 8 of 'name==\"\\\\'"),
        ("labels.", "expected the name of a field, at character 7 of 'labels.'"),
        ("ä", "expected the name of a field, at character 0 of 'ä'"),
        ("a," * MAX_SELECTORS + "a", f"more than {MAX_SELECTORS} conditions"),
        ("a" * (MAX_TEXT + 1), f"{MAX_TEXT + 1} characters, at most {MAX_TEXT} are taken"),
    ],
)
def test_refuses(text: str, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_filter(text)
    assert str(caught.value).startswith(f"filter: {problem}")


def test_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(FormatError, match=r"of 'a{80}\.\.\.'$"):
        parse_filter("a" * 100 + "=")


def test_required_values() -> None:
    parsed = parse_filter('labels."a.b"==x,name!=y')
    assert parsed.required(("labels", "a.b")) == "x"
    assert parsed.required(("name",)) is None
    assert parsed.required(("other",)) is None


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(
        st.builds(
            Selector,
            st.lists(TEXTS, min_size=1, max_size=4).map(tuple),
            st.sampled_from(["==", "!=", "~="]),
            TEXTS,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_quoted_parts_come_back(selectors: list[Selector]) -> None:
    text = ",".join(
        ".".join(map(quoted, one.path)) + one.operator + quoted(one.value) for one in selectors
    )
    assert parse_filter(text) == Filter(tuple(selectors))


@given(st.text(max_size=200) | st.text(alphabet='ab."/|\\=!~, x0', max_size=60))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        parsed = parse_filter(text)
    except FormatError:
        return
    parsed.matches(OBJECT.get)
