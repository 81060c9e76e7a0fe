"""The unit for systemd."""

from __future__ import annotations

import configparser

import pytest

from lazyimg.errors import ConfigurationError
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
    ("path", "written"),
    [
        ("/opt/lazy-img_1.0/bin/lazyimg", "/opt/lazy-img_1.0/bin/lazyimg"),
        ("/opt/my programs/lazyimg", '"/opt/my programs/lazyimg"'),
        ("/opt/a;b/lazyimg", '"/opt/a;b/lazyimg"'),
        ("/opt/100%/$x", "/opt/100%%/$x"),
    ],
)
def test_path_of_the_program(path: str, written: str) -> None:
    assert f"ExecStart={written} serve\n" in serialize_unit([path, "serve"])


@pytest.mark.parametrize(
    ("word", "written"),
    [("100%", "100%%"), ("$x", "$$x"), ('a"b\\c', '"a\\"b\\\\c"'), ("", '""'), ("a b", '"a b"')],
)
def test_further_words_of_the_command(word: str, written: str) -> None:
    assert f"ExecStart=/lazyimg {written}\n" in serialize_unit(["/lazyimg", word])


@pytest.mark.parametrize("path", ['/a"b', "/a'b", "/a\\b", "/a\tb", "/a\nb"])
def test_program_that_systemd_does_not_take(path: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        serialize_unit([path, "serve"])
    assert str(caught.value) == (
        f"{path!r}: systemd takes no program whose path has quotes, backslashes or control"
        " characters; install lazyimg elsewhere"
    )
