"""Which proxy a request goes through, as the environment or the settings have it."""

from __future__ import annotations

import pytest
from yarl import URL

from lazyimg.errors import ConfigurationError
from lazyimg.registry.proxies import NO_PROXY, ProxyRules, is_loopback, parse_proxy

PROXY = "http://user:secret@proxy.test:3128"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("example.com", False),
        ("127.0.0.1.example.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("text", "url"),
    [("http://p:1", "http://p:1"), ("p:1", "http://p:1"), ("https://p", "https://p")],
)
def test_proxy_urls(text: str, url: str) -> None:
    assert parse_proxy(text) == URL(url)


@pytest.mark.parametrize("text", ["socks5://p:1", "http://", "http://p:x", "ftp://secret"])
def test_what_is_no_http_proxy(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_proxy(text)
    assert str(caught.value) == (
        "proxy: expected the URL of an HTTP proxy; write it as http://HOST:PORT"
    )


def test_environment_s_proxies() -> None:
    rules = ProxyRules.of({"HTTPS_PROXY": "s", "http_proxy": "p", "https_proxy": "other"})
    assert rules.find(URL("https://a.test/")) == "s"
    assert rules.find(URL("http://a.test/")) == "p"
    assert ProxyRules.of({}).find(URL("https://a.test/")) == ""


def test_settings_replace_the_environment_s_proxies_and_add_to_its_exceptions() -> None:
    environ = {"HTTPS_PROXY": "s", "NO_PROXY": "a.test, "}
    rules = ProxyRules.of(environ, PROXY, ["b.test"])
    assert rules.find(URL("http://c.test/")) == PROXY
    assert rules.find(URL("https://a.test/")) == ""
    assert rules.find(URL("https://b.test/")) == ""
    assert ProxyRules.of(environ, NO_PROXY).find(URL("https://c.test/")) == ""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:5000", "[::1]"])
def test_loopback_is_reached_directly(host: str) -> None:
    assert ProxyRules(PROXY, PROXY).find(URL(f"http://{host}/")) == ""


@pytest.mark.parametrize(
    ("rule", "url", "direct"),
    [
        ("*", "http://a.test/", True),
        ("a.test", "http://a.test/", True),
        ("a.test", "http://A.test./", True),
        ("a.test", "http://b.a.test/", True),
        ("a.test", "http://ba.test/", False),
        ("*.a.test", "http://b.a.test/", True),
        ("*.a.test", "http://a.test/", False),
        (".a.test", "http://a.test/", False),
        (".a.test", "http://b.a.test/", True),
        ("a.test:80", "http://a.test/", True),
        ("a.test:81", "http://a.test/", False),
        ("10.0.0.1", "http://10.0.0.1/", True),
        ("0.0.1", "http://10.0.0.1/", False),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.0.0.0/8", "http://a.test/", False),
        ("nonsense/x", "http://10.1.2.3/", False),
        ("fd00::1", "http://[fd00::1]/", True),
        ("[fd00::1]:80", "http://[fd00::1]/", True),
        ("[fd00::1]:81", "http://[fd00::1]/", False),
        ("", "http://a.test/", False),
    ],
)
def test_exceptions(rule: str, url: str, *, direct: bool) -> None:
    assert (ProxyRules(PROXY, PROXY, (rule,)).find(URL(url)) == "") is direct


def test_repr_has_no_password() -> None:
    assert "secret" not in repr(ProxyRules(PROXY, PROXY))
