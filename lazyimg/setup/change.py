"""A configuration file changed as a whole, or not at all; and changed back, byte for byte."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.errors import (
    ConfigurationError,
    CorruptError,
    InUseError,
    NotFoundError,
    NotRootError,
    StorageError,
)
from lazyimg.host.files import sync_directory, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_SIZE: Final = 1 << 20
"""Bytes of a configuration file."""


@dataclass(frozen=True, slots=True)
class _Record:
    """SHA-256 of the file before lazyimg changed it, and after."""

    before: str
    after: str


class ConfigurationFile:
    """A file that belongs to somebody else, beside which lazyimg keeps how it was.

    Attributes:
        path: of the file.
        copy: of the copy from before the first change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.copy = path.with_name(f"{path.name}.before-lazyimg")
        self._record = path.with_name(f"{path.name}.lazyimg")

    def read(self) -> bytes:
        """Give what is in it.

        Raises:
            NotFoundError: it is not there.
            ConfigurationError: it is too large, a symbolic link, or no file at all.
            NotRootError: it is for root only.
            StorageError: it cannot be read.
        """
        with self._problems("read"):
            status = self.path.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise ConfigurationError(
                    str(self.path),
                    "is a symbolic link",
                    f"name the file that it leads to: --file {self.path.resolve()}",
                )
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(str(self.path), "is no file")
            with self.path.open("rb") as file:
                data = file.read(MAX_SIZE + 1)
        if len(data) > MAX_SIZE:
            raise ConfigurationError(str(self.path), f"over {MAX_SIZE} bytes")
        return data

    def change(self, before: bytes, after: bytes, check: Callable[[Path], None]) -> None:
        """Replace it.

        Args:
            before: what was read from it.
            after: what it is to be.
            check: raises if a file with that, in the same directory, cannot be used.

        Raises:
            ConfigurationError: somebody has changed it since lazyimg did.
            InUseError: somebody changes it now.
            NotRootError, StorageError: it cannot be written; it is as it was.
        """
        record = self._read_record()
        first = record is None or record.before == _digest(before)
        if not first and record is not None and record.after != _digest(before):
            raise ConfigurationError(
                str(self.path),
                "was changed by somebody else after lazyimg changed it",
                f"remove {self._record} to have it copied anew; {self.copy} is how it was before",
            )
        with self._problems("changed"), self._aside(after) as aside:
            check(aside)
            if first:
                self._write_beside(self.copy, before)
            original = _digest(before) if first or record is None else record.before
            fields = asdict(_Record(original, _digest(after)))
            self._write_beside(self._record, f"{json.dumps(fields)}\n".encode())
            if self.read() != before:
                raise InUseError(str(self.path), "somebody else is changing it", "try again")
            aside.rename(self.path)
            sync_directory(self.path.parent)

    def undo(self) -> bool:
        """Give it back what it had before the first change; False if it has that already.

        Raises:
            NotFoundError: lazyimg has not changed it.
            ConfigurationError: somebody has changed it since lazyimg did.
            CorruptError: the copy is not what it was.
            NotRootError, StorageError: it cannot be written; it is as it was.
        """
        record = self._read_record()
        if record is None:
            raise NotFoundError(str(self.path), "lazyimg has not changed it", "nothing is to undo")
        now = _digest(self.read())
        if now not in {record.before, record.after}:
            raise ConfigurationError(
                str(self.path),
                "was changed by somebody else after lazyimg changed it",
                f"take the lines out by hand: compare it with {self.copy}, how it was before",
            )
        with self._problems("changed"):
            if now == record.after and now != record.before:
                if not self.copy.exists() or _digest(self.copy.read_bytes()) != record.before:
                    raise CorruptError(
                        str(self.copy),
                        "is missing, or not the copy that lazyimg made",
                        f"take the lines out of {self.path} by hand",
                    )
                self.copy.rename(self.path)
            else:
                self.copy.unlink(missing_ok=True)
            sync_directory(self.path.parent)
            self._record.unlink()
        return now != record.before

    def _read_record(self) -> _Record | None:
        with self._problems("read"):
            try:
                return _Record(**json.loads(self._record.read_bytes()))
            except FileNotFoundError:
                return None
            except (ValueError, TypeError) as error:
                raise CorruptError(
                    str(self._record),
                    "is not what lazyimg wrote",
                    f"remove it; {self.copy} is {self.path.name} from before",
                ) from error

    @contextmanager
    def _aside(self, data: bytes) -> Iterator[Path]:
        """Have a file beside it, synced, with its mode and owner, until the end of the block."""
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                self._copy_mode(handle)
                os.fsync(handle)
            yield Path(name)
        finally:
            with suppress(FileNotFoundError):  # it was renamed
                os.unlink(name)  # noqa: PTH108

    def _write_beside(self, path: Path, data: bytes) -> None:
        write_file(path, data)
        with path.open("rb") as file:
            self._copy_mode(file.fileno())

    def _copy_mode(self, handle: int) -> None:
        status = self.path.stat()
        ours = os.fstat(handle)
        if (ours.st_uid, ours.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(handle, status.st_uid, status.st_gid)
        os.fchmod(handle, stat.S_IMODE(status.st_mode))

    @contextmanager
    def _problems(self, done: str) -> Iterator[None]:
        """Say what is wrong with the file, or with its directory, in lazyimg's words."""
        try:
            yield
        except FileNotFoundError as error:
            raise NotFoundError(
                str(self.path),
                "does not exist",
                "name the file that containerd uses (--file), or make an empty one",
            ) from error
        except OSError as error:
            problem = f"cannot be {done}: {error.strerror}"
            if error.errno in {errno.EACCES, errno.EPERM} and os.geteuid() != 0:
                raise NotRootError(str(self.path), problem, "run it as root") from error
            raise StorageError(str(self.path), problem) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
