"""How a registry was reached, as it is recorded for later fills."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lazyimg.registry.ports import Access


class _Recorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept on disk: no name, no password."""

    authfile: str = ""
    plain_http: bool = False
    insecure: bool = False
    ca_file: str = ""
    hosts_dir: str = ""
    node: bool = False


def serialize_access(access: Access) -> bytes:
    """Give the JSON that is recorded; without name and password."""
    return msgspec.json.encode(
        _Recorded(
            str(access.authfile or ""), access.plain_http, access.insecure,
            str(access.ca_file or ""), str(access.hosts_dir or ""), access.node,
        )
    )  # fmt: skip


def parse_access(data: bytes) -> Access:
    """Give the access that was recorded.

    Raises:
        msgspec.DecodeError: no such record.
    """
    recorded = msgspec.json.decode(data, type=_Recorded)
    return Access(
        authfile=Path(recorded.authfile) if recorded.authfile else None,
        plain_http=recorded.plain_http,
        insecure=recorded.insecure,
        ca_file=Path(recorded.ca_file) if recorded.ca_file else None,
        hosts_dir=Path(recorded.hosts_dir) if recorded.hosts_dir else None,
        node=recorded.node,
    )
