"""How a registry was reached, recorded and read again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.images.access import parse_access, serialize_access
from lazyimg.registry.ports import Access

EVERYTHING = Access(
    authfile=Path("/etc/auth.json"),
    username="user",
    password="secret",
    plain_http=True,
    insecure=True,
    ca_file=Path("/etc/ca.pem"),
    hosts_dir=Path("/etc/hosts.d"),
    node=True,
)


def test_nothing_special() -> None:
    assert serialize_access(Access()) == b"{}"
    assert parse_access(b"{}") == Access()


def test_name_and_password_are_not_recorded() -> None:
    data = serialize_access(EVERYTHING)
    assert b"user" not in data
    assert b"secret" not in data
    assert parse_access(data) == Access(
        authfile=Path("/etc/auth.json"),
        plain_http=True,
        insecure=True,
        ca_file=Path("/etc/ca.pem"),
        hosts_dir=Path("/etc/hosts.d"),
        node=True,
    )


paths = st.none() | st.text(min_size=1).map(lambda text: Path("/", text.replace("\0", "")))


@given(
    st.builds(
        Access,
        authfile=paths,
        plain_http=st.booleans(),
        insecure=st.booleans(),
        ca_file=paths,
        hosts_dir=paths,
    )
)
def test_anything_comes_back(access: Access) -> None:
    assert parse_access(serialize_access(access)) == access


@pytest.mark.parametrize("data", [b"", b"[]", b'{"insecure": 1}', b'{"authfile": null}', b"{"])
def test_no_record(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        parse_access(data)
