"""What containerd is told to mount for a snapshot. Pure, but for `list_options`.

Source: containerd, plugins/snapshots/overlay; the kernel, Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

INDEX: Final = Path("/sys/module/overlay/parameters/index")
"""Is there where overlayfs knows the option `index`."""


_SPECIAL: Final = ":,\\"


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2), in containerd's words: type, source, and options as in fstab."""

    type: str
    source: str
    options: tuple[str, ...]


def plan_mount(
    lowers: Sequence[str], upper: str | None, work: str | None, extra: Sequence[str] = ()
) -> Mount:
    """Give the mount that shows directories on top of each other.

    Args:
        lowers: what is below, the topmost first; at least one, unless `upper` is there.
        upper: takes what is written; None: nothing can be.
        work: overlayfs' own directory beside `upper`.
        extra: further options of an overlay.
    """
    if not lowers and upper is not None:
        return Mount("bind", upper, ("rw", "rbind"))
    if len(lowers) == 1 and upper is None:
        return Mount("bind", lowers[0], ("ro", "rbind"))
    options = () if upper is None else (f"workdir={work}", f"upperdir={upper}")
    return Mount("overlay", "overlay", (*options, f"lowerdir={':'.join(lowers)}", *extra))


def check_root(root: Path) -> None:
    """Raise ConfigurationError unless an overlay's options can name directories below this one.

    The kernel has escapes for what means something there; containerd, which mounts, does not.
    """
    found = " and ".join(repr(one) for one in _SPECIAL if one in str(root))
    if found:
        raise ConfigurationError(
            str(root),
            f"has {found} in its path, which the options of an overlay cannot have",
            "choose another --root",
        )


def list_options() -> tuple[str, ...]:
    """Give the further options that an overlay of snapshots has on this kernel."""
    return ("index=off",) if INDEX.exists() else ()
