"""Every failure that a user is told of, in one line: where, what is wrong, what to do.

Three families: theirs (the registry, the image, the kernel), the environment's (this machine, its
configuration), and the caller's own (usage). Each class has an exit code, listed in
docs/exit-codes.md, and a kind: the word that the local API and log records use for it.
"""

from __future__ import annotations

from typing import ClassVar


class LazyimgError(Exception):
    """A failure with its facts.

    Attributes:
        what: where it happened: a reference, a path, a device, a URL without its query.
        problem: what is wrong, expected and got.
        remedy: what to do about it; may be empty.
        exit_code: what a command exits with.
        kind: one word for machines.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "failed"

    def __init__(self, what: str, problem: str, remedy: str = "") -> None:
        super().__init__(what, problem, remedy)
        self.what = what
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.what}: {self.problem}"
        return f"{text}; {self.remedy}" if self.remedy else text


class NotFoundError(LazyimgError):
    """The thing named does not exist: an image, a mount, a blob."""

    exit_code = 2
    kind = "not-found"


class UsageError(LazyimgError):
    """A command, or a request to the daemon, that makes no sense."""

    exit_code = 64
    kind = "usage"


class BadReferenceError(LazyimgError):
    """Text that names no image."""

    exit_code = 65
    kind = "bad-reference"


class NoPlatformError(LazyimgError):
    """The image exists, but not for this platform."""

    exit_code = 66
    kind = "no-platform"


class NotLazyError(LazyimgError):
    """The image, or a layer of it, cannot be loaded lazily.

    Attributes:
        reason: one word for why not; "format" where a layer's format is the reason.
    """

    exit_code = 67
    kind = "not-lazy"

    def __init__(
        self, what: str, problem: str, remedy: str = "", *, reason: str = "format"
    ) -> None:
        super().__init__(what, problem, remedy)
        self.reason = reason


class CorruptError(LazyimgError):
    """Bytes that do not have the digest, the size or the form that was promised."""

    exit_code = 68
    kind = "corrupt"


class RegistryError(LazyimgError):
    """A registry cannot be reached, or answers what no specification allows.

    Attributes:
        status: the HTTP status, or 0 where there was no answer.
        retryable: whether the same request may succeed later.
    """

    exit_code = 69
    kind = "registry"

    def __init__(
        self, what: str, problem: str, remedy: str = "", *, status: int = 0, retryable: bool = False
    ) -> None:
        super().__init__(what, problem, remedy)
        self.status = status
        self.retryable = retryable


class KernelError(LazyimgError):
    """The kernel lacks something, or refuses a call."""

    exit_code = 71
    kind = "kernel"


class KernelBusyError(LazyimgError):
    """Somebody else holds /dev/cachefiles."""

    exit_code = 72
    kind = "kernel-busy"


class CacheUnsuitableError(LazyimgError):
    """The cache directory lies on a file system that the kernel cannot use for it."""

    exit_code = 73
    kind = "cache-unsuitable"


class StorageError(LazyimgError):
    """The local disk is full or fails."""

    exit_code = 74
    kind = "storage"


class DaemonUnavailableError(LazyimgError):
    """The daemon's socket, or containerd's, does not answer."""

    exit_code = 75
    kind = "daemon-unavailable"


class AccessDeniedError(LazyimgError):
    """The registry refuses these credentials, or wants some."""

    exit_code = 76
    kind = "access-denied"


class NotRootError(LazyimgError):
    """The command needs root."""

    exit_code = 77
    kind = "not-root"


class ConfigurationError(LazyimgError):
    """A configuration file or variable that cannot be used."""

    exit_code = 78
    kind = "configuration"


class InUseError(LazyimgError):
    """A mount, directory or socket that is in use."""

    exit_code = 79
    kind = "in-use"
