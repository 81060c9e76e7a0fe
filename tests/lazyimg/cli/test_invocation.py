"""What the common flags lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg.cli.invocation import Invocation

if TYPE_CHECKING:
    from pathlib import Path


def test_flags_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('address = "/file.sock"\nroot = "/file"\n')
    invocation = Invocation(config_file=file, address="/flag.sock")
    config = invocation.config(root=None, log__level="debug")
    assert (config.address, config.root, config.log.level) == ("/flag.sock", "/file", "debug")
