"""Reading while the registry does everything that a registry can do wrong."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from lazyimg.errors import LazyimgError, RegistryError
from tests.real.docker_registry import running_registry
from tests.real.fault_proxy import TOKEN_PATH, Fault, FaultProxy, Rule, running_fault_proxy
from tests.real.lazyimg_process import Lazyimg, mounts_below
from tests.real.plain_image import PlainImage, make_plain_image
from tests.real.readers import running_readers
from tests.real.scale import scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

READS: Final = scaled(100_000)
READERS: Final = 8
SIZE: Final = min(READS * 10_000, 256 << 20)  # bytes: that there is something to fetch for long
LAYERS: Final = 16  # small ones: a registry that sends a whole one takes long
DEADLINE: Final = 10.0
SETTINGS: Final = {
    "LAZYIMG_FILL_READ_DEADLINE": f"{DEADLINE}s",
    "LAZYIMG_REGISTRY_READ_TIMEOUT": "2s",
    "LAZYIMG_REGISTRY_RETRIES": "2",
    "LAZYIMG_REGISTRY_CONNECT_TIMEOUT": "1s",
    "LAZYIMG_FILL_MIN_FETCH": "0",
    "LAZYIMG_MOUNT_READ_AHEAD": "64KiB",
}
# A failed read is asked for again: first what was read ahead, then, of each page, what is missing.
# Each of these waits for its own deadline.
PAGES: Final = 16_384 // 4096 + 1
SLOWEST: Final = (1 + PAGES) * DEADLINE + 10.0  # and what a busy machine takes
ROUNDS: Final = 20
READING: Final = 2400.0
TOKEN_USES: Final = 20  # requests; then another token is wanted
MOUNTS: Final = scaled(40, least=10)
THEIRS: Final = {"registry", "access-denied", "not-found", "corrupt"}  # kinds of failures
HARMLESS: Final = [Fault.OTHER_BYTES, Fault.WRONG_RANGE, Fault.WHOLE]  # where no range is asked for
SEED: Final = 3


class Setting(NamedTuple):
    proxy: FaultProxy
    bad: PlainImage
    good: PlainImage


@pytest.fixture(scope="module")
def setting(disk: Path) -> Iterator[Setting]:
    """A registry behind a proxy, with an image that will fail, and one that will not."""
    with tempfile.TemporaryDirectory(dir=disk) as name:
        directory = Path(name)
        lazyimg = Lazyimg(directory / "nowhere")
        with (
            running_registry(directory) as registry,
            running_fault_proxy(registry.origin, seed=SEED) as proxy,
        ):
            images = []
            for number, (tag, size) in enumerate((("bad", SIZE), ("good", SIZE // 8))):
                image = make_plain_image(directory, tag, seed=number, size=size, layers=LAYERS)
                lazyimg.verb("convert", image.reference, f"{proxy.address}/{tag}")
                images.append(image)
            yield Setting(proxy, *images)


@pytest.fixture
def lazyimg(disk: Path, setting: Setting) -> Iterator[Lazyimg]:
    setting.proxy.heal()  # of what a test that failed has left
    setting.proxy.token_uses = 0
    setting.proxy.done.clear()
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Lazyimg(Path(directory, "state"), dict(SETTINGS))
        assert mounts_below(Path(directory)) == []


@pytest.fixture
def targets(tmp_path: Path) -> list[Path]:
    directories = [tmp_path / "bad", tmp_path / "good"]
    for directory in directories:
        directory.mkdir()
    return directories


def test_readers_survive_every_fault(
    setting: Setting, lazyimg: Lazyimg, targets: list[Path]
) -> None:
    proxy = setting.proxy
    bad, good = targets
    lazyimg.settings["LAZYIMG_REGISTRY_SPOOL"] = "0"  # one answer with everything would end it all
    with lazyimg.serving():
        mount_well(lazyimg, f"{proxy.address}/bad", bad)
        mount_well(lazyimg, f"{proxy.address}/good", good)
        proxy.rules = [Rule(share=0.4, repository="bad", part="")]
        proxy.token_uses = TOKEN_USES
        with (
            running_readers(bad, setting.bad.files, processes=READERS, reads=READS) as readers,
            running_readers(good, setting.good.files, processes=1, pause=0.05) as others,
        ):
            report = readers.finish(READING)
            other = others.finish(60, stop=True)
        logging.getLogger(__name__).info("%s; other: %s; %s", report, other, proxy.done)
        assert report.wrong == []
        assert report.reads >= READS
        assert set(report.errors) == {"EIO"}
        assert report.slowest < SLOWEST
        assert set(proxy.done) == set(Fault)
        assert (other.errors, other.short, other.wrong) == ({}, 0, [])
        assert other.reads > 0

        proxy.heal()
        assert differences(bad, setting.bad.files) == []
        assert lazyimg.status()["reads_failed"] > 0


def mount_well(lazyimg: Lazyimg, reference: str, target: Path) -> None:
    """Mount from a registry that is well; on a busy machine it may miss a short deadline."""
    for _ in range(ROUNDS):
        with suppress(RegistryError):
            lazyimg.mount(reference, target)
            return
    lazyimg.mount(reference, target)


def differences(mount: Path, files: Path) -> list[Path]:
    """Return the files that have other bytes."""
    names = [path.relative_to(files) for path in files.rglob("*") if path.is_file()]
    return [name for name in names if read_again(mount / name) != (files / name).read_bytes()]


def test_each_fault_alone_ends_when_the_registry_is_well(
    setting: Setting, lazyimg: Lazyimg, targets: list[Path]
) -> None:
    proxy, target = setting.proxy, targets[0]
    with lazyimg.serving():
        mount_well(lazyimg, f"{proxy.address}/bad", target)
        paths = sorted(setting.bad.files.rglob("*/*"), key=lambda path: path.stat().st_size)
        # The last fault gives everything, and keeps it for later reads.
        faults = [*(fault for fault in Fault if fault is not Fault.WHOLE), Fault.WHOLE]
        for fault, path in zip(faults, reversed(paths), strict=False):
            alone = target / path.relative_to(setting.bad.files)
            proxy.rules = [Rule([fault], share=1, repository="bad")]
            if fault is Fault.WHOLE:
                assert alone.read_bytes()[-1:] == path.read_bytes()[-1:]
            else:
                with pytest.raises(OSError, match="Input/output error"):
                    alone.read_bytes()
            proxy.heal()
            assert read_again(alone) == path.read_bytes(), fault


def read_again(path: Path) -> bytes:
    """Read a file; on a busy machine a read may miss its short deadline."""
    for _ in range(ROUNDS):
        with suppress(OSError):
            return path.read_bytes()
    return path.read_bytes()


def mount_and_unmount(lazyimg: Lazyimg, setting: Setting, target: Path) -> str:
    """Give the kind of the failure, or "" when all is well."""
    failure = None
    try:
        lazyimg.mount(f"{setting.proxy.address}/good", target)
    except LazyimgError as error:
        failure = error
    if failure is not None:
        assert failure.kind in THEIRS, failure
        assert "\n" not in str(failure)
        assert mounts_below(target.parent) == mounts_below(lazyimg.root) == []
        return failure.kind
    setting.proxy.heal()
    path = next(setting.good.files.rglob("small5"))
    assert read_again(target / path.relative_to(setting.good.files)) == path.read_bytes()
    lazyimg.unmount(target)
    return ""


def assert_well(lazyimg: Lazyimg, setting: Setting, target: Path) -> None:
    """Fail unless everything is right as soon as the registry is well."""
    proxy = setting.proxy
    proxy.heal()
    mount_well(lazyimg, f"{proxy.address}/good", target)
    assert differences(target, setting.good.files) == []
    lazyimg.unmount(target)


@pytest.mark.parametrize("part", ["/manifests/", "/blobs/", TOKEN_PATH])
def test_mount_under_each_fault_alone(
    part: str, setting: Setting, lazyimg: Lazyimg, targets: list[Path]
) -> None:
    proxy, target = setting.proxy, targets[0]
    proxy.token_uses = TOKEN_USES
    kinds = {}
    with lazyimg.serving():
        # Once an image is known, it can be mounted while the registry is away.
        for fault in sorted(Fault, key=HARMLESS.__contains__):
            proxy.rules = [Rule([fault], share=1, repository="good", part=part)]
            kinds[fault] = mount_and_unmount(lazyimg, setting, target)
            assert kinds[fault] or fault in HARMLESS, fault
        logging.getLogger(__name__).info("%s: %s", part, kinds)
        assert proxy.done.keys() >= set(Fault) - set(HARMLESS)
        assert_well(lazyimg, setting, target)


def test_mounts_under_all_faults_at_once(
    setting: Setting, lazyimg: Lazyimg, targets: list[Path]
) -> None:
    proxy, target = setting.proxy, targets[0]
    proxy.token_uses = TOKEN_USES
    kinds: Counter[str] = Counter()
    with lazyimg.serving():
        for _ in range(MOUNTS):
            proxy.rules = [Rule(share=0.5, repository="good", part="")]
            kinds[mount_and_unmount(lazyimg, setting, target)] += 1
        logging.getLogger(__name__).info("%s; %s", kinds, proxy.done)
        assert kinds.total() == MOUNTS
        assert_well(lazyimg, setting, target)


def test_what_is_present_needs_no_registry(
    disk: Path, lazyimg: Lazyimg, targets: list[Path]
) -> None:
    target = targets[0]
    with tempfile.TemporaryDirectory(dir=disk) as name:
        image = make_plain_image(Path(name), "local", seed=7, size=8 << 20)
        with running_registry(Path(name)) as registry:
            reference = f"{registry.address}/local"
            lazyimg.verb("convert", image.reference, reference)
            with lazyimg.serving():
                mount_well(lazyimg, reference, target)
                assert differences(target, image.files) == []
                lazyimg.verb("umount", target)
        with lazyimg.serving():
            lazyimg.verb("mount", reference, target)
            Path("/proc/sys/vm/drop_caches").write_text("3")
            assert differences(target, image.files) == []
            assert lazyimg.status()["fetches"] == 0
