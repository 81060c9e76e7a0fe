"""The reference pages say what the code says, and links between pages lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.architecture.source import PROJECT

LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def test_reference_pages_are_current() -> None:
    checked = subprocess.run(
        [sys.executable, "scripts/generate-docs", "--check"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}run scripts/generate-docs"


def test_links_lead_somewhere() -> None:
    pages = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(PROJECT)}: {target}"
        for page in pages
        for target in LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
