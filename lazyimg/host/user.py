"""Who runs this process."""

from __future__ import annotations

import os

from lazyimg.errors import NotRootError


def require_root(what: str) -> None:
    """Refuse to go on as anybody but root.

    Args:
        what: the command, for the message.

    Raises:
        NotRootError: this is not root.
    """
    if os.geteuid() != 0:
        raise NotRootError(what, "mounting needs root", "run it as root")
