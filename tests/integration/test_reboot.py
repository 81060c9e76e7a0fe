"""The power is cut while containers run; after the boot those of pulled images start anew.

tests/real/reboot_guest.py is what runs inside.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.machine import check_disk, running_machine
from tests.real.program_images import make_program_images, sums

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 2 << 20


def test_containers_start_after_a_power_cut(tmp_path: Path) -> None:
    image = make_program_images(tmp_path, ["app"], size=SIZE)["app"]
    with running_registry(tmp_path) as registry:
        Lazyimg(tmp_path / "nowhere").verb("convert", image.reference, f"{registry.origin}/app:1")
    (tmp_path / "expected.json").write_text(json.dumps(sums(image)))
    with running_machine(tmp_path, "reboot_guest") as machine:
        machine.wait_for("synced")
        machine.cut()
    check_disk(tmp_path / "disk.img")
    with running_machine(tmp_path, "reboot_guest") as machine:
        machine.wait_for("done")
        said = machine.cut()
    assert [words[0] for words in said] == ["started", "ran", "removed", "done"]
    check_disk(tmp_path / "disk.img")
