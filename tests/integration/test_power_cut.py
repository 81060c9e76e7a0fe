"""The power is cut while images are mounted and filling; what is left must be right.

tests/real/power_cut_guest.py is what runs inside.
"""

from __future__ import annotations

import json
import logging
import random
import time
from typing import TYPE_CHECKING, Final

from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.machine import check_disk, running_machine
from tests.real.plain_image import make_plain_image
from tests.real.scale import scaled

if TYPE_CHECKING:
    from pathlib import Path

CUTS: Final = scaled(30, least=2)
IMAGES: Final = {"one": 96 << 20, "two": 8 << 20}
FILLING: Final = 25.0  # seconds until the cut, at most, after the mounts
SEED: Final = 5


def test_power_cuts(tmp_path: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311 - moments
    images = {}
    with running_registry(tmp_path) as registry:
        for number, (tag, size) in enumerate(IMAGES.items()):
            image = make_plain_image(tmp_path, tag, seed=number, size=size)
            lazyimg = Lazyimg(tmp_path / "nowhere")
            lazyimg.verb("convert", image.reference, f"{registry.origin}/{tag}")
            images[tag] = str(image.files)
    (tmp_path / "images.json").write_text(json.dumps(images))
    synced: dict[str, list[str]] = {}
    checked, kept = [], 0
    for number in range(CUTS + 1):
        (tmp_path / "synced.json").write_text(json.dumps(synced))
        with running_machine(tmp_path, "power_cut_guest") as machine:
            if number == CUTS:
                machine.wait_for("checked")
            else:
                machine.wait_for("mounted", chance.randint(1, len(IMAGES)))
                time.sleep(chance.uniform(0, FILLING))
            said = machine.cut()
        check_disk(tmp_path / "disk.img")
        assert [words for words in said if words[0] in {"wrong", "lost"}] == []
        checked += [words[1:] for words in said if words[0] == "checked"]
        logging.getLogger(__name__).info("cut %d: %s", number, checked[-1:])
        for words in said:
            if words[0] == "fresh":
                synced.clear()
            elif words[0] == "mounted":
                synced.setdefault(words[1].strip(), [])
            elif words[0] == "synced":
                synced[words[1]].append(words[2].strip())
                kept += 1
    logging.getLogger(__name__).info("checked: %s, synced: %d", checked, kept)
    assert len(checked) == CUTS
    assert kept > 0
    assert any(int(read) > 0 for read, _ in checked)
