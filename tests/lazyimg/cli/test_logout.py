"""`lazyimg logout`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lazyimg.cli.conftest import Result


def test_only_this_registry_is_forgotten(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "auth.json"
    entry = {"auth": "dTpw"}
    file.write_text(json.dumps({"auths": {"a.test": entry, "b.test": entry}}))
    result = run("logout", "https://a.test/", "--authfile", str(file))
    assert result == (0, f"removed from {file}\n", "")
    assert json.loads(file.read_text())["auths"] == {"b.test": entry}


def test_nothing_to_forget(run: Callable[..., Result], home: Path) -> None:
    file = home / ".docker" / "config.json"
    assert run("logout") == (2, "", f"lazyimg: docker.io: no credentials are kept in {file}\n")
