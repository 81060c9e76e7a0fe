"""The hosts of a registry, out of a directory as containerd has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from yarl import URL

from lazyimg.errors import ConfigurationError
from lazyimg.registry.hosts import MAX_CERTIFICATES, find_endpoints, own_endpoint
from lazyimg.registry.ports import Access
from lazyimg_formats.oci.reference import Reference

REFERENCE = Reference("up.test:5000", "a/b")
HUB = Reference("docker.io", "library/debian")
MIRROR = """
server = "https://up.test:5000"
[host."http://mirror.test"]
  ca = "ca.pem"
  client = [["c.pem", "k.pem"], ["both.pem", ""]]
  skip_verify = true
  dial_timeout = "1s"
  proxy = "http://proxy.test:1"
  [host."http://mirror.test".header]
    x-a = "1"
[host."https://second.test/hub"]
  capabilities = ["pull", "push"]
"""


def write(root: Path, name: str, text: str) -> Access:
    (root / name).mkdir()
    (root / name / "hosts.toml").write_text(text)
    return Access(hosts_dir=root, ca_file=Path("/own.pem"), insecure=True, plain_http=True)


def test_without_a_directory_there_is_the_registry_itself(tmp_path: Path) -> None:
    for access in (Access(), Access(hosts_dir=tmp_path), Access(hosts_dir=tmp_path / "none")):
        (own,) = find_endpoints(REFERENCE, access)
        assert own == own_endpoint(REFERENCE, access)
        assert own.root is None
        assert own.is_own
        assert own.final


def test_mirrors_and_the_registry(tmp_path: Path) -> None:
    access = write(tmp_path, "up.test_5000_", MIRROR)
    first, second, own = find_endpoints(REFERENCE, access, 7.0)
    assert (first.root, first.host) == (URL("http://mirror.test/v2"), "mirror.test")
    assert first.namespace == "up.test:5000"
    assert not first.final
    assert first.capabilities == {"pull", "resolve"}
    route = first.route
    directory = tmp_path / "up.test_5000_"
    assert route.plain_http
    assert route.insecure
    assert route.ca_files == (Path("/own.pem"), directory / "ca.pem")
    assert route.client == (
        (directory / "c.pem", directory / "k.pem"),
        (directory / "both.pem", None),
    )
    assert route.headers == (("x-a", "1"),)
    assert (route.connect_timeout, route.read_timeout) == (1.0, 7.0)
    assert route.proxy == "http://proxy.test:1"
    assert second.root == URL("https://second.test/hub/v2")
    assert second.capabilities == {"pull", "push"}
    assert not second.route.plain_http
    assert not second.route.insecure
    assert own.root == URL("https://up.test:5000/v2")
    assert own.is_own
    assert own.final
    assert own.route.insecure
    assert own.route.read_timeout is None


def test_directory_for_all_other_registries(tmp_path: Path) -> None:
    access = write(tmp_path, "_default", 'server = "https://only.test"')
    (only,) = find_endpoints(REFERENCE, access)
    assert only.host == "only.test"
    assert only.namespace == "up.test:5000"
    assert not only.is_own
    assert only.final
    assert not only.route.insecure
    (tmp_path / "up.test:5000").mkdir()
    (own,) = find_endpoints(REFERENCE, access)
    assert own.is_own


@pytest.mark.parametrize("server", ["https://docker.io", "https://registry-1.docker.io"])
def test_docker_hub_s_api_is_where_it_is(tmp_path: Path, server: str) -> None:
    (own,) = find_endpoints(HUB, write(tmp_path, "docker.io", f'server = "{server}"'))
    assert own.root is None
    assert own.is_own
    assert own.host == "docker.io"


def test_registry_among_its_own_mirrors(tmp_path: Path) -> None:
    access = write(tmp_path, "docker.io", '[host."https://registry-1.docker.io"]')
    first, last = find_endpoints(HUB, access)
    assert first.is_own
    assert first.host == "docker.io"
    assert last.root is None


def test_certificates_as_docker_lays_them_out(tmp_path: Path) -> None:
    directory = tmp_path / "up.test:5000"
    directory.mkdir()
    for name in ("a.crt", "b.crt", "c.cert", "c.key", "other"):
        (directory / name).touch()
    (own,) = find_endpoints(REFERENCE, Access(hosts_dir=tmp_path))
    assert own.root is None
    assert own.route.ca_files == (directory / "a.crt", directory / "b.crt")
    assert own.route.client == ((directory / "c.cert", directory / "c.key"),)
    (directory / "c.key").unlink()
    with pytest.raises(ConfigurationError, match=r"c\.cert: has no key: c\.key is missing"):
        find_endpoints(REFERENCE, Access(hosts_dir=tmp_path))


def test_too_many_certificates(tmp_path: Path) -> None:
    directory = tmp_path / "up.test:5000"
    directory.mkdir()
    for number in range(MAX_CERTIFICATES + 1):
        (directory / f"{number}.crt").touch()
    with pytest.raises(ConfigurationError, match=f"at most {MAX_CERTIFICATES} allowed"):
        find_endpoints(REFERENCE, Access(hosts_dir=tmp_path))


def test_file_that_makes_no_sense(tmp_path: Path) -> None:
    access = write(tmp_path, "_default", "server = 1")
    with pytest.raises(ConfigurationError) as caught:
        find_endpoints(REFERENCE, access)
    assert str(caught.value) == (
        f"{tmp_path}/_default/hosts.toml: 'server': expected a text of at most 4096 characters"
    )


@pytest.mark.parametrize("host", ["a:99999", "a:0", "xn--a"])
@pytest.mark.parametrize("line", ['server = "{}"', '[host."{}"]'])
def test_host_that_cannot_be(tmp_path: Path, host: str, line: str) -> None:
    access = write(tmp_path, "_default", line.format(f"http://{host}"))
    with pytest.raises(ConfigurationError) as caught:
        find_endpoints(REFERENCE, access)
    assert str(caught.value) == (
        f"{tmp_path}/_default/hosts.toml: names an impossible host: http://{host}/v2"
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default" / "hosts.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"hosts\.toml: cannot be read: Is a directory"):
        find_endpoints(REFERENCE, Access(hosts_dir=tmp_path))
