"""What is passed on of a client that was greeted by somebody else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.http2 import ACKNOWLEDGEMENT, PREFACE, GreetedClient


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4)
    return head + payload


SETTINGS = frame(4, 0, 0, bytes(12))
HEADERS = frame(1, 4, 1, ACKNOWLEDGEMENT)  # a payload may look like anything
EMPTY = frame(0, 1, 1, b"")


def feed(client: GreetedClient, data: bytes, size: int) -> bytes:
    return b"".join(client.feed(data[at : at + size]) for at in range(0, len(data), size))


def test_first_acknowledgement_is_left_out() -> None:
    before, after = PREFACE + SETTINGS + EMPTY + HEADERS, EMPTY + ACKNOWLEDGEMENT + HEADERS
    for size in range(1, 100):
        client = GreetedClient()
        assert feed(client, before + ACKNOWLEDGEMENT + after, size) == before + after


def test_frames_before_it_go_through_at_once() -> None:
    client = GreetedClient()
    for piece in (PREFACE, SETTINGS, HEADERS, frame(0, 0, 1, bytes(100_000))):
        assert client.feed(piece) == piece
    assert client.feed(EMPTY[:8]) == b""  # it may become an acknowledgement
    assert client.feed(EMPTY[8:]) == EMPTY
    assert client.feed(b"") == b""
    assert client.feed(ACKNOWLEDGEMENT) == b""
    assert client.feed(ACKNOWLEDGEMENT[:5]) == ACKNOWLEDGEMENT[:5]


FRAMES = st.builds(
    frame,
    st.integers(0, 9).filter(lambda kind: kind != 4),
    st.integers(0, 255),
    st.integers(0, 2**31 - 1),
    st.binary(max_size=40),
)


@given(st.lists(FRAMES), st.lists(FRAMES), st.integers(1, 50))
def test_any_frames(before: list[bytes], after: list[bytes], size: int) -> None:
    first, rest = PREFACE + b"".join(before), b"".join(after)
    assert feed(GreetedClient(), first + ACKNOWLEDGEMENT + rest, size) == first + rest
