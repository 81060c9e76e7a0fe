"""Who runs this process."""

from __future__ import annotations

import os

import pytest

from lazyimg.errors import NotRootError
from lazyimg.host.user import require_root


@pytest.mark.parametrize("user", [0, 1, 65534])
def test_only_root_goes_on(user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    if user == 0:
        require_root("lazyimg serve")
        return
    with pytest.raises(NotRootError) as caught:
        require_root("lazyimg serve")
    assert str(caught.value) == "lazyimg serve: mounting needs root; run it as root"
