"""The daemon's process: ``python -P -m lazyimg.worker CONFIGURATION``.

The configuration is JSON and holds what differs from the defaults. It was read and checked once,
when `lazyimg serve` was called: a worker that replaces one that died must not depend on what the
file says by then. What the kernel waits for is imported and started first, the rest behind it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any

import msgspec

from lazyimg.config import Config
from lazyimg.errors import LazyimgError
from lazyimg.logs import configure_logs, redact

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger(__name__)


def worker_command(config: Config, *, debug: bool = False) -> list[str]:
    """Give the command of a worker; `debug` shows where an error comes from."""
    changed = _differences(msgspec.to_builtins(config), msgspec.to_builtins(Config()))
    flags = ["--debug"] if debug else []
    text = msgspec.json.encode(changed).decode()
    return [sys.executable, "-P", "-m", "lazyimg.worker", *flags, text]


def _differences(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _differences(value, defaults[key]) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != defaults[key]
    }


def main(arguments: Sequence[str]) -> int:
    """Serve until told to stop; gives the exit code."""
    *flags, text = arguments
    config = msgspec.json.decode(text, type=Config)
    configure_logs(config.log)
    from lazyimg.app import run  # noqa: PLC0415  logs are set up before anything can go wrong

    try:
        run(config)
    except Exception as error:
        if "--debug" in flags:
            traceback.print_exc()
        code, said = _describe(error)
        line = redact(" ".join(said.split()))
        shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
        print(f"lazyimg: {shown}", file=sys.stderr)  # noqa: T201  as every command fails
        return code
    return 0


def _describe(error: Exception) -> tuple[int, str]:
    if isinstance(error, LazyimgError):
        return error.exit_code, str(error)
    name = type(error).__name__
    return LazyimgError.exit_code, f"internal error: {name}: {error}; --debug shows where"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
