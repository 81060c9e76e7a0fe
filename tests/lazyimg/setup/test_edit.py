"""Settings put into configurations, and nothing else changed."""

from __future__ import annotations

import copy
import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import example, given
from hypothesis import strategies as st

from lazyimg.errors import ConfigurationError
from lazyimg.setup.edit import (
    edit_configuration,
    parse_configuration,
    serialize_settings,
    show_changes,
)
from lazyimg.setup.settings import Settings, Table, Version, missing_lines, settings_for
from tests.fakes.containerd_configurations import (
    DEFAULT_1_7,
    DEFAULT_2_1,
    DOCKER,
    KUBERNETES_1_6,
)

CRI = "io.containerd.grpc.v1.cri"


def settings(configuration: int, containerd: Version | None) -> Settings:
    return settings_for(configuration, containerd, address="/run/x.sock", root="/var/x")


OLD = settings(2, (1, 6, 20))
NEW = settings(3, (2, 1, 0))

ADDED_1_6 = """
[proxy_plugins.lazyimg]
type = "snapshot"
address = "/run/x.sock"
"""
ADDED_2_1 = """
[proxy_plugins.lazyimg]
type = "snapshot"
address = "/run/x.sock"
capabilities = ["remap-ids"]

[proxy_plugins.lazyimg.exports]
root = "/var/x"
enable_remote_snapshot_annotations = "true"
"""
UNPACK = """
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "overlayfs"
differ = "walking"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "lazyimg"
differ = "walking"
"""


def test_lines_for_a_file_that_has_none() -> None:
    cri = '[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "lazyimg"\n'
    assert serialize_settings(NEW) == (
        f"{ADDED_2_1[1:]}\n{cri}disable_snapshot_annotations = false\n{UNPACK}"
    )


def test_empty_file_gets_a_version() -> None:
    assert edit_configuration("# nothing", 2, OLD[:1]) == f"# nothing\nversion = 2\n{ADDED_1_6}"
    assert edit_configuration("", 3, ()) == "version = 3\n"


def test_default_of_1_7() -> None:
    edited = edit_configuration(DEFAULT_1_7, 2, OLD)
    assert edited == (
        DEFAULT_1_7.replace(
            "disable_snapshot_annotations = true", "disable_snapshot_annotations = false"
        ).replace(
            'no_pivot = false\n      snapshotter = "overlayfs"',
            'no_pivot = false\n      snapshotter = "lazyimg"',
        )
        + ADDED_1_6
    )


def test_default_of_2_1() -> None:
    edited = edit_configuration(DEFAULT_2_1, 3, NEW)
    assert edited == (
        DEFAULT_2_1.replace(
            "disable_snapshot_annotations = true", "disable_snapshot_annotations = false"
        ).replace("snapshotter = 'overlayfs'", 'snapshotter = "lazyimg"')
        + ADDED_2_1
        + UNPACK
    )


def test_comments_and_other_tables_stay() -> None:
    head = f'    [plugins."{CRI}".containerd]\n'
    ours = '      disable_snapshot_annotations = false\n      snapshotter = "lazyimg"\n'
    assert edit_configuration(KUBERNETES_1_6, 2, OLD) == (
        KUBERNETES_1_6.replace(head, head + ours) + ADDED_1_6
    )


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        (" [ a . 'b' ] # x\n\n[c]", " [ a . 'b' ] # x\n k = \"v\"\n\n[c]"),
        ("[a.b]", '[a.b]\nk = "v"'),
        ("[a.b]\r\n  x = 1\r\n", '[a.b]\r\n  k = "v"\r\n  x = 1\r\n'),
        ('t = """\n[a.b]\n"""\n[a.b]\nx=1\n', None),
        ("[a.b]\nk = 'old' # it\nx = 1\n", '[a.b]\nk = "v" # it\nx = 1\n'),
    ],
)
def test_lines_added_to_a_table(text: str, edited: str | None) -> None:
    result = edit_configuration(text, 2, (Table(("a", "b"), {"k": "v"}),))
    assert edited is None or result == edited
    document = tomllib.loads(text)
    document["a"]["b"]["k"] = "v"
    assert tomllib.loads(result) == document


def test_file_without_a_version() -> None:
    edited = edit_configuration(DOCKER, 1, settings(1, (1, 6, 21)))
    assert edited == (
        f"{DOCKER}{ADDED_1_6}\n[plugins.cri.containerd]\n"
        'snapshotter = "lazyimg"\ndisable_snapshot_annotations = false\n'
    )


TRANSFER = '[plugins."io.containerd.transfer.v1.local"]\n'


