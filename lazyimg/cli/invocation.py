"""One run of the command line: what its common flags say, and what follows from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.api.client import Client
    from lazyimg.config import Config


@dataclass(slots=True)
class Invocation:
    """The common flags; each may stand before or behind the verb.

    Attributes:
        debug: show a traceback with an error.
        config_file: the configuration file, instead of the default one.
        address: the daemon's socket, instead of the configured one.
    """

    debug: bool = False
    config_file: Path | None = None
    address: str | None = None

    def config(self, **flags: Any) -> Config:
        """Give the effective configuration.

        Args:
            **flags: settings from flags, by key, with `__` for a dot; None where not given.

        Raises:
            ConfigurationError: it cannot be used.
        """
        from lazyimg.config_file import load_config  # noqa: PLC0415  --help does without

        given = {key.replace("__", "."): value for key, value in flags.items()}
        return load_config(self.config_file, os.environ, {"address": self.address} | given)

    def client(self) -> Client:
        """Give the daemon's client.

        Raises:
            ConfigurationError: the configuration cannot be used.
        """
        from lazyimg.api.client import Client  # noqa: PLC0415  --help does without

        return Client(self.config().address)
