"""What every snapshotter owes containerd, as tests over its gRPC service.

A subclass gives `client`; the suite runs over lazyimg's service and over containerd's own overlayfs
snapshotter, so that what it asks for is known to be right. Source: containerd,
core/snapshots/snapshotter.go and what its overlayfs snapshotter does.

Keys are made anew for each test; nothing else may use the snapshotter meanwhile.
"""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import grpc
import pytest

from lazyimg.snapshotter.proto import snapshots_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real.snapshot_client import SnapshotClient

GC_ROOT: Final = {"containerd.io/gc.root": "1"}
"""Label that keeps containerd from removing what nobody refers to."""

CAPABILITY: Final = bytes.fromhex("0100000202000000") + bytes(12)
"""The value of security.capability for cap_dac_override=ep, see capability.h."""

_numbers = itertools.count()


def new_key(name: str = "key") -> str:
    return f"{name}-{os.getpid()}-{next(_numbers)}"


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[None]:
    """Expect a call to be answered with a status."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()


@contextmanager
def mounted(mounts: list[pb.Mount], target: Path) -> Iterator[Path]:
    """Mount what a snapshotter said, as containerd does."""
    (one,) = mounts
    target.mkdir()
    subprocess.run(
        ["mount", "-t", one.type, one.source, "-o", ",".join(one.options), target], check=True
    )
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)
        target.rmdir()


def options(mount: pb.Mount) -> dict[str, str]:
    """Give a mount's options; those without a value have ""."""
    return {name: value for name, _, value in (option.partition("=") for option in mount.options)}


