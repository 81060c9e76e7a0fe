"""Trials of transports; with a kernel they are in tests/kernel and tests/transports."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelBusyError, KernelError, StorageError
from lazyimg.host import mounts
from lazyimg.host.preflight import Check
from lazyimg.transports import trial
from lazyimg.transports.trial import TrialImage, try_file_mount, try_transports
from lazyimg_formats.erofs.reader import Image
from tests.fakes.devices import MemorySink

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack
    from pathlib import Path


async def test_image() -> None:
    image = TrialImage()
    assert hashlib.sha256(image.bootstrap).hexdigest() == image.fsid
    erofs = Image(image.bootstrap)
    assert [slot.tag.decode() for slot in erofs.slots] == [image.device]
    sizes = [image.size(name) for name in (image.device, image.fsid, "other")]
    assert sizes == [4096, len(image.bootstrap), None]
    buffer = memoryview(bytearray(8192))
    assert image.read_local(image.device, 0, 4096, buffer) == 4096
    sink = MemorySink()
    await image.fill(image.device, 0, 8192, sink)
    assert bytes(sink.data) == bytes(buffer) == b"lazyimg " * 512 + bytes(4096)


def install(monkeypatch: pytest.MonkeyPatch, *failures: Exception | None) -> list[str]:
    """Let the trials of "one", "two", ... fail so; gives what happens."""
    happened: list[str] = []

    def make(name: str, failure: Exception | None) -> Callable[..., object]:
        async def run(image: TrialImage, directory: Path, stack: AsyncExitStack) -> str:
            assert image.size(image.device) == 4096
            assert list(directory.iterdir()) == []
            (directory / "file").touch()
            happened.append(f"try {name}")
            stack.callback(happened.append, f"end {name}")
            if failure is not None:
                raise failure
            return "all is well"

        return run

    names = ("one", "two", "three", "four")
    trials = {name: make(name, failure) for name, failure in zip(names, failures, strict=False)}
    monkeypatch.setattr(trial, "TRIALS", trials)
    return happened


async def test_each_is_tried_and_says_what_came_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    happened = install(
        monkeypatch,
        None,
        KernelError("/dev/it", "is missing", "load it"),
        OSError(28, "No space left on device", "/there"),
    )
    assert await try_transports(tmp_path) == [
        Check("transport one", ok=True, detail="all is well", needed=False),
        Check(
            "transport two", ok=False, detail="/dev/it: is missing", remedy="load it", needed=False
        ),
        Check(
            "transport three",
            ok=False,
            detail="/there: No space left on device",
            remedy="use another transport",
            needed=False,
        ),
    ]
    assert happened == ["try one", "end one", "try two", "end two", "try three", "end three"]
    assert list(tmp_path.iterdir()) == []


async def test_device_that_is_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, KernelBusyError("/dev/it", "is in use"))
    held = Check("/dev/it", ok=True, detail="in use by lazyimg")
    monkeypatch.setattr(trial, "check_holders", lambda _: held)
    (check,) = await try_transports(tmp_path)
    assert check == Check("transport one", ok=True, detail="in use by lazyimg", needed=False)


async def test_trial_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def wait(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(trial, "TRIALS", {"one": wait})
    monkeypatch.setattr(trial, "TIMEOUT", 0.01)
    (check,) = await try_transports(tmp_path)
    assert (check.ok, check.detail) == (False, "no image could be read within 0.01 s")


async def test_directory_in_which_nothing_can_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    happened = install(monkeypatch, None)
    (check,) = await try_transports(tmp_path / "none")
    assert (check.ok, check.remedy) == (False, "check --root")
    assert check.detail == (
        f"{tmp_path}/none: no directory can be made in it: No such file or directory"
    )
    assert happened == []


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stand for the kernel below a daemon's directory; gives what it was asked."""
    asked: list[str] = []
    for name in ("bootstraps", "mnt"):
        (tmp_path / name).mkdir()

    async def mount(
        bootstrap: Path, devices: object, target: Path, *, loops: Path | None = None
    ) -> None:
        assert Image(bootstrap.read_bytes()).slots == devices == ()
        assert target.is_dir()
        asked.append("mount" if loops is None else f"mount as {loops.relative_to(tmp_path)}")

    async def unmount(_: Path) -> None:
        asked.append("unmount")

    monkeypatch.setattr(mounts, "mount_erofs_files", mount)
    monkeypatch.setattr(trial, "unmount", unmount)
    return asked


async def test_mount_from_a_file(host: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        await try_file_mount(tmp_path, "auto")
    assert host == ["mount", "unmount"] * 2
    await try_file_mount(tmp_path, "loop")
    assert host[4:] == ["mount as loops/.try", "unmount"]
    assert list((tmp_path / "mnt").iterdir()) == list((tmp_path / "bootstraps").iterdir()) == []


@pytest.mark.usefixtures("host")
async def test_kernel_that_does_not_mount_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def refuse(*_: object) -> None:
        raise KernelError("fsid .try", "not from a file", "use another")

    monkeypatch.setattr(mounts, "mount_erofs_files", refuse)
    with pytest.raises(KernelError) as caught:
        await try_file_mount(tmp_path, "file")
    assert str(caught.value) == "EROFS: not from a file; use another"


async def test_root_in_which_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        await try_file_mount(tmp_path, "auto")
    assert str(caught.value) == (
        f"{tmp_path}: cannot be used: No such file or directory; check --root"
    )
