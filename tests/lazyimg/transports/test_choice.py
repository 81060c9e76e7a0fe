"""Which transport is started, and what of the process before this one is taken over."""

from __future__ import annotations

import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest

from lazyimg.config import Config, FuseSettings
from lazyimg.errors import (
    CacheUnsuitableError,
    KernelBusyError,
    KernelError,
    LazyimgError,
    StorageError,
)
from lazyimg.host.service_manager import ServiceManager
from lazyimg.transports import choice, trial
from lazyimg.transports.choice import Offer, Started, start_transport
from lazyimg.transports.fanotify import transport as fanotify_transport
from lazyimg.transports.fuse import device as fuse_device
from lazyimg.transports.fuse import transport as fuse_transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.cache.device_cache import DeviceCache
    from lazyimg.transports.ports import Filler, Transport

FILLER = cast("Filler", object())


class Fake:
    """A transport.

    Attributes:
        refuses: raised when it is started.
        refuses_to_go_on: raised when it is to take over.
    """

    def __init__(self, name: str, events: list[str]) -> None:
        self.name = name
        self.events = events
        self.control_fd = 0
        self.refuses: LazyimgError | None = None
        self.refuses_to_go_on: LazyimgError | None = None

    async def make(
        self, _config: Config, _filler: Filler, stack: AsyncExitStack, manager: ServiceManager
    ) -> Offer:
        assert isinstance(manager, Manager)
        stack.callback(self.events.append, f"close cache of {self.name}")
        return Offer(cast("Any", self), self.start, None)

    async def start(self, control_fd: int | None) -> None:
        self.events.append(f"{'start' if control_fd is None else 'go on with'} {self.name}")
        failure = self.refuses if control_fd is None else self.refuses_to_go_on
        if control_fd is not None:
            os.close(control_fd)
        if failure is not None:
            raise failure

    async def stop(self) -> None:
        self.events.append(f"stop {self.name}")


class Manager(ServiceManager):
    """A service manager that has some fds."""

    def __init__(self, events: list[str], *kept: str) -> None:
        super().__init__({})
        self._events = events
        self._handed = {name: [os.open("/dev/null", os.O_RDONLY)] for name in kept}

    def keep(self, name: str, fd: int, greeting: bytes = b"") -> None:
        self._events.append(f"keep {name}")

    def forget(self, name: str) -> None:
        self._events.append(f"forget {name}")

    def wait_told(self) -> None:
        self._events.append("wait")


