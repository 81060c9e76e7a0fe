"""Where the project's source lies, and what it imports."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = {"lazyimg": PROJECT / "lazyimg", "formats": PROJECT / "formats/lazyimg_formats"}
PYTHON_SHEBANG = b"#!/usr/bin/env python3\n"


class Import(NamedTuple):
    """One name that a file imports: `from module import name`, or `import module`."""

    path: Path
    line: int
    module: str
    name: str | None

    def __str__(self) -> str:
        """Say where it is and what it imports, for a failing test."""
        what = f"from {self.module} import {self.name}" if self.name else f"import {self.module}"
        return f"{self.path.relative_to(PROJECT)}:{self.line}: {what}"


def python_files(*directories: Path) -> list[Path]:
    """Return every Python module below the directories."""
    return sorted(path for directory in directories for path in directory.rglob("*.py"))


def python_scripts() -> list[Path]:
    """Return the scripts that are written in Python; they have no suffix."""
    files = (path for path in (PROJECT / "scripts").rglob("*") if path.is_file())
    return sorted(path for path in files if path.read_bytes().startswith(PYTHON_SHEBANG))


def imports_of(path: Path) -> Iterator[Import]:
    """Yield every import of a file, wherever it stands in it."""
    for node in ast.walk(ast.parse(path.read_bytes(), path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(path, node.lineno, "." * node.level + (node.module or ""), alias.name)