class SnapshotsContract:
    """The suite."""

    # Making.

    def test_first_layer_is_a_directory_to_write_into(self, client: SnapshotClient) -> None:
        (mount,) = client.prepare(new_key())
        assert mount.type == "bind"
        assert set(mount.options) == {"rw", "rbind"}
        assert os.listdir(mount.source) == []  # noqa: PTH208
        found = os.stat(mount.source)  # noqa: PTH116
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)

    def test_view_of_nothing(self, client: SnapshotClient) -> None:
        (mount,) = client.view(new_key())
        assert mount.type == "bind"
        assert set(mount.options) == {"ro", "rbind"}

    def test_container_on_one_layer(self, client: SnapshotClient) -> None:
        layer, source = self.layer(client)
        (mount,) = client.prepare(new_key(), layer)
        assert (mount.type, mount.source) == ("overlay", "overlay")
        assert options(mount)["lowerdir"] == source
        assert os.path.isdir(options(mount)["upperdir"])  # noqa: PTH112
        assert os.path.isdir(options(mount)["workdir"])  # noqa: PTH112

    def test_container_on_three_layers(self, client: SnapshotClient) -> None:
        first, one = self.layer(client)
        second, two = self.layer(client, first)
        third, three = self.layer(client, second)
        (mount,) = client.prepare(new_key(), third)
        assert options(mount)["lowerdir"].split(":") == [three, two, one]

    def test_view_of_one_layer(self, client: SnapshotClient) -> None:
        layer, source = self.layer(client)
        (mount,) = client.view(new_key(), layer)
        assert (mount.type, mount.source) == ("bind", source)
        assert set(mount.options) == {"ro", "rbind"}

    def test_view_of_two_layers(self, client: SnapshotClient) -> None:
        first, one = self.layer(client)
        second, two = self.layer(client, first)
        (mount,) = client.view(new_key(), second)
        assert mount.type == "overlay"
        assert options(mount)["lowerdir"].split(":") == [two, one]
        assert not {"upperdir", "workdir"} & options(mount).keys()

    def test_container_has_the_owner_of_the_layer_below(self, client: SnapshotClient) -> None:
        layer, source = self.layer(client)
        os.chown(source, 1234, 5678)
        (mount,) = client.prepare(new_key(), layer)
        found = os.stat(options(mount)["upperdir"])  # noqa: PTH116
        assert (found.st_uid, found.st_gid) == (1234, 5678)

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_key_is_taken(self, client: SnapshotClient, verb: str) -> None:
        key = new_key()
        client.prepare(key)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            getattr(client, verb)(key)

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_parent_is_missing(self, client: SnapshotClient, verb: str) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            getattr(client, verb)(new_key(), "no-such-parent")

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    @pytest.mark.parametrize("below", ["prepare", "view"])
    def test_parent_is_not_committed(self, client: SnapshotClient, verb: str, below: str) -> None:
        parent = new_key()
        getattr(client, below)(parent)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            getattr(client, verb)(new_key(), parent)

    def test_failed_prepare_leaves_its_key_free(self, client: SnapshotClient) -> None:
        key = new_key()
        with refused(grpc.StatusCode.NOT_FOUND):
            client.prepare(key, "no-such-parent")
        client.prepare(key)

    # Mounts.

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_mounts_are_told_again(self, client: SnapshotClient, verb: str) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        told = getattr(client, verb)(key, layer)
        assert client.mounts(key) == told

    def test_mounts_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.mounts("no-such-snapshot")

    def test_mounts_of_a_committed_one(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.mounts(layer)

    # Commit.

    def test_commit_renames(self, client: SnapshotClient) -> None:
        below, _ = self.layer(client)
        key, name = new_key(), new_key("layer")
        client.prepare(key, below)
        client.commit(name, key, {**GC_ROOT, "own": "label"})
        info = client.stat(name)
        assert (info.name, info.parent, info.kind) == (name, below, pb.COMMITTED)
        assert dict(info.labels) == {**GC_ROOT, "own": "label"}
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat(key)

    def test_commit_does_not_inherit_labels(self, client: SnapshotClient) -> None:
        key, name = new_key(), new_key("layer")
        client.prepare(key, labels={"containerd.io/snapshot/own": "active"})
        client.commit(name, key, GC_ROOT)
        assert "containerd.io/snapshot/own" not in client.stat(name).labels

    def test_key_is_free_after_commit(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key)
        client.commit(new_key("layer"), key, GC_ROOT)
        client.prepare(key)

    def test_commit_to_a_taken_name(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        client.prepare(key)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            client.commit(layer, key)
        assert client.stat(key).kind == pb.ACTIVE

    def test_commit_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.commit(new_key("layer"), "no-such-snapshot")

    def test_commit_of_a_view(self, client: SnapshotClient) -> None:
        key = new_key()
        client.view(key)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.commit(new_key("layer"), key)

    def test_commit_of_a_committed_one(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.commit(new_key("layer"), layer)

    # Remove.

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_removed_one_is_gone(self, client: SnapshotClient, verb: str) -> None:
        key = new_key()
        getattr(client, verb)(key)
        client.remove(key)
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat(key)
        with refused(grpc.StatusCode.NOT_FOUND):
            client.remove(key)

    def test_layer_with_others_on_it_stays(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        client.prepare(key, layer)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.remove(layer)
        client.remove(key)
        client.remove(layer)
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat(layer)

    def test_chain_goes_from_the_top(self, client: SnapshotClient) -> None:
        first, _ = self.layer(client)
        second, _ = self.layer(client, first)
        third, _ = self.layer(client, second)
        for layer in (first, second):
            with refused(grpc.StatusCode.FAILED_PRECONDITION):
                client.remove(layer)
        for layer in (third, second, first):
            client.remove(layer)

    def test_key_is_free_after_remove(self, client: SnapshotClient, tmp_path: Path) -> None:
        key = new_key()
        with mounted(client.prepare(key), tmp_path / "m") as root:
            (root / "old").write_text("old")
        client.remove(key)
        with mounted(client.prepare(key), tmp_path / "m") as root:
            assert list(root.iterdir()) == []

    # Stat, Update.

    def test_stat_of_a_new_one(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        before = time.time_ns()
        client.prepare(key, layer, {"containerd.io/snapshot/own": "label", **GC_ROOT})
        info = client.stat(key)
        assert (info.name, info.parent, info.kind) == (key, layer, pb.ACTIVE)
        assert before <= info.created_at.ToNanoseconds() <= time.time_ns()
        assert info.updated_at == info.created_at
        assert info.labels["containerd.io/snapshot/own"] == "label"

    def test_stat_of_a_view(self, client: SnapshotClient) -> None:
        key = new_key()
        client.view(key)
        info = client.stat(key)
        assert (info.kind, info.parent) == (pb.VIEW, "")

    def test_stat_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat("no-such-snapshot")

    def test_update_of_all_labels(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels={"old": "1", **GC_ROOT})
        created = client.stat(key).created_at
        info = client.update(key, {"new": "2", **GC_ROOT})
        assert dict(info.labels) == {"new": "2", **GC_ROOT}
        assert info.created_at == created
        assert info.updated_at.ToNanoseconds() > created.ToNanoseconds()
        assert client.stat(key) == info

    def test_update_of_labels_by_name(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels={"old": "1", "gone": "2", **GC_ROOT})
        labels = {"new": "3", "not-masked": "4"}
        info = client.update(key, labels, ["labels.new", "labels.gone"])
        assert dict(info.labels) == {"old": "1", "new": "3", **GC_ROOT}

    def test_update_of_labels_with_dots(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels=GC_ROOT)
        info = client.update(key, {"a.b/c": "d"}, ["labels.a.b/c"])
        assert info.labels["a.b/c"] == "d"

    def test_update_of_the_whole_map(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels={"old": "1", **GC_ROOT})
        assert dict(client.update(key, GC_ROOT, ["labels"]).labels) == GC_ROOT

    @pytest.mark.parametrize("path", ["kind", "parent", "name", "created_at", "nonsense"])
    def test_update_of_what_cannot_change(self, client: SnapshotClient, path: str) -> None:
        key = new_key()
        client.prepare(key, labels=GC_ROOT)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.update(key, {}, [path])
        assert dict(client.stat(key).labels) == GC_ROOT

    def test_update_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.update("no-such-snapshot", {})

    def test_update_of_a_committed_one(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        client.update(layer, {"more": "labels", **GC_ROOT})
        info = client.stat(layer)
        assert (info.labels["more"], info.kind) == ("labels", pb.COMMITTED)

    def test_label_is_too_large(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.prepare(new_key(), labels={"big": "x" * 4096})
        key = new_key()
        client.prepare(key, labels={"big": "x" * 4000, **GC_ROOT})
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.update(key, {"big": "x" * 4096})

    # List.

    def test_list_has_everything(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        active, view = new_key(), new_key()
        client.prepare(active, layer)
        client.view(view, layer)
        listed = {info.name: info for info in client.list()}
        for key in (layer, active, view):
            assert listed[key] == client.stat(key)

    def test_list_of_many(self, client: SnapshotClient) -> None:
        marked = {"test": new_key("many"), **GC_ROOT}
        keys = {new_key() for _ in range(450)}
        for key in keys:
            client.prepare(key, labels=marked)
        listed = client.list(f"labels.test=={marked['test']}")
        assert {info.name for info in listed} == keys
        assert len(listed) == len(keys)
        for key in keys:
            client.remove(key)

    def test_list_by_filters(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        mark = new_key("mark")
        labels = {"mark": mark, "containerd.io/a.b": "x y", **GC_ROOT}
        active, view = new_key("active"), new_key("view")
        client.prepare(active, layer, labels)
        client.view(view, layer, {"mark": mark, **GC_ROOT})
        for text, expected in {
            f"name=={active}": {active},
            f"parent=={layer},kind==view": {view},
            f"labels.mark=={mark}": {active, view},
            f'labels."containerd.io/a.b"=="x y",labels.mark=={mark}': {active},
            f'labels."containerd.io/a.b",labels.mark=={mark}': {active},
            f"labels.mark=={mark},kind!=active": {view},
            f"labels.mark~=^{mark[:-1]}.$,name~=/^view-/": {view},
            f'parent=="{layer}", kind==active': {active},
            f"labels.mark=={mark},labels.mark!={mark}": set(),
            f"name=={active},kind==committed": set(),
        }.items():
            assert {info.name for info in client.list(text)} == expected, text

    def test_list_by_any_of_several_filters(self, client: SnapshotClient) -> None:
        first, second = new_key(), new_key()
        client.prepare(first)
        client.view(second)
        listed = client.list(f"name=={first}", f"name=={second}", "name==other")
        assert {info.name for info in listed} == {first, second}

    # Usage.

    def test_usage_of_an_active_one_grows(self, client: SnapshotClient, tmp_path: Path) -> None:
        key = new_key()
        with mounted(client.prepare(key), tmp_path / "m") as root:
            size, inodes = client.usage(key)
            (root / "file").write_bytes(bytes(range(256)) * 4096)
            os.link(root / "file", root / "link")
            (root / "directory").mkdir()
            (root / "directory/symlink").symlink_to("x")
            grown, more = client.usage(key)
        assert more - inodes == 3  # a hard link is none
        assert 1 << 20 <= grown - size < (1 << 20) + (1 << 16)

    def test_usage_of_a_committed_one(self, client: SnapshotClient, tmp_path: Path) -> None:
        below, _ = self.layer(client)
        key, name = new_key(), new_key("layer")
        with mounted(client.prepare(key, below), tmp_path / "m") as root:
            (root / "sparse").write_bytes(b"x")
            os.truncate(root / "sparse", 1 << 30)
        client.commit(name, key, GC_ROOT)
        size, inodes = client.usage(name)
        assert inodes == 2  # its root, and the file
        assert size < 1 << 20
        assert client.usage(new_view(client, name)) == (0, 0)

    def test_usage_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.usage("no-such-snapshot")

    # What is in them.

    def test_writes_do_not_reach_the_layer_below(
        self, client: SnapshotClient, tmp_path: Path
    ) -> None:
        layer = self.written(client, tmp_path, "", {"kept": "1", "changed": "2", "gone": "3"})
        key = new_key()
        with mounted(client.prepare(key, layer), tmp_path / "m") as root:
            (root / "changed").write_text("new")
            (root / "gone").unlink()
            (root / "added").write_text("4")
            assert tree(root) == {"kept": "1", "changed": "new", "added": "4"}
        assert self.shown(client, tmp_path, layer) == {"kept": "1", "changed": "2", "gone": "3"}

    def test_layers_on_top_of_each_other(self, client: SnapshotClient, tmp_path: Path) -> None:
        first = self.written(client, tmp_path, "", {"a": "1", "d/x": "1", "d/y": "1", "f": "1"})
        key, second = new_key(), new_key("layer")
        with mounted(client.prepare(key, first), tmp_path / "m") as root:
            (root / "a").unlink()  # a whiteout
            subprocess.run(["rm", "-r", root / "d"], check=True)
            (root / "d").mkdir()  # opaque
            (root / "d/z").write_text("2")
            (root / "f").unlink()
            (root / "f").mkdir()  # a directory instead of a file
            (root / "f/in").write_text("2")
        client.commit(second, key, GC_ROOT)
        key, third = new_key(), new_key("layer")
        with mounted(client.prepare(key, second), tmp_path / "m") as root:
            (root / "a").write_text("3")
            subprocess.run(["rm", "-r", root / "f"], check=True)
            (root / "f").write_text("3")  # and back
            (root / "d/z").rename(root / "moved")
        client.commit(third, key, GC_ROOT)
        assert self.shown(client, tmp_path, first) == {"a": "1", "d/x": "1", "d/y": "1", "f": "1"}
        assert self.shown(client, tmp_path, second) == {"d/z": "2", "f/in": "2"}
        assert self.shown(client, tmp_path, third) == {"a": "3", "f": "3", "moved": "2"}

    def test_modes_owners_links_and_attributes_stay(
        self, client: SnapshotClient, tmp_path: Path
    ) -> None:
        key, layer = new_key(), new_key("layer")
        with mounted(client.prepare(key), tmp_path / "m") as root:
            (root / "file").write_text("x")
            os.chown(root / "file", 65534, 100_000)
            (root / "file").chmod(0o4751)
            os.utime(root / "file", ns=(1, 1_234_567_890_123_456_789))
            os.setxattr(root / "file", "user.name", b"value")
            os.setxattr(
                root / "file", "security.capability", bytes.fromhex("0100000202000000") + bytes(12)
            )
            os.link(root / "file", root / "link")
            os.mkfifo(root / "pipe")
        client.commit(layer, key, GC_ROOT)
        with mounted(client.prepare(new_key(), layer), tmp_path / "m") as root:
            found = (root / "file").stat()
            assert (found.st_uid, found.st_gid) == (65534, 100_000)
            assert stat.S_IMODE(found.st_mode) == 0o4751
            assert found.st_mtime_ns == 1_234_567_890_123_456_789
            assert os.getxattr(root / "file", "user.name") == b"value"
            assert os.getxattr(root / "file", "security.capability")[:4] == b"\x01\0\0\x02"
            assert (root / "link").stat().st_ino == found.st_ino
            assert stat.S_ISFIFO((root / "pipe").stat().st_mode)

    # Names.

    @pytest.mark.parametrize(
        "name",
        [
            "default/12/extract-123 sha256:abc",
            "spaces and\ttabs",
            "größe/дом/家/🐳",
            "../../etc",
            "quote\"back\\slash'",
            "long-" + "x" * 1000,
        ],
    )
    def test_any_text_is_a_key(self, client: SnapshotClient, name: str) -> None:
        key = f"{name} {new_key()}"
        told = client.prepare(key, labels=GC_ROOT)
        assert client.mounts(key) == told
        assert [info.name for info in client.list() if info.name == key] == [key]
        client.commit(f"{key} layer", key, GC_ROOT)
        assert client.stat(f"{key} layer").name == f"{key} layer"
        client.remove(f"{key} layer")

    def test_ref_of_what_cannot_be_lazy(self, client: SnapshotClient) -> None:
        key = new_key()
        labels = {"containerd.io/snapshot.ref": new_key("sha256:chain")}
        client.prepare(key, labels=labels)
        assert client.stat(key).kind == pb.ACTIVE

    def test_cleanup(self, client: SnapshotClient) -> None:
        layer, source = self.layer(client)
        try:
            client.cleanup()
        except grpc.RpcError as error:  # it need not be there
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED  # noqa: PT017
        assert os.path.isdir(source)  # noqa: PTH112
        assert client.stat(layer).kind == pb.COMMITTED

    # Parts.

    @staticmethod
    def layer(client: SnapshotClient, parent: str = "") -> tuple[str, str]:
        """Make an empty layer; give its key and its directory."""
        key, name = new_key(), new_key("layer")
        (mount,) = client.prepare(key, parent)
        client.commit(name, key, GC_ROOT)
        return name, options(mount)["upperdir"] if parent else mount.source

    @staticmethod
    def written(client: SnapshotClient, tmp_path: Path, parent: str, files: dict[str, str]) -> str:
        """Make a layer with files; give its key."""
        key, name = new_key(), new_key("layer")
        with mounted(client.prepare(key, parent), tmp_path / "m") as root:
            for path, text in files.items():
                (root / path).parent.mkdir(exist_ok=True)
                (root / path).write_text(text)
        client.commit(name, key, GC_ROOT)
        return name

    @staticmethod
    def shown(client: SnapshotClient, tmp_path: Path, layer: str) -> dict[str, str]:
        """Give the files that a view of a layer shows."""
        key = new_key()
        with mounted(client.view(key, layer), tmp_path / "m") as root:
            return tree(root)


def new_view(client: SnapshotClient, parent: str) -> str:
    key = new_key()
    client.view(key, parent)
    return key


def tree(root: Path) -> dict[str, str]:
    """Give the text of each file below a directory, by its path."""
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }
