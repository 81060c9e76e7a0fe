"""nginx, as Debian packages it, on loopback: what stands in front of registries, or serves files.

    with running_nginx(tmp_path, REVERSE_PROXY.format(origin=registry.origin)) as nginx:
        reference = f"{nginx.address}/name:tag"
        ...
        nginx.answers()

It is handed its listening socket, as it hands it to its own next process: so its port is any free
one, and connections wait in the queue until it has started.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REVERSE_PROXY: Final = """
location / {{
  proxy_pass http://{origin};
  proxy_http_version 1.1;
  proxy_set_header Host $http_host;
  proxy_set_header Range "";
}}
"""
"""Passes on everything but the Range of a request, as caches do that keep whole files."""

FILES: Final = """
root {root};
max_ranges 0;
location ~ /manifests/ {{ default_type {manifest_type}; }}
"""
"""A registry as files, of which only whole ones are sent."""

CONFIGURATION: Final = """\
user root;
daemon off;
worker_processes 1;
error_log {directory}/error.log;
pid {directory}/pid;
events {{}}
http {{
  log_format answers '$request_method $uri $status $body_bytes_sent $http_range';
  access_log {directory}/answers.log answers;
  client_body_temp_path {directory};
  proxy_temp_path {directory};
  fastcgi_temp_path {directory};
  uwsgi_temp_path {directory};
  scgi_temp_path {directory};
  server {{
    listen {address};
    {server}
  }}
}}
"""


class Answer(NamedTuple):
    """One answer, when it was over: bytes of its body that went out, and the Range asked for."""

    method: str
    path: str
    status: int
    sent: int
    range: str


class Nginx(NamedTuple):
    """A running nginx."""

    address: str
    """host:port."""
    directory: Path
    process: subprocess.Popen[bytes]

    def answers(self, part: str = "/blobs/") -> list[Answer]:
        """Return the answers so far to requests whose path has this in it."""
        lines = (self.directory / "answers.log").read_text().splitlines()
        rows = (line.split(" ", 4) for line in lines)
        found = [Answer(row[0], row[1], int(row[2]), int(row[3]), row[4]) for row in rows]
        return [answer for answer in found if part in answer.path]

    def stop(self) -> None:
        """End it at once, with whatever it is sending."""
        self.process.terminate()  # it ends its worker, too
        self.process.wait()


@contextmanager
def running_nginx(directory: Path, server: str) -> Iterator[Nginx]:
    """Run it until the block ends; `server` is what its one server does."""
    work = directory / "nginx"
    work.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)  # as nginx expects it
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        configuration = work / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(directory=work, address=address, server=server)
        )
        with subprocess.Popen(
            ["nginx", "-p", work, "-e", work / "error.log", "-c", configuration],
            env={"PATH": f"{os.environ['PATH']}:/usr/sbin", "NGINX": f"{listening.fileno()};"},
            pass_fds=[listening.fileno()],
        ) as process:
            listening.close()
            nginx = Nginx(address, work, process)
            try:
                yield nginx
            finally:
                nginx.stop()
