"""The transport, with a real cache; mounts and the device are the test's.

The real ones: tests/transports.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.errors import KernelError
from lazyimg.transports.fuse import transport as module
from lazyimg.transports.fuse.taken import Taken
from lazyimg.transports.fuse.transport import FuseTransport
from lazyimg_formats.fuse.layout import InitFlag, Opcode, OpenFlag
from lazyimg_formats.fuse.messages import resend
from tests.fakes.fuse import FakeKernel, PatternFiller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BLOCK = 4096
SIZE = 8 * BLOCK
A, B = "a" * 64, "b" * 64


class Node:
    """A transport, and everything around it."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree = top / "fuse"
        self.devices = top / "devices"
        self.tree.mkdir()
        self.devices.mkdir()
        self.cache = DeviceCache(self.devices)
        self.cache.load()
        self.filler = PatternFiller(SIZE)
        self.kernel = FakeKernel()
        self.calls: list[tuple[str, object]] = []
        self.answer_init = True
        monkeypatch.setattr(module, "open_device", lambda: self.kernel.fd)
        monkeypatch.setattr(module, "mount_tree", self.mount)
        monkeypatch.setattr(module, "unmount_tree", self.unmount)
        monkeypatch.setattr(module, "raise_open_files", lambda: 1024)

    def transport(self, **options: Any) -> FuseTransport:
        return FuseTransport(self.filler, self.cache, **options)

    def mount(self, fd: int, directory: Path) -> None:
        assert directory == self.tree
        self.calls.append(("mount", fd))
        if self.answer_init:
            self.kernel.ask_init()
        else:
            self.kernel.end()

    def unmount(self, directory: Path) -> None:
        assert directory == self.tree
        self.calls.append(("unmount", None))
        if len(self.calls) > 1:  # before a mount, nothing is there
            self.kernel.end()

    async def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        unique = self.kernel.ask(opcode, node, body)
        answered, error, data = await asyncio.to_thread(self.kernel.answer)
        assert answered == unique
        return error, data

    async def read(self, node: int, offset: int, size: int) -> tuple[int, bytes]:
        unique = self.kernel.ask_read(node, offset, size)
        answered, error, data = await asyncio.to_thread(self.kernel.answer)
        assert answered == unique
        return error, data

    def fill(self, name: str) -> None:
        """Have a device complete in the cache."""
        file = self.cache.open(name, SIZE)
        file.write_now(0, [memoryview(self.filler.content)])


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    node = Node(tmp_path, monkeypatch)
    yield node
    node.kernel.close()
    await node.cache.close()


@pytest.fixture
async def transport(node: Node) -> AsyncIterator[FuseTransport]:
    transport = node.transport()
    await transport.start(node.tree)
    await asyncio.to_thread(node.kernel.answer)
    yield transport
    await transport.stop()


async def test_start_mounts_and_stop_unmounts(node: Node) -> None:
    transport = node.transport()
    await transport.start(node.tree)
    assert node.calls == [("unmount", None), ("mount", transport.control_fd)]
    with pytest.raises(RuntimeError, match=r"^the transport was started already$"):
        await transport.start(node.tree)
    fd = transport.control_fd
    await transport.stop()
    await transport.stop()
    assert transport.control_fd == -1
    assert node.calls[2:] == [("unmount", None)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("deadline", "patience"), [(None, 0), (1.0, 600), (100.0, 1000), (1e6, 65_535)]
)
async def test_what_the_kernel_is_told(node: Node, deadline: float | None, patience: int) -> None:
    transport = node.transport(read_deadline=deadline, passthrough=deadline is None)
    await transport.start(node.tree)
    _, _, data = await asyncio.to_thread(node.kernel.answer)
    fields = struct.unpack("=IIIIHHIIHHIIH22x", data)
    assert fields[12] == patience
    assert fields[11] == (deadline is None)
    assert bool(fields[10] << 32 & InitFlag.PASSTHROUGH) == (deadline is None)
    await transport.stop()


