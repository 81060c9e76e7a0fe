"""Who may import what. The order of the layers is in pyproject.toml, for import-linter."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

from tests.architecture.source import PROJECT, SOURCE_ROOTS, imports_of, python_files

# What bytes and values need, and nothing that could read, wait, or tell the time.
PURE = frozenset(
    {
        *("__future__", "array", "base64", "binascii", "bisect", "collections", "contextlib"),
        *(
            "copy",
            "dataclasses",
            "enum",
            "errno",
            "functools",
            "gc",
            "hashlib",
            "heapq",
            "ipaddress",
        ),
        *("itertools", "json", "math", "operator", "re", "stat", "string", "struct", "types"),
        *("posixpath", "tomllib", "typing", "urllib.parse", "zlib"),
        *("blake3", "construct", "fastcrc", "lz4", "msgspec", "zstandard", "lazyimg_formats"),
        "tomllib",  # its `loads`: no file is opened here
        "datetime",  # for its arithmetic; see IMPURE_CALLS
        "threading",  # for decoders, of which each thread has its own
    }
)
IMPURE_CALLS = frozenset({"open", "print", "input", "now", "today", "utcnow", "Thread"})
HEAVY = frozenset({"aiohttp", "asyncio", "construct", "rich", "ssl", "zstandard"})
CHECK_LAYERS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
SHOW_HELP = """
import sys
from lazyimg.cli.command import main
sys.argv = ["lazyimg", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sys.modules, file=sys.stderr)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT}/formats"}


def test_layers() -> None:
    linter = subprocess.run(
        [sys.executable, "-c", CHECK_LAYERS, "--no-logo", "--cache-dir", ".import_linter_cache"],
        cwd=PROJECT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linter.returncode == 0, linter.stdout + linter.stderr


def test_formats_are_pure() -> None:
    impure = [
        str(found)
        for path in python_files(SOURCE_ROOTS["formats"])
        for found in imports_of(path)
        if not PURE & {found.module, found.module.partition(".")[0]}
    ]
    assert impure == []


def test_formats_call_nothing_impure() -> None:
    called = [
        f"{path.relative_to(PROJECT)}:{node.lineno}: {ast.unparse(node.func)}"
        for path in python_files(SOURCE_ROOTS["formats"])
        for node in ast.walk(ast.parse(path.read_bytes(), path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPURE_CALLS
    ]
    assert called == []


def test_private_names_stay_in_their_module() -> None:
    taken = [
        str(found)
        for path in python_files(*SOURCE_ROOTS.values(), PROJECT / "tests")
        for found in imports_of(path)
        if found.name
        and found.name.startswith("_")
        and not found.name.startswith("__")
        and found.module.startswith("lazyimg")
    ]
    assert taken == []


def test_imports_are_absolute() -> None:
    relative = [
        str(found)
        for path in python_files(*SOURCE_ROOTS.values(), PROJECT / "tests")
        for found in imports_of(path)
        if found.module.startswith(".")
    ]
    assert relative == []


def test_help_imports_nothing_heavy() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_HELP],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "mount" in shown.stdout
    assert HEAVY.intersection(shown.stderr.split()) == set()
