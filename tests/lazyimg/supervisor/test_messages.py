"""What a worker may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.supervisor.messages import (
    DEFAULT_NAME,
    MAX_NAME,
    Notification,
    is_name,
    parse_notification,
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"READY=1", Notification(ready=True)),
        (b"READY=1\n", Notification(ready=True)),
        (b"READY=0", Notification()),
        (b"FDSTORE=1\nFDNAME=api", Notification(store=True, name="api")),
        (b"FDNAME=api\nFDSTORE=1\nFDPOLL=0", Notification(store=True, name="api")),
        (b"FDSTOREREMOVE=1\nFDNAME=api", Notification(remove=True, name="api")),
        (
            b"FDSTORE=1\nX_GREETING=00ff\nFDNAME=a",
            Notification(store=True, name="a", greeting=b"\0\xff"),
        ),
        (b"FDSTORE=1\nX_GREETING=0\nX_GREETING=00", Notification(store=True)),
        (b"FDSTORE=1\nX_GREETING=", Notification(store=True)),
        (b"FDSTORE=1", Notification(store=True, name=DEFAULT_NAME)),
        (b"FDSTORE=1\nFDNAME=a:b", Notification(store=True, name=DEFAULT_NAME)),
        (b"FDSTORE=1\nFDNAME=a\nFDNAME=b", Notification(store=True, name="b")),
        (
            b"STATUS=works\nEXTEND_TIMEOUT_USEC=5\nMAINPID=7",
            Notification(rest=("STATUS=works", "EXTEND_TIMEOUT_USEC=5")),
        ),
        (b"BARRIER=1", Notification()),
        (b"", Notification()),
        (b"\xff\n=\n\0", Notification()),
    ],
)
def test_datagram(data: bytes, expected: Notification) -> None:
    assert parse_notification(data) == expected


@given(st.binary())
def test_any_bytes_are_a_datagram(data: bytes) -> None:
    assert is_name(parse_notification(data).name)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("a", True),
        ("a" * MAX_NAME, True),
        ("a" * (MAX_NAME + 1), False),
        ("", False),
        ("a b", True),
        ("a:b", False),
        ("a\x7f", False),
        ("\u00e4", False),
    ],
)
def test_name(name: str, allowed: bool) -> None:  # noqa: FBT001
    assert is_name(name) is allowed