class Choice:
    """Three transports, "first", "second", and one that must be asked for, "third".

    Attributes:
        events: what happened to them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        names = ("first", "second", "third")
        self.first, self.second, self.third = (Fake(name, self.events) for name in names)
        every = (self.first, self.second, self.third)
        monkeypatch.setattr(choice, "MAKERS", {one.name: one.make for one in every})
        monkeypatch.setattr(choice, "AUTOMATIC", ("first", "second"))

    def use(self, transport: Transport) -> None:
        self.events.append(f"use {transport.name}")

    async def start(self, *kept: str, **settings: str) -> Started:
        """Start and stop; gives what was started."""
        manager = Manager(self.events, *kept)
        config = Config(**cast("Any", settings))
        async with AsyncExitStack() as stack:
            started = await start_transport(config, FILLER, self.use, manager, stack)
            self.events.append("serve")
        return started


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> Choice:
    return Choice(monkeypatch)


END = ["serve", "stop first", "forget first", "close cache of first"]


async def test_first_that_works(transports: Choice) -> None:
    started = await transports.start()
    assert (str(started.transport.name), started.took_over) == ("first", False)
    assert transports.events == ["use first", "start first", "keep first", *END]


async def test_next_one_where_the_kernel_lacks_the_first(
    transports: Choice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    transports.first.refuses = KernelError("/dev/it", "is missing")
    started = await transports.start()
    assert str(started.transport.name) == "second"
    assert transports.events == [
        "use first",
        "start first",
        "close cache of first",
        "use second",
        "start second",
        "keep second",
        *[event.replace("first", "second") for event in END],
    ]
    assert caplog.messages == ["transport second; not first: /dev/it: is missing"]


async def test_first_that_somebody_else_uses_is_not_passed_over(transports: Choice) -> None:
    transports.first.refuses = KernelBusyError("/dev/it", "is in use")
    with pytest.raises(KernelBusyError):
        await transports.start()
    assert transports.events[-1] == "close cache of first"


async def test_cache_on_the_wrong_file_system_is_said(transports: Choice) -> None:
    transports.first.refuses = CacheUnsuitableError("/cache", "lies on tmpfs")
    with pytest.raises(CacheUnsuitableError):
        await transports.start()
    assert transports.events[-1] == "close cache of first"


async def test_none_that_works(transports: Choice) -> None:
    transports.first.refuses = KernelError("/dev/it", "is missing")
    transports.second.refuses = KernelError("/dev/other", "is too old")
    with pytest.raises(KernelError) as caught:
        await transports.start()
    assert str(caught.value) == (
        "transport: none works here: first: /dev/it: is missing; second: /dev/other: is too old;"
        " `lazyimg doctor` says more"
    )


async def test_the_one_of_the_process_before_goes_on(transports: Choice) -> None:
    started = await transports.start("api", "second")
    assert (str(started.transport.name), started.took_over) == ("second", True)
    assert transports.events[:3] == ["use second", "go on with second", "serve"]


async def test_one_that_cannot_go_on_starts_anew(
    transports: Choice, caplog: pytest.LogCaptureFixture
) -> None:
    transports.first.refuses_to_go_on = KernelError("/dev/it", "hands nothing over")
    started = await transports.start("first")
    assert not started.took_over
    assert transports.events[:5] == [
        "use first", "go on with first", "forget first", "wait", "start first"
    ]  # fmt: skip
    assert caplog.messages == [
        "the mounts cannot be served on, they are mounted again: /dev/it: hands nothing over"
    ]


async def test_one_that_is_wanted_is_the_only_one_tried(transports: Choice) -> None:
    started = await transports.start(transport="third")
    assert str(started.transport.name) == "third"
    assert "use first" not in transports.events
    transports.third.refuses = KernelError("/dev/it", "is missing")
    with pytest.raises(KernelError, match=r"^/dev/it: is missing$"):
        await transports.start(transport="third")


async def test_what_was_chosen_before_goes_on_without_being_good_for_it(
    transports: Choice,
) -> None:
    assert (await transports.start("third")).took_over


async def test_what_is_not_wanted_any_more_is_given_up(
    transports: Choice, caplog: pytest.LogCaptureFixture
) -> None:
    started = await transports.start("first", "api", transport="second")
    assert not started.took_over
    assert transports.events[:3] == ["forget first", "wait", "use second"]
    assert caplog.messages == [
        "transport first is not wanted any more; its mounts are mounted again"
    ]


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Take any file system for one that can hold the cache; gives the directories."""
    checked: list[Path] = []
    monkeypatch.setattr(choice, "check_directory", checked.append)
    return checked


