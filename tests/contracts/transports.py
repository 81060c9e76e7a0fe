"""What every transport owes those who read, as tests of the whole daemon over it.

A subclass gives the fixtures `disk` (where state may lie), `setting` (see `running_setting`), `net`
(see `tests.real.safety`) and `transport` (the setting's value). All else is real: a registry,
behind a proxy that fails when it is told to; images that share a layer; readers that are processes.

The suite runs over cachefiles in scripts/kernel-vm, and over the others on this machine's kernel.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.real.docker_registry import running_registry
from tests.real.fault_proxy import Fault, FaultProxy, Rule, running_fault_proxy
from tests.real.lazyimg_process import Lazyimg, kill_all, mounts_below, worker_of
from tests.real.scale import scaled
from tests.real.shared_images import BASE, LARGE, NAMES, PROGRAM, SharedImages, make_shared_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.real.safety import SafetyNet

SIZE: Final = scaled(512 << 20, least=24 << 20)
"""Bytes of an image."""

READS: Final = scaled(200_000, least=8000)
READERS: Final = 16
KILLING: Final = scaled(120, least=6)
"""Seconds, with a kill each second."""

PAUSE: Final = 0.05
"""Seconds after each read of a process, so that there is something to fetch until the end."""

PATIENCE: Final = 60.0
"""Seconds for what ends soon, on a busy machine."""

LONG: Final = 400.0
"""Seconds for what reads everything; the full figures take longer."""

PIECE: Final = 4096
FAILING: Final = 0.05
"""The share of requests to the registry that fail."""

QUICK_FAULTS: Final = [Fault.SERVER_ERROR, Fault.WRONG_BYTES, Fault.HALF, Fault.RESET]
FAILS_AT_ONCE: Final = {
    "LAZYIMG_REGISTRY_RETRIES": "0",
    "LAZYIMG_FILL_MIN_FETCH": "0",
    "LAZYIMG_REGISTRY_SPOOL": "0",
}

MAP: Final = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
    for offset in range(len(memory) - 4096 & ~4095, -1, -4096):  # in no order that is read ahead
        memory[offset]
    print(hashlib.sha256(memory).hexdigest())
"""


class Setting(NamedTuple):
    """A registry behind a proxy, and the images in it."""

    proxy: FaultProxy
    images: SharedImages

    def reference(self, name: str) -> str:
        """Give an image's reference."""
        return f"{self.proxy.address}/{name}"

    def digest(self, name: str, path: str = LARGE) -> str:
        """Give a file's digest, as sha256sum prints it."""
        return hashlib.sha256((self.images.files(name) / path).read_bytes()).hexdigest()


@contextmanager
def running_setting(disk: Path) -> Iterator[Setting]:
    """Make images, and serve them until the block ends."""
    with tempfile.TemporaryDirectory(dir=disk) as name:
        directory = Path(name)
        images = make_shared_images(directory, size=SIZE)
        with (
            running_registry(directory) as registry,
            running_fault_proxy(registry.origin, seed=1) as proxy,
        ):
            setting = Setting(proxy, images)
            for tag in NAMES:
                Lazyimg(directory / "nowhere").verb(
                    "convert", images.reference(tag), setting.reference(tag)
                )
            yield setting


