"""The way in, as ``lazyimg`` and as ``python -m lazyimg``: the command line."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line; gives the exit code. Ctrl-C during its import ends it without words."""
    taken = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if taken:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lazyimg.cli.command import main as run  # noqa: PLC0415  it takes a while

    if taken:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