@pytest.mark.parametrize(
    "text",
    [
        TRANSFER
        + UNPACK.partition("\n\n")[0].replace("overlayfs", "native")
        + "\n[other]\nx = 1\n",
        f'{TRANSFER}unpack_config = [{{platform = "linux/arm64", snapshotter = "native"}}] # two\n',
        f"{TRANSFER}unpack_config = []\nmax_concurrent_downloads = 5\n",
        'plugins = {"io.containerd.transfer.v1.local" = {unpack_config = []}}\n',
    ],
)
def test_array_that_is_there_gets_one_entry(text: str) -> None:
    document = tomllib.loads(f"version = 3\n{text}")
    edited = tomllib.loads(edit_configuration(f"version = 3\n{text}", 3, NEW[-1:]))
    array = document["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    array.append({"platform": "linux", "snapshotter": "lazyimg", "differ": "walking"})
    assert edited == document


@pytest.mark.parametrize(
    "text",
    [
        'proxy_plugins.other.type = "snapshot"\n',
        'proxy_plugins = {other = {type = "snapshot"}}\n',
        '[proxy_plugins.lazyimg]\ntype = "diff" # no\n\n[x]\n',
        "[proxy_plugins.lazyimg.exports]\nroot = '/y'\n",
        f'[plugins."{CRI}".containerd.runtimes.runc]\nx = 1 # it\n',
        f'[plugins]\n"{CRI}" = {{containerd = {{snapshotter = "native"}}}}\n',
        f'[plugins."{CRI}"]\ncontainerd.snapshotter = "native"\n',
        f'[plugins."{CRI}".containerd]\r\nsnapshotter = "native"\r\n[z]\r\n',
        "x = nan\ny = 1.10\n",
        "# last line without an end",
    ],
)
def test_forms_that_toml_has(text: str) -> None:
    document = tomllib.loads(text, parse_float=str)
    edited = edit_configuration(f"version = 2\n{text}", 2, OLD)
    assert tomllib.loads(edited, parse_float=str) == merged({"version": 2, **document})
    assert edit_configuration(edited, 2, OLD) == edited


def test_text_that_is_no_toml() -> None:
    with pytest.raises(ConfigurationError) as caught:
        edit_configuration("a = ", 2, OLD)
    assert str(caught.value).startswith("configuration: is not TOML: Invalid value (at ")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        parse_configuration(f"a = {'[' * 100_000}")


@pytest.mark.parametrize(
    ("text", "settings", "problem"),
    [
        (
            "proxy_plugins = 1",
            OLD,
            "'proxy_plugins' is no table, as [proxy_plugins.lazyimg] has it",
        ),
        ("[proxy_plugins]\nlazyimg = []", OLD, "'lazyimg' is no table, as"),
        (f"{TRANSFER}unpack_config = 1", NEW[-1:], "'unpack_config' is no array, as"),
    ],
)
def test_text_in_which_names_mean_something_else(
    text: str, settings: Settings, problem: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        edit_configuration(text, 2, settings)
    assert problem in str(caught.value)


def test_edit_that_would_do_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[proxy_plugins.lazyimg]\ntype = 'x'\n"
    monkeypatch.setattr(tomlkit, "dumps", lambda _: "version = 1")
    with pytest.raises(ConfigurationError) as caught:
        edit_configuration(text, 2, OLD)
    assert str(caught.value) == (
        "configuration: [proxy_plugins.lazyimg] cannot be added without harm; put the lines in by"
        " hand ('lazyimg setup containerd --print' shows them)"
    )


def test_edit_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str:
        message = "odd"
        raise ValueError(message)

    monkeypatch.setattr(tomlkit, "parse", fail)
    with pytest.raises(ConfigurationError, match=r"lazyimg\] cannot be added: odd; put the lines"):
        edit_configuration("[proxy_plugins.lazyimg]\ntype = 'x'\n", 2, OLD)


def test_difference() -> None:
    assert show_changes("/a", "1\n2", "1\n2\n3\n") == (
        "--- /a\n+++ /a\n@@ -1,2 +1,3 @@\n 1\n-2\n\\ No newline at end of file\n+2\n+3\n"
    )
    assert show_changes("/a", "1\n", "1\n") == ""


def merged(document: dict[str, Any]) -> dict[str, Any]:
    """Put the settings of 1.6 into a document, in the plainest way."""
    wanted = copy.deepcopy(document)
    for each in OLD:
        table = wanted
        for part in each.path:
            table = table.setdefault(part, {})
        table.update(each.values)
    return wanted


KEYS = st.text(max_size=8) | st.sampled_from(
    ["version", "plugins", "proxy_plugins", "lazyimg", CRI, "containerd", "snapshotter", "exports"]
)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.datetimes()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Give TOML, as tomlkit writes it, with comments between its lines."""
    document = draw(st.dictionaries(KEYS, VALUES, max_size=4))
    try:
        text = tomlkit.dumps(document)
        tomllib.loads(text)
    except (ValueError, TypeError):  # not all that Python has is TOML
        return ""
    comment = draw(st.sampled_from(["", "# note\n", "\n  # note\n\n"]))
    return comment + text + comment


@given(texts())
@example(DEFAULT_1_7)
@example(DEFAULT_2_1)
@example(KUBERNETES_1_6)
@example(DOCKER)
def test_everything_else_stays_as_it_is_read(text: str) -> None:
    document = tomllib.loads(text, parse_float=str)
    try:
        wanted = merged(document or {"version": 2})
    except (AttributeError, TypeError):  # a name that means something else
        with pytest.raises(ConfigurationError):
            edit_configuration(text, 2, OLD)
        return
    try:
        edited = edit_configuration(text, 2, OLD)
    except ConfigurationError:
        if "proxy_plugins" in text or CRI in text:
            return  # there is something in a form that cannot be edited
        raise
    assert tomllib.loads(edited, parse_float=str) == wanted
    assert missing_lines(tomllib.loads(edited), OLD) == []
    assert edit_configuration(edited, 2, OLD) == edited
