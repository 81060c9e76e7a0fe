"""The settings: their defaults, and what is said about each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lazyimg.config import (
    BuildSettings,
    Config,
    FillSettings,
    format_value,
    list_sections,
    list_settings,
)
from lazyimg.limits import BuildLimits, FillLimits


def test_defaults() -> None:
    config = Config()
    assert config.root == "/var/lib/lazyimg"
    assert config.address == "/run/lazyimg/lazyimg.sock"
    assert config.cache_directory == Path("/var/lib/lazyimg/cache")
    assert config.domain_id == "lazyimg"
    assert config.fill.read_deadline == 60
    assert config.mount.read_ahead == 1024 * 1024
    assert (config.cachefiles.brun, config.cachefiles.bcull, config.cachefiles.bstop) == (7, 5, 1)
    assert (config.cachefiles.frun, config.cachefiles.fcull, config.cachefiles.fstop) == (7, 5, 1)


def test_cache_directory_of_its_own() -> None:
    assert Config(cache="/mnt/cache").cache_directory == Path("/mnt/cache")


def test_fill_settings_are_the_limits() -> None:
    assert FillSettings().limits() == FillLimits()
    settings = msgspec.structs.replace(FillSettings(), read_deadline=None, max_fetch=1 << 20)
    assert settings.limits() == FillLimits(read_deadline=None, max_fetch=1 << 20)


def test_build_settings_are_the_limits() -> None:
    assert BuildSettings().limits() == BuildLimits()
    settings = BuildSettings(memory=1 << 30, processor_time=1.5)
    assert settings.limits() == BuildLimits(memory=1 << 30, processor_time=2)


def test_sections_are_described() -> None:
    assert [name for name, _ in list_sections()] == [
        "",
        "log",
        "fill",
        "registry",
        "cachefiles",
        "fuse",
        "mount",
        "build",
        "indexes",
        "snapshotter",
        "completion",
        "image_service",
    ]
    assert all(text.endswith(".") for _, text in list_sections())


def test_setting_names_its_variable() -> None:
    variables = {setting.key: setting.variable for setting in list_settings()}
    assert variables["root"] == "LAZYIMG_ROOT"
    assert variables["fill.read_deadline"] == "LAZYIMG_FILL_READ_DEADLINE"


def test_every_setting_has_a_description_and_an_expectation() -> None:
    for setting in list_settings():
        assert setting.description.endswith(".")
        assert setting.expected
    expected = {setting.key: setting.expected for setting in list_settings()}
    assert expected["registry.proxy"] == '"", "none", or a URL such as "http://HOST:PORT"'
    assert expected["registry.no_proxy"] == "a list of hosts"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "deadline", "wait"),
        (60.0, "duration", "60s"),
        (0.25, "duration", "0.25s"),
        (1 << 30, "size", "1GiB"),
        (4097, "size", "4097B"),
        (0, "size", "0"),
        (7, "", "7"),
    ],
)
def test_format_value(value: Any, unit: str, text: str) -> None:
    assert format_value(value, unit) == text
