"""A program `containerd` that has no defaults: what it makes of a configuration is the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_PROGRAM: Final = """\
#!/bin/sh
if [ "$1" = --version ]; then
  echo "containerd github.com/containerd/containerd {version} 0123456"
  exit
fi
file={default}
if [ "$1" = --config ]; then file=$2; shift 2; fi
[ "$*" = "config dump" ] || exit 3
if grep -q refuse "$file"; then
  echo "a warning" >&2
  echo "containerd: failed to load TOML" >&2
  exit 1
fi
cat "$file" {more}
"""


def install_containerd(
    directory: Path, monkeypatch: pytest.MonkeyPatch, version: str, *, more: str = ""
) -> Path:
    """Put it on the PATH, before everything else.

    Args:
        directory: made, for the program and its own configuration.
        monkeypatch: puts the PATH back.
        version: which it says it has.
        more: what it adds to every configuration, as imported files would.

    Returns:
        its own configuration, an empty file.
    """
    directory.mkdir()
    configuration = directory / "config.toml"
    configuration.touch()
    imported = directory / "imported"
    imported.write_text(more)
    program = directory / "containerd"
    program.write_text(_PROGRAM.format(version=version, default=configuration, more=imported))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    return configuration
