"""`lazyimg completion`."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from lazyimg.cli import completion

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lazyimg.cli.conftest import Result


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_asks_lazyimg(shell: str, run: Callable[..., Result]) -> None:
    result = run("completion", shell)
    assert result.code == 0
    assert "_LAZYIMG_COMPLETE" in result.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.out, text=True, check=True)


def test_other_shell(run: Callable[..., Result]) -> None:
    result = run("completion", "csh")
    assert result.code == 64
    assert "'csh' is not one of 'bash', 'zsh', 'fish'" in result.err


def test_shell_that_click_no_longer_knows(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "get_completion_class", lambda _: None)
    assert run("completion", "bash").err == "lazyimg: completion: nothing is known about bash\n"
