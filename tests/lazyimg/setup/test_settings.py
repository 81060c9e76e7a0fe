"""What containerd's configuration must say."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.errors import ConfigurationError
from lazyimg.setup.settings import (
    Entries,
    Settings,
    Table,
    Value,
    Version,
    configuration_version,
    find,
    missing_lines,
    parse_version,
    settings_for,
    show_path,
    show_value,
)

ADDRESS = "/run/lazyimg/snapshotter.sock"
ROOT = "/var/lib/lazyimg/snapshotter"
PLUGIN = ("proxy_plugins", "lazyimg")
PLUGIN_TABLE = Table(PLUGIN, {"type": "snapshot", "address": ADDRESS})
CAPABLE = Table(PLUGIN, {**PLUGIN_TABLE.values, "capabilities": ["remap-ids"]})
CRI: dict[str, Value] = {"snapshotter": "lazyimg", "disable_snapshot_annotations": False}


def settings(configuration: int, containerd: Version | None) -> Settings:
    return settings_for(configuration, containerd, address=ADDRESS, root=ROOT)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n",
            (1, 6, 20),
        ),
        ("containerd containerd.io 1.6.21 3dce8eb055cbb6872793272b4f20ed16117344f8", (1, 6, 21)),
        ("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4", (2, 1, 4)),
        ("containerd github.com/containerd/containerd/v2 2.4.0-beta.0+unknown ", (2, 4, 0)),
        ("containerd github.com/k3s-io/containerd v1.7", (1, 7, 0)),
    ],
)
def test_versions_of_programs(text: str, version: Version) -> None:
    assert parse_version(text) == version


def test_no_version_of_a_program() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_version("runc version 1.1.5")
    assert str(caught.value) == "containerd --version: prints no version: 'runc version 1.1.5'"


@pytest.mark.parametrize(
    ("document", "containerd", "version"),
    [
        ({}, None, 3),
        ({}, (1, 6, 20), 2),
        ({}, (2, 3, 0), 3),
        ({"root": "/x"}, (1, 7, 0), 1),
        ({"version": 0}, (1, 7, 0), 1),
        ({"version": 2}, (2, 1, 0), 2),
        ({"version": 3}, None, 3),
        ({"version": 4}, (2, 4, 0), 4),
    ],
)
def test_versions_of_configurations(
    document: dict[str, object], containerd: Version | None, version: int
) -> None:
    assert configuration_version(document, containerd) == version


@pytest.mark.parametrize(
    ("version", "containerd", "message"),
    [
        (3, (1, 7, 0), "version: expected 1 to 2, got 3"),
        (5, None, "version: expected 1 to 4, got 5"),
        (-1, None, "version: expected 1 to 4, got -1"),
        ("2", None, "version: expected 1 to 4, got '2'"),
        (True, None, "version: expected 1 to 4, got True"),
    ],
)
def test_configuration_that_nobody_can_read(
    version: object, containerd: Version | None, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configuration_version({"version": version}, containerd)
    assert str(caught.value) == message


def test_settings_of_1_6() -> None:
    cri = ("plugins", "io.containerd.grpc.v1.cri", "containerd")
    assert settings(2, (1, 6, 20)) == (PLUGIN_TABLE, Table(cri, CRI))


@pytest.mark.parametrize("containerd", [(1, 7, 16), (1, 7, 22)])
def test_settings_with_exports(containerd: Version) -> None:
    cri = ("plugins", "io.containerd.grpc.v1.cri", "containerd")
    exports = Table((*PLUGIN, "exports"), {"root": ROOT})
    assert settings(2, containerd) == (PLUGIN_TABLE, exports, Table(cri, CRI))


@pytest.mark.parametrize("containerd", [(1, 7, 23), (1, 7, 34)])
def test_settings_with_capabilities(containerd: Version) -> None:
    assert settings(2, containerd)[0] == CAPABLE
    assert settings(2, None)[0] == CAPABLE


@pytest.mark.parametrize("containerd", [(2, 0, 11), (2, 4, 0), None])
def test_settings_of_version_2_in_containerd_2_have_both_tables_of_cri(
    containerd: Version | None,
) -> None:
    tables = settings(2, containerd)[2:4]
    assert tables == (
        Table(("plugins", "io.containerd.grpc.v1.cri", "containerd"), CRI),
        Table(("plugins", "io.containerd.cri.v1.images"), CRI),
    )


def test_settings_of_1_7_before_exports() -> None:
    assert [each.path for each in settings(2, (1, 7, 15))] == [
        PLUGIN,
        ("plugins", "io.containerd.grpc.v1.cri", "containerd"),
    ]


def test_settings_of_version_1() -> None:
    assert settings(1, (1, 6, 0))[1].path == ("plugins", "cri", "containerd")
    assert settings(1, None)[2].path == ("plugins", "cri", "containerd")
    assert settings(1, (2, 0, 0))[2].path == ("plugins", "io.containerd.cri.v1.images")


@pytest.mark.parametrize("configuration", [3, 4])
@pytest.mark.parametrize("containerd", [(2, 1, 0), (2, 4, 0), None])
def test_settings_of_2_1(configuration: int, containerd: Version | None) -> None:
    exports = {"root": ROOT, "enable_remote_snapshot_annotations": "true"}
    assert settings(configuration, containerd) == (
        CAPABLE,
        Table((*PLUGIN, "exports"), exports),
        Table(("plugins", "io.containerd.cri.v1.images"), CRI),
        Entries(
            ("plugins", "io.containerd.transfer.v1.local", "unpack_config"),
            {"platform": "linux", "snapshotter": "lazyimg", "differ": "walking"},
            ({"platform": "linux", "snapshotter": "overlayfs", "differ": "walking"},),
        ),
    )


def test_transfer_service_of_2_0_unpacks_and_says_nothing() -> None:
    _, exports, _, unpack = settings(3, (2, 0, 5))
    assert exports.values == {"root": ROOT}
    assert unpack.values["snapshotter"] == "lazyimg"


TABLE = Table(("a", "b.c"), {"on": True, "name": "x"})
LINES = ['[a."b.c"] on = true', '[a."b.c"] name = "x"']


@pytest.mark.parametrize(
    ("document", "missing"),
    [
        ({}, LINES),
        ({"a": 1}, LINES),
        ({"a": {"b.c": [1]}}, LINES),
        ({"a": {"b.c": {"on": False, "name": "x", "more": 1}}}, LINES[:1]),
        ({"a": {"b.c": {"on": True, "name": "x", "more": 1}}}, []),
    ],
)
def test_what_a_table_lacks(document: dict[str, object], missing: list[str]) -> None:
    assert TABLE.missing(document) == missing


ENTRIES = Entries(("a", "b"), {"snapshotter": "x"}, ({"snapshotter": "y"},))


@pytest.mark.parametrize(
    ("document", "missing", "added"),
    [
        ({}, True, ("y", "x")),
        ({"a": {"b": []}}, True, ("x",)),
        ({"a": {"b": ["x", {"snapshotter": "z"}]}}, True, ("x",)),
        ({"a": {"b": [{"snapshotter": "z"}, {"snapshotter": "x"}]}}, False, None),
    ],
)
def test_what_an_array_lacks(
    document: dict[str, object],
    missing: bool,  # noqa: FBT001
    added: tuple[str, ...] | None,
) -> None:
    assert ENTRIES.missing(document) == (['[[a.b]] snapshotter = "x"'] if missing else [])
    if added:
        assert tuple(each["snapshotter"] for each in ENTRIES.added_to(document)) == added


@pytest.mark.parametrize("disabled", [["cri"], ["io.containerd.grpc.v1.cri"]])
def test_plugin_that_is_disabled_lacks_nothing(disabled: list[str]) -> None:
    document = {"proxy_plugins": {"lazyimg": {"type": "snapshot", "address": ADDRESS}}}
    wanted = settings(2, (1, 6, 20))
    assert len(missing_lines(document, wanted)) == 2
    assert missing_lines({**document, "disabled_plugins": disabled}, wanted) == []
    assert len(missing_lines({**document, "disabled_plugins": 1}, wanted)) == 2


def test_disabled_plugins_say_nothing_of_others() -> None:
    lines = missing_lines(
        {"disabled_plugins": ["cri", "proxy_plugins", "lazyimg"]}, (PLUGIN_TABLE,)
    )
    assert lines == [
        '[proxy_plugins.lazyimg] type = "snapshot"',
        f'[proxy_plugins.lazyimg] address = "{ADDRESS}"',
    ]


@given(st.text())
def test_texts_are_read_as_they_are(text: str) -> None:
    text = text.encode(errors="replace").decode()
    assert tomllib.loads(f"a = {show_value(text)}")["a"] == text
    assert json.loads(show_value(text)) == text


def test_names_and_values_as_toml_has_them() -> None:
    assert show_path(("plugins", "io.containerd.grpc.v1.cri", "a_B-1")) == (
        'plugins."io.containerd.grpc.v1.cri".a_B-1'
    )
    assert (show_value(value=True), show_value(value=False)) == ("true", "false")
    assert show_value(["a", 'b"']) == '["a", "b\\""]'
    assert find({"a": {"b": 0}}, ("a", "b")) == 0
    assert find({"a": 1}, ("a", "b")) is None
