"""Configuration: precedence, texts of values, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.config import Config, list_settings
from lazyimg.config_file import MAX_FILE_SIZE, load_config, serialize_config
from lazyimg.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def load(file: Path, text: str, **environment: str) -> Config:
    file.write_text(text)
    return load_config(file, environment, {})


def problem(file: Path, text: str, **environment: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(file, text, **environment)
    assert caught.value.exit_code == 78
    return str(caught.value).replace(str(file), "FILE")


def test_defaults() -> None:
    config = load_config(None, {}, {})
    assert config == Config()
    assert config.root == "/var/lib/lazyimg"
    assert config.address == "/run/lazyimg/lazyimg.sock"
    assert config.cache_directory == Path("/var/lib/lazyimg/cache")
    assert config.domain_id == "lazyimg"
    assert config.fill.read_deadline == 60
    assert config.mount.read_ahead == 1024 * 1024


def test_precedence_flag_environment_file_default(file: Path) -> None:
    file.write_text('root = "/file"\naddress = "/file.sock"\ndomain_id = "file"\n')
    environment = {"LAZYIMG_ROOT": "/variable", "LAZYIMG_ADDRESS": "/variable.sock"}
    config = load_config(file, environment, {"root": "/flag", "address": None})
    assert (config.root, config.address) == ("/flag", "/variable.sock")
    assert (config.domain_id, config.log.level) == ("file", "info")


def test_file_named_by_environment(file: Path) -> None:
    file.write_text('[log]\nlevel = "debug"\n')
    config = load_config(None, {"LAZYIMG_CONFIG": str(file)}, {})
    assert config.log.level == "debug"


def test_cache_directory_of_its_own(file: Path) -> None:
    assert load(file, 'cache = "/mnt/cache"').cache_directory == Path("/mnt/cache")


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ('"65536"', 65536), ('"64KiB"', 65536), ('"1.5 MiB"', 1572864)],
)
def test_sizes(file: Path, text: str, size: int) -> None:
    assert load(file, f"[mount]\nread_ahead = {text}").mount.read_ahead == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), ("0.5", 0.5), ('"250ms"', 0.25), ('"2m"', 120.0), ('"1h"', 3600.0)],
)
def test_durations(file: Path, text: str, seconds: float) -> None:
    assert load(file, f"[registry]\nread_timeout = {text}").registry.read_timeout == seconds


def test_read_deadline_wait(file: Path) -> None:
    assert load(file, '[fill]\nread_deadline = "wait"').fill.read_deadline is None
    assert load(file, "", LAZYIMG_FILL_READ_DEADLINE="wait").fill.read_deadline is None


def test_environment_of_each_kind(file: Path) -> None:
    config = load(
        file,
        "",
        LAZYIMG_FILL_FETCHES="3",
        LAZYIMG_FILL_MEMORY="1GiB",
        LAZYIMG_REGISTRY_PLAIN_HTTP="a:5000, b",
        LAZYIMG_UNRELATED="kept out of it",
    )
    assert config.fill.fetches == 3
    assert config.fill.memory == 1 << 30
    assert config.registry.plain_http == ["a:5000", "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rot = 1", "unknown key 'rot'; 'lazyimg config default' lists those there are"),
        (
            "[fill]\nspeed = 1",
            "unknown key 'fill.speed'; 'lazyimg config default' lists those there are",
        ),
        ("fill = 1", "'fill': expected a section, [fill]"),
        ('root = "var"', "'root': expected an absolute path, got \"var\""),
        ("root = 1", "'root': expected an absolute path, got 1"),
        ('cache = "x"', '\'cache\': expected an absolute path, or "", got "x"'),
        (
            'domain_id = "a b"',
            "'domain_id': expected letters, digits, '.', '_' and '-', at most 16, got \"a b\"",
        ),
        (
            'domain_id = "seventeen-letters"',
            (
                "'domain_id': expected letters, digits, '.', '_' and '-', at most 16, got"
                ' "seventeen-letters"'
            ),
        ),
        (
            '[cachefiles]\ntag = ""',
            "'cachefiles.tag': expected letters, digits, '.', '_' and '-', at most 63, got \"\"",
        ),
        (
            '[log]\nlevel = "loud"',
            "'log.level': expected debug, info, warning, error, got \"loud\"",
        ),
        (
            '[fill]\nfetches = "two"',
            "'fill.fetches': expected a whole number from 1 to 1024, got \"two\"",
        ),
        (
            "[fill]\nfetches = true",
            "'fill.fetches': expected a whole number from 1 to 1024, got true",
        ),
        (
            "[fill]\nmemory = 1",
            "'fill.memory': expected a size such as \"64MiB\" from 1MiB to 1TiB, got 1",
        ),
        (
            '[mount]\nread_ahead = "1MB"',
            '\'mount.read_ahead\': expected a size such as "64MiB" from 4KiB to 64MiB, got "1MB"',
        ),
        (
            '[mount]\nread_ahead = "4096.5B"',
            (
                "'mount.read_ahead': expected a size such as \"64MiB\" from 4KiB to 64MiB, "
                'got "4096.5B"'
            ),
        ),
        (
            "[fill]\nmemory = inf",
            "'fill.memory': expected a size such as \"64MiB\" from 1MiB to 1TiB, got Infinity",
        ),
        (
            "[fill]\nread_deadline = inf",
            '\'fill.read_deadline\': expected a duration such as "60s", or "wait", got Infinity',
        ),
        (
            "[fill]\nread_deadline = nan",
            '\'fill.read_deadline\': expected a duration such as "60s", or "wait", got NaN',
        ),
        ("a = " + "[" * 5000, "is not TOML: nested too deeply"),
        (
            "[fill]\nread_deadline = 0",
            '\'fill.read_deadline\': expected a duration such as "60s", or "wait", got 0',
        ),
        (
            "[registry]\nread_timeout = 1979-05-27",
            (
                "'registry.read_timeout': expected a duration such as \"30s\", above 0, "
                'at most 3600s, got "1979-05-27"'
            ),
        ),
        (
            '[registry]\nplain_http = "a"',
            "'registry.plain_http': expected a list of hosts, got \"a\"",
        ),
    ],
)
def test_wrong_setting(file: Path, text: str, expected: str) -> None:
    message = problem(file, text)
    assert message.removeprefix("FILE: ") == expected
    assert "\n" not in message


def test_wrong_variable_is_named(file: Path) -> None:
    assert problem(file, "", LAZYIMG_FILL_FETCHES="two") == (
        'LAZYIMG_FILL_FETCHES: expected a whole number from 1 to 1024, got "two"'
    )


def test_wrong_flag_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^--log-level: expected debug, info, "):
        load_config(None, {}, {"log.level": "loud"})


def test_cull_limits_out_of_order(file: Path) -> None:
    assert problem(file, "[cachefiles]\nbcull = 9") == (
        "[cachefiles]: expected bstop < bcull < brun, got 1, 9, 7"
    )
    assert "fstop < fcull < frun" in problem(file, "[cachefiles]\nfstop = 5")


def test_file_that_is_not_toml(file: Path) -> None:
    assert problem(file, "root =").startswith("FILE: is not TOML: Invalid value (at ")
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        load_config(file, {}, {})


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.toml: does not exist$"):
        load_config(tmp_path / "nothing.toml", {}, {})
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load_config(tmp_path, {}, {})


def test_file_that_is_too_large(file: Path) -> None:
    assert problem(file, "#" * (MAX_FILE_SIZE + 1)) == f"FILE: over {MAX_FILE_SIZE} bytes"


def test_default_file_gives_the_defaults(file: Path) -> None:
    text = serialize_config(Config(), comments=True)
    assert load(file, text) == Config()
    assert all(setting.variable in text for setting in list_settings())
    assert max(map(len, text.splitlines())) <= 80


CHARACTERS = st.characters(codec="utf-8")


@given(
    st.text(CHARACTERS).map(lambda text: "/" + text),
    st.none() | st.integers(1, 10**10).map(lambda number: number / 1000),
    st.integers(1 << 20, 1 << 40),
    st.lists(st.text(CHARACTERS)),
)
def test_any_dump_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    cache: str,
    deadline: float | None,
    memory: int,
    hosts: list[str],
) -> None:
    fill = msgspec.structs.replace(Config().fill, read_deadline=deadline, memory=memory)
    registry = msgspec.structs.replace(Config().registry, plain_http=hosts)
    config = msgspec.structs.replace(Config(), cache=cache, fill=fill, registry=registry)
    file = tmp_path_factory.getbasetemp() / "config.toml"
    assert load(file, serialize_config(config)) == config


def test_dump_is_read_back(file: Path) -> None:
    text = (
        'root = "/a\\"\\u00e4"\n[fill]\nread_deadline = "wait"\nmemory = "100MiB"\n'
        '[registry]\ninsecure = ["a:1"]\nread_timeout = 0.25\n'
    )
    config = load(file, text)
    assert load(file, serialize_config(config)) == config