class Fuse:
    """Stands for the transport over FUSE; `started` is what it was started with."""

    name = "fuse"
    control_fd = 0
    started: ClassVar[list[tuple[Path, int | None]]] = []
    taken: ClassVar[list[bool]] = []
    passing: ClassVar[list[bool]] = []

    def __init__(
        self,
        _filler: Filler,
        cache: DeviceCache,
        *,
        read_deadline: float | None,
        passthrough: bool,
        ahead: int,
        lost: Callable[[], None],
        keeper: ServiceManager,
    ) -> None:
        assert isinstance(keeper, Manager)
        self.passing.append(passthrough)
        assert ahead == 8 << 20
        assert read_deadline == 60
        self.lost = lost
        assert cache.names() == []

    async def start(
        self, directory: Path, *, control_fd: int | None = None, taken_fd: int | None = None
    ) -> None:
        assert directory.is_dir()
        self.started.append((directory, control_fd))
        self.taken.append(taken_fd is not None)
        for fd in (control_fd, taken_fd):
            if fd is not None:
                os.close(fd)

    async def stop(self) -> None:
        """Do nothing."""


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand for FUSE and for the trial of mounts from files; gives where that was made."""
    tried: list[Path] = []

    async def try_file_mount(root: Path, how: str) -> None:
        assert how == "auto"
        tried.append(root)

    monkeypatch.setattr(trial, "try_file_mount", try_file_mount)
    monkeypatch.setattr(fuse_transport, "FuseTransport", Fuse)
    monkeypatch.setattr(Fuse, "started", [])
    monkeypatch.setattr(Fuse, "passing", [])
    monkeypatch.setattr(Fuse, "taken", [])
    return tried


async def start_fuse(config: Config, *kept: str) -> Started:
    async with AsyncExitStack() as stack:
        manager = Manager([], *kept)
        return await start_transport(config, FILLER, lambda _: None, manager, stack)


@pytest.mark.parametrize("cache", ["", "elsewhere"])
async def test_fuse_is_mounted_below_the_root(
    tried: list[Path], tmp_path: Path, cache: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    elsewhere = str(tmp_path / cache) if cache else ""
    config = Config(root=str(root), cache=elsewhere, transport="fuse")
    for _ in range(2):
        started = await start_fuse(config)
        assert started.cache is not None
        assert started.cache.directory == Path(elsewhere or root, "devices")
    assert tried == [root, root]
    assert Fuse.started == [(root / "fuse", None)] * 2
    assert Fuse.passing == [False, False]


@pytest.mark.usefixtures("tried")
async def test_complete_devices_as_files_of_fuse(tmp_path: Path) -> None:
    settings = FuseSettings(complete="passthrough")
    await start_fuse(Config(root=str(tmp_path), transport="fuse", fuse=settings))
    assert Fuse.passing == [True]


async def test_fuse_that_is_taken_over_is_tried_no_more(tried: list[Path], tmp_path: Path) -> None:
    started = await start_fuse(Config(root=str(tmp_path)), "fuse")
    assert started.took_over
    assert tried == []
    ((directory, control_fd),) = Fuse.started
    assert directory == tmp_path / "fuse"
    assert control_fd is not None
    assert Fuse.taken == [False]


@pytest.mark.usefixtures("tried")
async def test_what_fuse_had_taken_is_handed_on(tmp_path: Path) -> None:
    config = Config(root=str(tmp_path), transport="fuse")
    started = await start_fuse(config, "fuse", "fuse-taken")
    assert started.took_over
    assert Fuse.taken == [True]
    await start_fuse(config, "fuse-taken")  # nothing asks for it
    assert Fuse.taken == [True, False]


@pytest.mark.usefixtures("tried")
async def test_fuse_with_a_cache_on_the_wrong_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: list[Path]
) -> None:
    await start_fuse(Config(root=str(tmp_path), transport="fuse"))
    assert checked == [tmp_path / "devices"]

    def refuse(directory: Path) -> None:
        raise CacheUnsuitableError(str(directory), "it lies on tmpfs")

    monkeypatch.setattr(choice, "check_directory", refuse)
    with pytest.raises(CacheUnsuitableError, match="it lies on tmpfs"):
        await start_fuse(Config(root=str(tmp_path), transport="fuse"))


@pytest.mark.usefixtures("tried")
async def test_fuse_with_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "devices").touch()
    with pytest.raises(StorageError) as caught:
        await start_fuse(Config(root=str(tmp_path), transport="fuse"))
    assert str(caught.value) == f"{tmp_path}/devices: cannot be used: File exists"


class Fanotify:
    """Stands for the transport over fanotify."""

    name = "fanotify"
    control_fd = 0
    made: ClassVar[list[Fanotify]] = []

    def __init__(
        self,
        _filler: Filler,
        cache: DeviceCache,
        *,
        keeper: ServiceManager,
        lost: Callable[[str, frozenset[str]], None],
        ahead: int,
    ) -> None:
        assert ahead == 8 << 20
        assert cache.names() == []
        self.keeper = keeper
        self.lost = lost
        self.started: list[tuple[Path, bool, bool]] = []
        self.made.append(self)

    async def start(
        self, directory: Path, *, control_fd: int | None = None, guard_fd: int | None = None
    ) -> None:
        assert directory.is_dir()
        self.started.append((directory, control_fd is not None, guard_fd is not None))
        for fd in (control_fd, guard_fd):
            if fd is not None:
                os.close(fd)

    async def stop(self) -> None:
        """Do nothing."""


@pytest.fixture
def fanotify_tried(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand for fanotify and its trial; gives where that was made."""
    tried: list[Path] = []

    async def try_fanotify(_: trial.TrialImage, directory: Path, __: AsyncExitStack) -> None:
        assert list(directory.iterdir()) == []
        tried.append(directory.parent)

    monkeypatch.setattr(trial, "try_fanotify", try_fanotify)
    monkeypatch.setattr(fanotify_transport, "FanotifyTransport", Fanotify)
    monkeypatch.setattr(Fanotify, "made", [])
    return tried


