"""Whether a file is open elsewhere: by another process, or in the kernel below a mount.

The kernel grants a write lease on a file only to the one who alone has it open. That is asked for,
and given back at once.

Source: fcntl(2), F_SETLEASE.
"""

from __future__ import annotations

import fcntl
import signal
from errno import EAGAIN


def is_open_elsewhere(fd: int) -> bool:
    """Tell whether anybody has the file of `fd`, which is open for writing, open but for `fd`.

    Raises:
        OSError: the file system knows no leases.
    """
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # whoever opens it meanwhile: this is ignored
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno != EAGAIN:
            raise
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