async def test_kernel_that_does_not_take_it_into_use(node: Node) -> None:
    node.answer_init = False
    transport = node.transport()
    with pytest.raises(KernelError, match="the kernel does not take the tree into use"):
        await transport.start(node.tree)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(node.kernel.fd)


async def test_kernel_that_does_not_answer(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_DEADLINE", 0.0)
    monkeypatch.setattr(node.kernel, "ask_init", lambda: None)
    with pytest.raises(KernelError, match="the kernel does not take the tree into use"):
        await node.transport().start(node.tree)


async def test_mount_that_fails(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise KernelError("fuse", "no")

    monkeypatch.setattr(module, "mount_tree", fail)
    with pytest.raises(KernelError, match=r"^fuse: no$"):
        await node.transport().start(node.tree)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(node.kernel.fd)


async def test_absent_device_is_in_the_tree(node: Node, transport: FuseTransport) -> None:
    assert await transport.prepare({A: SIZE}) == {A: node.tree / A}
    error, data = await node.ask(Opcode.LOOKUP, 1, A.encode() + b"\0")
    found = struct.unpack_from("=Q", data)[0]
    file = transport.sink(A)
    assert file is not None
    assert (error, found) == (0, file.node)
    assert await node.read(found, 0, SIZE) == (0, node.filler.content)
    assert transport.present(A) == [range(SIZE)]
    await transport.stop()  # what was answered is counted then
    assert transport.counters.reads == 1


async def test_complete_device_is_a_plain_file(node: Node, transport: FuseTransport) -> None:
    node.fill(A)
    found = await transport.prepare({A: SIZE, B: SIZE})
    assert found == {A: node.devices / A / "data", B: node.tree / B}
    assert found[A].read_bytes() == node.filler.content
    error, _ = await node.ask(Opcode.LOOKUP, 1, A.encode() + b"\0")
    assert error != 0
    assert transport.sink(A) is not None


async def test_complete_device_in_passthrough(node: Node) -> None:
    transport = node.transport(passthrough=True)
    await transport.start(node.tree)
    await asyncio.to_thread(node.kernel.answer)
    node.fill(A)
    assert await transport.prepare({A: SIZE}) == {A: node.tree / A}
    file = transport.sink(A)
    assert file is not None
    opened = await node.ask(Opcode.OPEN, file.node, bytes(8))
    assert opened == (0, struct.pack("=QIi", 0, OpenFlag.DIRECT_IO, 0))  # a socket cannot do it
    await transport.stop()


async def test_adopted_device_is_never_given_another_backing_file(node: Node) -> None:
    transport = node.transport(passthrough=True)
    await transport.start(node.tree)
    await asyncio.to_thread(node.kernel.answer)
    node.fill(A)
    await transport.adopt({A: SIZE})
    await transport.prepare({A: SIZE})
    file = transport.sink(A)
    assert file is not None
    assert not transport._server._protocol._leaves[file.node].backed  # type: ignore[union-attr]
    await transport.release([A])
    await transport.prepare({A: SIZE})
    assert transport._server._protocol._leaves[file.node].backed  # type: ignore[union-attr]
    await transport.stop()


async def test_release(node: Node, transport: FuseTransport) -> None:
    await transport.prepare({A: SIZE})
    assert await transport.opened(A) is transport.sink(A)
    await transport.release([A, B])
    assert transport.sink(A) is None
    assert transport.present(A) is None
    error, _ = await node.ask(Opcode.LOOKUP, 1, A.encode() + b"\0")
    assert error != 0
    with pytest.raises(KernelError, match="is not served: no mount has it"):
        await transport.opened(A)
    node.cache.remove(A)  # nobody uses it


async def test_what_is_on_disk(node: Node, transport: FuseTransport) -> None:
    assert transport.present_on_disk(A) is None
    assert transport.backing_path(A) is None
    node.fill(A)
    assert transport.present_on_disk(A) == [range(SIZE)]
    assert transport.backing_path(A) == node.devices / A / "data"
    assert transport.shortage() is None
    assert not transport.is_tight()


async def test_nothing_is_prepared_when_it_is_stopped(node: Node) -> None:
    transport = node.transport()
    with pytest.raises(KernelError, match="nothing can be mounted: the transport has stopped"):
        await transport.prepare({A: SIZE})
    with pytest.raises(KernelError, match="nothing can be adopted: the transport has stopped"):
        await transport.adopt({A: SIZE})
    await transport.release([A])


async def test_connection_of_a_process_that_died(node: Node) -> None:
    file = node.cache.open(A, SIZE)
    transport = node.transport()
    await transport.start(node.tree, control_fd=node.kernel.fd)
    assert await asyncio.to_thread(node.kernel.receive) == resend()
    assert node.calls == []
    again = 1 << 63 | 6
    node.kernel.ask_read(file.node, 0, SIZE, unique=again)
    assert await asyncio.to_thread(node.kernel.answer) == (again, 0, node.filler.content)
    await transport.adopt({A: SIZE})
    assert transport.sink(A) is file
    node.calls.append(("", None))
    await transport.stop()


class Keeper:
    """Keeps one fd at a time."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.fd = -1

    def keep(self, name: str, fd: int) -> None:
        self.events.append(f"keep {name}")
        self.fd = os.dup(fd)

    def forget(self, name: str) -> None:
        self.events.append(f"forget {name}")
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def keep_asking_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a kernel before Linux 6.9."""
    monkeypatch.setattr(module, "ask_again", lambda _: False)


async def test_what_was_taken_is_kept(node: Node) -> None:
    keeper = Keeper()
    transport = node.transport(keeper=keeper)
    await transport.start(node.tree)
    assert keeper.events == ["forget fuse-taken", "keep fuse-taken"]
    assert Taken(os.dup(keeper.fd)).left()[1] == []
    await transport.stop()
    assert keeper.events[2:] == ["forget fuse-taken"]


async def test_kernel_that_asks_nothing_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process that died had taken is answered, and then what comes."""
    keep_asking_nothing_again(monkeypatch)
    file = node.cache.open(A, SIZE)
    before = Taken()
    before.note(6, file.node, 0, SIZE)
    keeper = Keeper()
    transport = node.transport(keeper=keeper)
    await transport.start(node.tree, control_fd=node.kernel.fd, taken_fd=os.dup(before.fd))
    assert keeper.events == []  # what is kept is used on
    assert await asyncio.to_thread(node.kernel.answer) == (6, 0, node.filler.content)
    assert await node.read(file.node, 0, BLOCK) == (0, node.filler.content[:BLOCK])
    node.calls.append(("", None))
    await transport.stop()
    assert Taken(before.fd)._places == {}


async def test_kernel_that_asks_again_makes_what_was_taken_needless(node: Node) -> None:
    keeper = Keeper()
    reader, writer = os.pipe()
    transport = node.transport(keeper=keeper)
    await transport.start(node.tree, control_fd=node.kernel.fd, taken_fd=writer)
    assert os.read(reader, 1) == b""  # the other end is closed
    os.close(reader)
    assert keeper.events == ["forget fuse-taken", "keep fuse-taken"]
    assert await asyncio.to_thread(node.kernel.receive) == resend()
    node.calls.append(("", None))
    await transport.stop()


async def test_kernel_that_asks_nothing_again_of_what_nobody_knows(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_asking_nothing_again(monkeypatch)
    with pytest.raises(KernelError) as caught:
        await node.transport().start(node.tree, control_fd=node.kernel.fd)
    assert str(caught.value) == "fuse: nobody knows what was asked of the process that died"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(node.kernel.fd)


async def test_connection_that_is_of_no_use_any_more(node: Node) -> None:
    ended, old = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ended.close()
    transport = node.transport()
    with pytest.raises(KernelError) as caught:
        await transport.start(node.tree, control_fd=old.detach(), taken_fd=Taken().fd)
    assert str(caught.value) == "/dev/fuse: cannot be taken over: Broken pipe"
    assert node.calls == []
