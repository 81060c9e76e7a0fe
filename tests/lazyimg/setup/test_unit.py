"""The unit for systemd."""

from __future__ import annotations

import configparser

import pytest

from lazyimg.setup.unit import serialize_unit


def read(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read_string(text)
    return {name: dict(section) for name, section in parser.items() if section}


def test_what_the_unit_says() -> None:
    unit = read(serialize_unit(["/usr/bin/lazyimg", "serve"]))
    assert list(unit) == ["Unit", "Service", "Install"]
    service = unit["Service"]
    assert service.pop("ExecStartPre").startswith("-/sbin/modprobe ")
    assert service == {
        "Type": "notify",
        "ExecStart": "/usr/bin/lazyimg serve",
        "KillMode": "process",
        "Restart": "always",
        "RestartSec": "1",
        "LimitNOFILE": "1048576",
        "OOMScoreAdjust": "-999",
        "FileDescriptorStoreMax": "64",
    }
    assert unit["Unit"]["Before"] == "containerd.service"
    assert unit["Install"] == {"WantedBy": "multi-user.target containerd.service"}


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/opt/lazy-img_1.0/bin/lazyimg", "/opt/lazy-img_1.0/bin/lazyimg"),
        ("/opt/my programs/lazyimg", '"/opt/my programs/lazyimg"'),
        ("/opt/100%/$x", "/opt/100%%/$$x"),
        ('/a"b\\c', '"/a\\"b\\\\c"'),
        ("", '""'),
    ],
)
def test_words_of_the_command(word: str, written: str) -> None:
    assert f"ExecStart={written} serve\n" in serialize_unit([word, "serve"])