async def test_fanotify_is_tried_then_started(fanotify_tried: list[Path], tmp_path: Path) -> None:
    config = Config(root=str(tmp_path), transport="fanotify")
    for _ in range(2):
        started = await start_fuse(config)
        assert started.cache is not None
        assert not started.took_over
    assert fanotify_tried == [tmp_path] * 2
    assert [one.started for one in Fanotify.made] == [[(tmp_path / "fanotify", False, False)]] * 2


async def test_fanotify_that_is_taken_over_with_its_guard(
    fanotify_tried: list[Path], tmp_path: Path
) -> None:
    started = await start_fuse(Config(root=str(tmp_path)), "fanotify", "fanotify-guard")
    assert started.took_over
    assert fanotify_tried == []
    (made,) = Fanotify.made
    assert made.started == [(tmp_path / "fanotify", True, True)]


async def test_fanotify_that_is_not_wanted_any_more_has_no_guard(
    tried: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fanotify").mkdir()
    events: list[str] = []
    manager = Manager(events, "fanotify", "fanotify-guard")
    async with AsyncExitStack() as stack:
        config = Config(root=str(tmp_path), transport="fuse")
        await start_transport(config, FILLER, lambda _: None, manager, stack)
    assert events[:3] == ["forget fanotify", "forget fanotify-guard", "wait"]
    assert tried == [tmp_path]
    assert caplog.messages == [
        "transport fanotify is not wanted any more; its mounts are mounted again"
    ]


async def test_lost_events_end_the_worker_so_that_nothing_is_taken_over(
    fanotify_tried: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    async with AsyncExitStack() as stack:
        config = Config(root=str(tmp_path), transport="fanotify")
        manager = Manager(events)
        await start_transport(config, FILLER, lambda _: None, manager, stack)
        events.clear()
        monkeypatch.setattr(os, "_exit", lambda code: events.append(f"exit {code}"))
        monkeypatch.setattr(logging, "shutdown", lambda: None)
        (made,) = Fanotify.made
        made.lost("the queue was full", frozenset({"a"}))
        assert events == ["forget fanotify", "forget fanotify-guard", "wait", "exit 71"]
    assert fanotify_tried == [tmp_path]


@pytest.mark.parametrize("kept", [False, True])
async def test_tree_that_is_left_is_cleared_away_unless_it_is_served_on(
    transports: Choice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, kept: bool
) -> None:
    cleared: list[Path] = []
    monkeypatch.setattr(fuse_device, "unmount_tree", cleared.append)
    await transports.start(*(["fuse"] if kept else []), root=str(tmp_path))
    assert cleared == ([] if kept else [tmp_path / "fuse"])