def eventually(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds; return what it gives."""
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < end, condition
        time.sleep(0.02)
    return result


def drop_caches() -> None:
    """Make the kernel forget what it need not keep."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def kill_worker(daemon: subprocess.Popen[bytes]) -> None:
    """Kill the worker; there is one, or will be."""
    os.kill(eventually(lambda: worker_of(daemon)), signal.SIGKILL)


def different_files(mount: Path, files: Path) -> list[str]:
    """Give the files of a mount that have other bytes than they should, or cannot be read."""
    found = []
    for path in files.rglob("*"):
        name = path.relative_to(files)
        if path.is_symlink() or not path.is_file():
            continue
        try:
            same = (mount / name).read_bytes() == path.read_bytes()
        except OSError as error:
            found.append(f"{name}: {error}")
        else:
            found += [] if same else [f"{name}: other bytes"]
    return found


def has_open(process: subprocess.Popen[bytes], path: Path) -> bool:
    """Tell whether a process has a file open, or had, and has ended."""
    fds = Path(f"/proc/{process.pid}/fd")
    with suppress(OSError):  # one was closed this moment
        if any(os.readlink(fd) == str(path) for fd in fds.iterdir()):  # noqa: PTH115 - a text
            return True
    return process.poll() is not None


def piece_command(path: Path, number: int = 0) -> list[str | Path]:
    """Give the command that prints a block of a file."""
    return ["dd", f"if={path}", f"bs={PIECE}", f"skip={number}", "count=1", "status=none"]


def present(lazyimg: Lazyimg, target: Path) -> tuple[int, int]:
    """Give how many bytes of a mounted image are local, and how many there are."""
    (mount,) = [one for one in lazyimg.status()["mounts"] if one["directory"] == str(target)]
    return mount["present"], mount["size"]


class EndingsContract:
    """The part of the suite that is about daemons that end."""

    @pytest.fixture
    def settings(self, transport: str) -> dict[str, str]:
        """Give the daemons' environment."""
        return {"LAZYIMG_TRANSPORT": transport}

    @pytest.fixture
    def lazyimg(self, disk: Path, settings: dict[str, str], setting: Setting) -> Iterator[Lazyimg]:
        """Give a place for a daemon, gone afterwards."""
        setting.proxy.heal()  # of what a test that failed has left
        setting.proxy.counts.held = False
        setting.proxy.done.clear()
        with tempfile.TemporaryDirectory(dir=disk) as directory:
            yield Lazyimg(Path(directory, "state"), settings)
            assert mounts_below(Path(directory)) == []

    @pytest.fixture
    def target(self, tmp_path: Path, net: SafetyNet) -> Path:
        """Give a directory to mount on."""
        directory = tmp_path / "mnt"
        directory.mkdir()
        return directory

    def assert_equal(self, net: SafetyNet, setting: Setting, name: str, target: Path) -> None:
        """Fail unless a mount has the bytes that its image has."""
        files = setting.images.files(name)
        assert net.call(different_files, target, files, timeout=LONG) == []

    def test_stop_in_the_middle_of_reads(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        counts = setting.proxy.counts
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            counts.clear()
            counts.held = True
            readers = [net.start(["cat", target / LARGE]) for _ in range(4)]
            eventually(counts.blob_reads)
            for reader in readers:  # one that comes later finds nothing mounted
                eventually(partial(has_open, reader, target / LARGE))
        counts.held = False
        for reader in readers:
            _, said = net.finish(reader)
            assert b"Input/output error" in said or b"No buffer space" in said, said
        assert mounts_below(target.parent) == []

    def test_worker_killed_in_the_middle_of_reads(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """Readers wait, and get what they asked for."""
        counts = setting.proxy.counts
        with lazyimg.serving() as daemon:
            lazyimg.mount(setting.reference("one"), target)
            counts.clear()
            counts.held = True
            readers = [net.start(["sha256sum", target / LARGE]) for _ in range(4)]
            eventually(counts.blob_reads)
            kill_worker(daemon)
            counts.held = False
            for reader in readers:
                output, said = net.finish(reader)
                assert output.split()[:1] == [setting.digest("one").encode()], said
            assert lazyimg.status()["restarts"] == 1
            self.assert_equal(net, setting, "one", target)

    def test_both_killed_in_the_middle_of_reads(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """Readers end, with an error; the next daemon makes the mounts whole again."""
        counts = setting.proxy.counts
        with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
            lazyimg.mount(setting.reference("one"), target)
            counts.clear()
            counts.held = True
            readers = [net.start(["cat", target / LARGE]) for _ in range(4)]
            eventually(counts.blob_reads)
            kill_all(daemon)
            counts.held = False
            for reader in readers:
                _, said = net.finish(reader)
                assert b"rror" in said or b"No buffer space" in said
        with lazyimg.serving():
            self.assert_equal(net, setting, "one", target)

    def test_unmount_under_load(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            files = setting.images.files("one")
            with net.reading(target, files, processes=4) as readers:
                net.run(piece_command(target / LARGE, 1))
                assert "in use" in lazyimg.failure("umount", target, status=79)
                subprocess.run(["umount", "-l", target], check=True, timeout=PATIENCE)
                time.sleep(1)  # of reading on
                report = readers.finish(LONG, stop=True)
            assert (report.errors, report.wrong) == ({}, [])
            assert report.reads > 0
            assert lazyimg.status()["mounts"] == []
            lazyimg.mount(setting.reference("one"), target)
            self.assert_equal(net, setting, "one", target)


class UpsetsContract(EndingsContract):
    """The part that is about all at once that can go wrong."""

    def test_one_fill_in_twenty_fails(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """Every byte is right, or the read is an error."""
        lazyimg.settings |= FAILS_AT_ONCE
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            setting.proxy.rules = [Rule(QUICK_FAULTS, share=FAILING)]
            report = self.read_at_random(net, setting, target)
            assert report.reads >= READS
            assert set(report.errors) <= {"EIO"}
            assert setting.proxy.done.total() > 0
            setting.proxy.heal()
            self.assert_equal(net, setting, "one", target)

    @pytest.mark.parametrize("ready", [False, True])
    def test_one_fill_in_twenty_fails_and_the_worker_is_killed(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path, *, ready: bool
    ) -> None:
        """Killed a second after the last time, which is soon, or a second after it was ready."""
        lazyimg.settings |= FAILS_AT_ONCE
        with lazyimg.serving() as daemon:
            lazyimg.mount(setting.reference("one"), target)
            setting.proxy.rules = [Rule(QUICK_FAULTS, share=FAILING)]
            files = setting.images.files("one")
            with net.reading(target, files, processes=READERS, pause=PAUSE) as readers:
                end = time.monotonic() + KILLING
                killed = 0
                while time.monotonic() < end:
                    if ready:
                        lazyimg.status()
                    time.sleep(1)
                    kill_worker(daemon)
                    killed += 1
                    drop_caches()  # so that the daemon is asked again
                lazyimg.status()
                report = readers.finish(LONG, stop=True)
            logging.getLogger(__name__).info("%d kills: %s", killed, report)
            assert report.wrong == []
            assert set(report.errors) <= {"EIO"}
            assert sum(report.errors.values()) < report.reads // 4
            assert lazyimg.status()["restarts"] >= killed
            setting.proxy.heal()
            self.assert_equal(net, setting, "one", target)

    def read_at_random(self, net: SafetyNet, setting: Setting, target: Path) -> Any:
        """Read with many processes; fail if a byte was wrong."""
        files = setting.images.files("one")
        with net.reading(target, files, processes=READERS, reads=READS) as readers:
            report = readers.finish(LONG)
        logging.getLogger(__name__).info("%s; %s", report, setting.proxy.done)
        assert report.wrong == []
        return report


class TransportContract(UpsetsContract):
    """The suite."""

    # Reading.

    def test_bytes_are_equal(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            self.assert_equal(net, setting, "one", target)
            status = lazyimg.status()
            assert status["reads"] > 0
            assert status["reads_failed"] == 0
            lazyimg.unmount(target)

    def test_what_is_not_read_is_not_fetched(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            setting.proxy.counts.clear()
            net.run(piece_command(target / LARGE))
            assert 0 < setting.proxy.counts.sent() < SIZE // 8
            assert 0 < present(lazyimg, target)[0] < SIZE // 4

    def test_many_readers_at_once(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            files = setting.images.files("one")
            with net.reading(target, files, processes=READERS, reads=READS) as readers:
                report = readers.finish(LONG)
            assert (report.errors, report.short, report.wrong) == ({}, 0, [])
            assert report.reads >= READS

    def test_reader_that_is_killed_while_it_waits(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            counts = setting.proxy.counts
            counts.clear()
            counts.held = True
            killed = [net.start(["cat", target / LARGE]) for _ in range(4)]
            eventually(counts.blob_reads)
            left = net.start(["sha256sum", target / LARGE])
            for reader in killed:
                reader.kill()
            counts.held = False
            for reader in killed:
                reader.wait(PATIENCE)
            output, said = net.finish(left)
            assert output.split()[0].decode() == setting.digest("one"), said
            self.assert_equal(net, setting, "one", target)

    def test_mapped_file(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            said = net.run([sys.executable, "-c", MAP, target / LARGE])
            assert said.decode().strip() == setting.digest("one")

    def test_program_runs_in_it(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            said = net.run(["chroot", target, f"/{PROGRAM}", f"/{LARGE}"])
            assert said.decode().split() == [setting.digest("one"), f"/{LARGE}"]

    def test_container_root_on_top(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """An overlay, whose lower layer is the image: copied up, hidden, and run."""
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target, read_write=True)
            script = f"""
                set -e; cd {target}
                printf more >>{LARGE}
                rm {BASE}/small0; mkdir new; mv {BASE}/small6 new/
                chroot . /{PROGRAM} /{LARGE} /new/small6
            """
            said = net.run(["sh", "-c", script]).decode().split()
            files = setting.images.files("one")
            longer = hashlib.sha256((files / LARGE).read_bytes() + b"more").hexdigest()
            moved = setting.digest("one", f"{BASE}/small6")
            assert said == [longer, f"/{LARGE}", moved, "/new/small6"]
            expected = {"base/small0", "base/small6", LARGE}
            different = net.call(different_files, target, files, timeout=LONG)
            assert {line.partition(":")[0] for line in different} == expected
            lazyimg.unmount(target)

    # Fills.

    def test_failing_fills_are_errors_until_the_registry_is_well(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        lazyimg.settings |= FAILS_AT_ONCE
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            setting.proxy.rules = [Rule([Fault.SERVER_ERROR], share=1)]
            for _ in range(2):
                with pytest.raises(OSError, match="Input/output error"):
                    net.run(piece_command(target / LARGE))
            assert lazyimg.status()["reads_failed"] > 0
            setting.proxy.heal()
            self.assert_equal(net, setting, "one", target)

    def test_wrong_bytes_reach_nobody(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        lazyimg.settings |= FAILS_AT_ONCE
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            setting.proxy.rules = [Rule([Fault.WRONG_BYTES], share=1)]
            with pytest.raises(OSError, match="Input/output error"):
                net.run(["cat", target / LARGE])
            setting.proxy.heal()
            self.assert_equal(net, setting, "one", target)

    def test_slow_fill_holds_up_nobody_else(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """Answers come in another order than requests."""
        base, top = layers(lazyimg, setting.reference("one"))
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            net.run(piece_command(target / "one/small6"))  # present from now on
            drop_caches()
            setting.proxy.rules = [Rule([Fault.HANG], share=1, part=base)]
            slow = net.start(["sha256sum", target / LARGE])
            eventually(lambda: setting.proxy.done[Fault.HANG])
            setting.proxy.counts.clear()
            net.run(piece_command(target / "one/small6"))
            assert setting.proxy.counts.sent(top) == 0
            different = net.call(
                different_files, target / "one", setting.images.files("one") / "one"
            )
            assert different == []
            assert slow.poll() is None
            setting.proxy.heal()
            output, said = net.finish(slow)
            assert output.split()[0].decode() == setting.digest("one"), said

    def test_read_that_takes_too_long_fails(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        lazyimg.settings["LAZYIMG_FILL_READ_DEADLINE"] = "1s"
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            setting.proxy.rules = [Rule([Fault.HANG], share=1)]
            with pytest.raises(OSError, match="Input/output error"):
                net.run(piece_command(target / LARGE))
            setting.proxy.heal()

    # Two images.

    def test_two_mounts_share_devices(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        other = target.with_name("other")
        other.mkdir()
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            lazyimg.mount(setting.reference("two"), other)
            self.assert_equal(net, setting, "one", target)
            setting.proxy.counts.clear()
            base = setting.images.files("two") / BASE
            assert net.call(different_files, other / BASE, base, timeout=LONG) == []
            assert setting.proxy.counts.sent() == 0
            lazyimg.unmount(target)
            drop_caches()
            self.assert_equal(net, setting, "two", other)

    def test_image_on_two_directories(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        other = target.with_name("other")
        other.mkdir()
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            lazyimg.mount(setting.reference("one"), other)
            net.run(piece_command(target / LARGE))
            lazyimg.unmount(target)
            self.assert_equal(net, setting, "one", other)

    # What is local.

    def test_becomes_complete_while_it_is_read(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            files = setting.images.files("one")
            with net.reading(target, files, processes=4) as readers:
                lazyimg.verb("prefetch", "-q", setting.reference("one"))
                report = readers.finish(LONG, stop=True)
            assert (report.errors, report.wrong) == ({}, [])
            self.assert_local(net, setting, lazyimg, target)

    def assert_local(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """Fail unless all bytes are local, and right."""
        now, size = present(lazyimg, target)
        assert now == size
        setting.proxy.counts.clear()
        drop_caches()
        self.assert_equal(net, setting, "one", target)
        assert setting.proxy.counts.sent() == 0

    def test_local_bytes_stay(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """After an unmount, and after a restart of the daemon."""
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            self.assert_equal(net, setting, "one", target)
            lazyimg.unmount(target)
            setting.proxy.counts.clear()
            lazyimg.mount(setting.reference("one"), target)
            drop_caches()
            self.assert_equal(net, setting, "one", target)
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            drop_caches()
            self.assert_equal(net, setting, "one", target)
        assert setting.proxy.counts.sent() == 0


def layers(lazyimg: Lazyimg, reference: str) -> Sequence[str]:
    """Give the digests of an image's layers."""
    manifest = json.loads(lazyimg.verb("inspect", "--raw", reference))
    return [layer["digest"] for layer in manifest["layers"]]
