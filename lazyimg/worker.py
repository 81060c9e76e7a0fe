"""The daemon's process: ``python -P -m lazyimg.worker CONFIGURATION``.

The configuration is JSON and holds what differs from the defaults. It was read and checked once,
when `lazyimg serve` was called: a worker that replaces one that died must not depend on what the
file says by then. Callers of a process that died are greeted first (`lazyimg.host.waiting`), then
what the kernel waits for is imported and started, then the rest.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from lazyimg.errors import LazyimgError
from lazyimg.host.service_manager import ServiceManager
from lazyimg.host.waiting import greet_callers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg.config import Config


def worker_command(config: Config, *, debug: bool = False) -> list[str]:
    """Give the command of a worker; `debug` shows where an error comes from."""
    import msgspec  # noqa: PLC0415  callers come first

    from lazyimg.config import Config  # noqa: PLC0415

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
    manager = ServiceManager(os.environ)
    waiting = greet_callers(manager)
    import msgspec  # noqa: PLC0415  callers come first

    from lazyimg.config import Config  # noqa: PLC0415
    from lazyimg.logs import configure_logs, redact  # noqa: PLC0415

    config = msgspec.json.decode(text, type=Config)
    configure_logs(config.log)
    from lazyimg.app import run  # noqa: PLC0415  logs are set up before anything can go wrong

    try:
        run(config, manager, waiting)
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
