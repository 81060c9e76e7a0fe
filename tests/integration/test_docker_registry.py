"""The registry that other tests run against, and the counting in front of it."""

from __future__ import annotations

import hashlib
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.real.docker_registry import PASSWORD, USER, running_registry

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from pathlib import Path

CONTENT = bytes(range(256)) * 4096
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def test_counts_what_a_range_sends(tmp_path: Path) -> None:
    with running_registry(tmp_path) as registry:
        push_blob(registry.address)
        assert registry.counts.sent() == 0
        request = urllib.request.Request(f"http://{registry.address}/v2/name/blobs/{DIGEST}")
        request.add_header("Range", "bytes=100-4195")
        with fetch(request) as answer:
            assert answer.status == 206
            assert answer.read() == CONTENT[100:4196]
        (read,) = registry.counts.blob_reads(DIGEST)
        assert (read.range, read.status, read.sent) == ("bytes=100-4195", 206, 4096)
        assert registry.counts.sent(f"sha256:{'0' * 64}") == 0
        registry.counts.clear()
        assert registry.counts.sent() == 0


def test_blob_file_and_restart_on_the_same_storage(tmp_path: Path) -> None:
    with running_registry(tmp_path) as registry:
        push_blob(registry.address)
        assert registry.blob_path(DIGEST).read_bytes() == CONTENT
    with running_registry(tmp_path) as registry:
        url = f"http://{registry.origin}/v2/name/blobs/{DIGEST}"
        with fetch(url) as answer:
            assert answer.read() == CONTENT


def test_asks_for_credentials(tmp_path: Path) -> None:
    with running_registry(tmp_path, credentials=True) as registry:
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            fetch(f"http://{registry.address}/v2/")
        assert refused.value.headers["WWW-Authenticate"] == 'Basic realm="tests"'
        refused.value.close()
        listed = subprocess.run(
            [
                *("skopeo", "list-tags", "--tls-verify=false", f"--creds={USER}:{PASSWORD}"),
                f"docker://{registry.address}/name",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "404 (Not Found)" in listed.stderr  # let in, but there is no such repository


def push_blob(address: str) -> None:
    """Push CONTENT as a blob of the repository `name`, in one chunk."""
    start = urllib.request.Request(f"http://{address}/v2/name/blobs/uploads/", method="POST")
    with fetch(start) as answer:
        location = answer.headers["Location"]
    assert location.startswith(f"http://{address}/")
    headers = {"Content-Type": "application/octet-stream"}
    finish = urllib.request.Request(  # noqa: S310 - loopback over HTTP
        f"{location}&digest={DIGEST}", CONTENT, headers, method="PUT"
    )
    with fetch(finish) as answer:
        assert answer.status == 201


def fetch(request: urllib.request.Request | str) -> HTTPResponse:
    """Make a request, and raise HTTPError for a status of 400 or above."""
    answer: HTTPResponse = urllib.request.urlopen(request)  # noqa: S310 - loopback over HTTP
    return answer
