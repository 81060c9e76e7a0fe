"""A client that makes, changes and removes snapshots at random, and knows what it was told.

    loop = SnapshotLoop("one", seed=1)
    loop.start(socket)          # in a thread, until a call fails: the service was killed
    ...
    loop.wait()
    loop.settle(client)         # the service runs again: what was not answered is there, or not
    loop.snapshots              # what must be there

Each snapshot that can be written has a file of its own, which must not be lost either.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc

from lazyimg.snapshotter.proto import snapshots_pb2 as pb
from tests.contracts.snapshots import GC_ROOT
from tests.real.snapshot_client import SnapshotClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST: Final = 12
"""Snapshots of one loop, after which it removes some."""

NAME: Final = "name"
"""The file in each snapshot's directory; has its first key in it."""

NOT_ANSWERED: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class Known(NamedTuple):
    """A snapshot as it was told.

    Attributes:
        kind: of the protocol.
        parent: its key; "".
        label: of the name "told".
        directory: of what is written; None for a view.
    """

    kind: int
    parent: str
    label: str
    directory: Path | None


class Step(NamedTuple):
    """A call, and what it changes: key -> what is known then, None when it is gone."""

    call: Callable[[SnapshotClient], list[pb.Mount] | None]
    changes: dict[str, Known | None]


class SnapshotLoop:
    """One client.

    Args:
        name: begins each key.
        seed: of what it does.
        base: the key of a committed snapshot that others keep; "": none.

    Attributes:
        snapshots: what must be there.
        steps: how many calls were answered.
    """

    def __init__(self, name: str, seed: int, base: str = "") -> None:
        self.snapshots: dict[str, Known] = {}
        self.steps = 0
        self._name = name
        self._base = base
        self._chance = random.Random(seed)  # noqa: S311 - what to do next
        self._made = 0
        self._open: Step | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, socket: Path) -> None:
        """Begin to make calls."""
        self._thread = threading.Thread(target=self._run, args=(socket,))
        self._thread.start()

    def wait(self) -> None:
        """Wait until a call was not answered; fails if one was refused."""
        assert self._thread is not None
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self, socket: Path) -> None:
        client = SnapshotClient(socket)
        try:
            while True:
                self.step(client)
        except grpc.RpcError as error:
            if error.code() not in NOT_ANSWERED:
                self._failure = error
        except BaseException as error:
            self._failure = error
        finally:
            client.close()

    def step(self, client: SnapshotClient) -> None:
        """Make one call."""
        self._open = self._choose()
        self._done(self._open, self._open.call(client))
        self.steps += 1

    def _done(self, step: Step, mounts: list[pb.Mount] | None) -> None:
        self._open = None
        for key, known in step.changes.items():
            if known is None:
                del self.snapshots[key]
            elif known.kind == pb.ACTIVE and mounts is not None:
                directory = upper_directory(mounts)
                (directory / NAME).write_text(key)
                self.snapshots[key] = known._replace(directory=directory)
            else:
                self.snapshots[key] = known

    def settle(self, client: SnapshotClient) -> None:
        """Find out what became of the call that was not answered: all of it, or nothing."""
        step, self._open = self._open, None
        if step is None:
            return
        told = {info.name: info for info in client.list() if info.name in step.changes}
        before = step.changes.keys() & self.snapshots.keys()
        after = {key for key, known in step.changes.items() if known is not None}
        assert told.keys() in (before, after)
        if before == after:  # other labels, or those that it had
            (key,) = after
            known = step.changes[key]
            assert known is not None
            if told[key].labels["told"] == known.label:
                self._done(step, None)
        elif told.keys() == after:
            made = [key for key in after if len(before) == 0 and told[key].kind == pb.ACTIVE]
            self._done(step, client.mounts(made[0]) if made else None)

    def check_files(self) -> None:
        """Fail if a file is not there that was written into a snapshot."""
        for key, known in self.snapshots.items():
            if known.directory is not None:
                assert (known.directory / NAME).read_text().startswith(self._name), key

    def _choose(self) -> Step:
        active = [key for key, one in self.snapshots.items() if one.kind == pb.ACTIVE]
        parents = {one.parent for one in self.snapshots.values()}
        leaves = [key for key in self.snapshots if key not in parents]
        choices: list[Callable[[], Step]] = [lambda: self._remove(self._chance.choice(leaves))]
        if len(self.snapshots) < MOST:
            choices = [self._prepare, self._prepare, self._view]
            if leaves:
                choices.append(lambda: self._remove(self._chance.choice(leaves)))
        if active:
            choices.append(lambda: self._commit(self._chance.choice(active)))
        if self.snapshots:
            choices.append(lambda: self._update(self._chance.choice(list(self.snapshots))))
        return self._chance.choice(choices)()

    def _new_key(self) -> str:
        self._made += 1
        return f"{self._name}-{self._made}"

    def _parent(self) -> str:
        committed = [key for key, one in self.snapshots.items() if one.kind == pb.COMMITTED]
        return self._chance.choice([self._base, *committed])

    def _labels(self) -> Mapping[str, str]:
        return {**GC_ROOT, "told": str(self._chance.random())}

    def _prepare(self) -> Step:
        key, parent, labels = self._new_key(), self._parent(), self._labels()
        known = Known(pb.ACTIVE, parent, labels["told"], None)
        return Step(lambda client: client.prepare(key, parent, labels), {key: known})

    def _view(self) -> Step:
        key, parent, labels = self._new_key(), self._parent(), self._labels()
        known = Known(pb.VIEW, parent, labels["told"], None)
        return Step(lambda client: client.view(key, parent, labels), {key: known})

    def _commit(self, key: str) -> Step:
        name, labels = self._new_key(), self._labels()
        known = self.snapshots[key]._replace(kind=pb.COMMITTED, label=labels["told"])
        return Step(lambda client: client.commit(name, key, labels), {key: None, name: known})

    def _remove(self, key: str) -> Step:
        return Step(lambda client: client.remove(key), {key: None})

    def _update(self, key: str) -> Step:
        labels = self._labels()

        def update(client: SnapshotClient) -> None:
            client.update(key, labels)

        return Step(update, {key: self.snapshots[key]._replace(label=labels["told"])})


def upper_directory(mounts: list[pb.Mount]) -> Path:
    """Return the directory that takes what is written."""
    (mount,) = mounts
    if mount.type == "bind":
        return Path(mount.source)
    options = dict(option.partition("=")[::2] for option in mount.options)
    return Path(options["upperdir"])
