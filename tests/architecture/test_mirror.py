"""The mirror rule: every module has a test file in the same place, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.source import PROJECT, SOURCE_ROOTS, python_files

DECLARATIONS = {"__init__.py", "__main__.py", "layout.py", "ports.py"}  # nothing that could fail
EXEMPT = {
    Path("lazyimg/api/messages.py"),  # declares structs only
    Path("lazyimg/containerd/proto/containerd_pb2.py"),  # generated
    Path("lazyimg/imageservice/proto/images_pb2.py"),  # generated
    Path("lazyimg/snapshotter/proto/snapshots_pb2.py"),  # generated
    Path("lazyimg/transports/counters.py"),  # declares fields only
}


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_every_module_has_its_tests(root: str) -> None:
    modules = python_files(SOURCE_ROOTS[root])
    untested = [
        str(module.relative_to(PROJECT))
        for module in modules
        if module.name not in DECLARATIONS
        and module.relative_to(PROJECT) not in EXEMPT
        and not mirror_of(root, module).exists()
    ]
    assert untested == []


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_every_test_file_has_its_module(root: str) -> None:
    expected = {mirror_of(root, module) for module in python_files(SOURCE_ROOTS[root])}
    found = {path for path in python_files(PROJECT / "tests" / root) if path.stem != "conftest"}
    assert sorted(str(path.relative_to(PROJECT)) for path in found - expected) == []


def test_exempt_modules_exist() -> None:
    assert [str(path) for path in EXEMPT if not (PROJECT / path).exists()] == []


def mirror_of(root: str, module: Path) -> Path:
    """Return the test file that mirrors a module."""
    place = module.relative_to(SOURCE_ROOTS[root])
    return PROJECT / "tests" / root / place.with_name(f"test_{place.name}")
