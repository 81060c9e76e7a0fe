"""hosts.toml: what each setting may be, in which order hosts are asked, what is no such file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.hosts import (
    MAX_HOSTS,
    MAX_HOSTS_FILE,
    MAX_TEXT,
    Host,
    directory_names,
    parse_hosts,
)

WHOLE = b"""
server = "https://upstream.test"
ca = "upstream.pem"

[host."https://mirror.test"]
  capabilities = ["pull", "Resolve"]
  ca = ["/etc/a.pem", "b.pem"]
  client = [["one.cert", "/one.key"], ["both.pem", ""], "other.pem"]
  skip_verify = true
  dial_timeout = "1m1.5s"
  proxy = "http://user:pass@proxy.test:3128/"
  [host."https://mirror.test".header]
    x-one = "1"
    x-two = ["2", "3"]

[host."http://bak.test:5000/us"]
[host."https://odd.test/v2/upstream/"]
  override_path = true
  client = "client.pem"
[host."bare.test/v2"]
  unknown = 1
[host."https://rooted.test"]
  override_path = true
"""


def test_whole_file() -> None:
    mirror, backup, odd, bare, rooted, server = parse_hosts(WHOLE, "/certs.d/x")
    assert mirror == Host(
        root="https://mirror.test/v2",
        capabilities=frozenset({"pull", "resolve"}),
        says_capabilities=True,
        ca=("/etc/a.pem", "/certs.d/x/b.pem"),
        client=(
            ("/certs.d/x/one.cert", "/one.key"),
            ("/certs.d/x/both.pem", ""),
            ("/certs.d/x/other.pem", ""),
        ),
        skip_verify=True,
        headers=(("x-one", "1"), ("x-two", "2"), ("x-two", "3")),
        dial_timeout=61.5,
        proxy="http://user:pass@proxy.test:3128/",
    )
    assert backup == Host(root="http://bak.test:5000/us/v2")
    assert odd == Host(root="https://odd.test/v2/upstream", client=(("/certs.d/x/client.pem", ""),))
    assert bare.root == "https://bare.test/v2"
    assert rooted.root == "https://rooted.test"
    assert server == Host(root="https://upstream.test/v2", ca=("/certs.d/x/upstream.pem",))


def test_empty_file_names_the_registry_itself() -> None:
    assert parse_hosts(b"", "/d") == (Host(),)


def test_server_without_scheme() -> None:
    assert parse_hosts(b'server = "UP.test:1"', "/d") == (Host(root="https://up.test:1/v2"),)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1.0), ("1h2m", 3720.0), ("250ms", 0.25), ("1.s", 1.0)]
)
def test_durations(text: str, seconds: float) -> None:
    (host,) = parse_hosts(f'dial_timeout = "{text}"'.encode(), "/d")
    assert host.dial_timeout == seconds


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x", "is not TOML: "),
        ("x = " + "[" * 100_000, "is not TOML: "),
        ("a = '\ud800'", "is not TOML: "),
        ("#" * (MAX_HOSTS_FILE + 1), f"has {MAX_HOSTS_FILE + 1} bytes"),
        ("host = 1", "'host': expected tables, [host.\"URL\"]"),
        ("[host]\na = 1", "'host': expected tables"),
        ("server = 1", "'server': expected a text of at most"),
        (f'server = "{"x" * (MAX_TEXT + 1)}"', "'server': expected a text"),
        ('server = "http://u:p@a"', "'host': expected a URL with a host, and without user"),
        ('server = "http://a?b"', "'host': expected a URL with a host, and without user"),
        ('server = "http://"', "'host': expected a URL with a host, and without user"),
        ('server = "http://a:x"', "'host': expected a URL with a host"),
        ('server = "http://a/b/../c"', "'host': expected a URL without '..' in it"),
        ('server = "http://[a"', "'host': expected a URL with a host"),
        ('server = "http://ä"', "'host': expected a URL with a host, and without user"),
        ("override_path = 1\nserver='a'", "'override_path': expected true or false"),
        ('capabilities = ["fly"]', "'capabilities': expected a list of pull, resolve, push"),
        ("capabilities = 1", "'capabilities': expected a text or a list"),
        ("capabilities = [1]", "'capabilities': expected a text of"),
        ("skip_verify = 1", "'skip_verify': expected true or false"),
        ("ca = 1", "'ca': expected a text or a list"),
        ('ca = "a\\u0000b"', "'ca': expected a text"),
        ("client = 1", "'client': expected a text or a list"),
        ("client = [1]", "'client': expected a text of"),
        ('client = [["a"]]', "'client': expected pairs of certificate and key"),
        ("client = [['a', 1]]", "'client': expected a text of"),
        ("header = 1", "'header': expected a table"),
        ('[header]\n"a b" = "x"', "'header': expected names and values of HTTP headers"),
        ('[header]\na = "x\\n"', "'header': expected names and values of HTTP headers"),
        ("[header]\na = 1", "'header': expected a text or a list"),
        ("dial_timeout = 1", "'dial_timeout': expected a text"),
        ('dial_timeout = "fast"', "'dial_timeout': expected a duration such as \"1s\""),
        ('dial_timeout = "0s"', "'dial_timeout': expected a duration above 0"),
        ("proxy = 1", "'proxy': expected a text"),
        ('proxy = "ftp://a"', "'proxy': expected a URL of scheme http, https or socks5"),
        ('proxy = "http://a/b"', "'proxy': expected a URL of scheme"),
        ('proxy = "http://a:x"', "'proxy': expected a URL of scheme"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_hosts(text.encode(errors="surrogatepass"), "/d")
    assert caught.value.what == "hosts.toml"
    assert caught.value.problem.startswith(problem)


def test_too_many_hosts() -> None:
    text = "".join(f"[host.'h{number}']\n" for number in range(MAX_HOSTS + 1))
    with pytest.raises(FormatError, match=f"names {MAX_HOSTS + 1} hosts"):
        parse_hosts(text.encode(), "/d")


@given(st.binary(max_size=200) | st.text(alphabet='[]"=.hostcaerv\n1 ', max_size=60))
def test_any_bytes(data: bytes | str) -> None:
    raw = data if isinstance(data, bytes) else data.encode()
    try:
        hosts = parse_hosts(raw, "/d")
    except FormatError:
        return
    assert hosts
    assert all(host.root.startswith("http") or not host.root for host in hosts)


@pytest.mark.parametrize("stop", range(0, len(WHOLE), 7))
def test_cut_short(stop: int) -> None:
    try:
        hosts = parse_hosts(WHOLE[:stop], "/d")
    except FormatError:
        return
    assert len(hosts) <= 6


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        ("docker.io", ("docker.io", "_default")),
        ("a.test:5000", ("a.test_5000_", "a.test:5000", "_default")),
        ("[::1]:5000", ("[::1]_5000_", "[::1]:5000", "_default")),
        ("[::1]", ("[::1]", "_default")),
    ],
)
def test_directory_names(registry: str, names: tuple[str, ...]) -> None:
    assert directory_names(registry) == names
