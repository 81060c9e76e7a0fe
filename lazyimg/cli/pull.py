"""`lazyimg pull`."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import click
import msgspec

from lazyimg.cli.options import (
    access_options,
    common_options,
    output_option,
    pass_invocation,
    platform_option,
    progress_option,
)
from lazyimg.cli.output import print_json, print_line
from lazyimg.cli.progress import open_meter
from lazyimg.errors import UsageError

if TYPE_CHECKING:
    from lazyimg.api.messages import Access
    from lazyimg.cli.invocation import Invocation
    from lazyimg.cli.progress import Meter
    from lazyimg.config import Config
    from lazyimg.containerd.ports import Outcome
    from lazyimg.containerd.pull import Pulled
    from lazyimg.registry.ports import Access as RegistryAccess
    from lazyimg_formats.oci.documents import Descriptor
    from lazyimg_formats.oci.reference import RegistryLocation

SOCKET: Final = "/run/containerd/containerd.sock"
SNAPSHOTTER_SOCKET: Final = "/run/lazyimg/snapshotter.sock"
"""What a message proposes where the configuration has none."""

_IDENTIFIER: Final = re.compile(r"(?=.{1,76}\Z)[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
"""What containerd takes as a name. Source: containerd, pkg/identifiers."""


@click.command("pull")
@click.argument("reference", metavar="REF")
@click.option(
    "--containerd",
    "socket",
    metavar="ADDRESS",
    default=SOCKET,
    help=f"containerd's socket.  [{SOCKET}]",
)
@click.option(
    "--namespace",
    metavar="NS",
    default="default",
    callback=lambda _ctx, option, value: _check_identifier(option.opts[0], value),
    help="containerd's namespace; Kubernetes has k8s.io.  [default]",
)
@click.option(
    "--snapshotter",
    metavar="NAME",
    default="lazyimg",
    callback=lambda _ctx, option, value: _check_identifier(option.opts[0], value),
    help="What containerd calls the snapshotter.  [lazyimg]",
)
@platform_option
@progress_option
@output_option
@access_options
@common_options
@pass_invocation
def command(
    invocation: Invocation,
    *,
    reference: str,
    socket: str,
    namespace: str,
    snapshotter: str,
    platform: str,
    progress: str,
    output: str,
    access: Access,
) -> None:
    """Have containerd know an image, without its layers.

    Manifest and config are fetched. Layers that the snapshotter loads lazily are not; others are
    downloaded and unpacked as usual. Afterwards clients of containerd, such as ctr, can run it.
    Prints the digest.
    """
    from lazyimg.cli.reference import read_location, registry_access  # noqa: PLC0415  not for help
    from lazyimg_formats.oci.reference import RegistryLocation  # noqa: PLC0415

    location = read_location(reference)
    if not isinstance(location, RegistryLocation):
        raise UsageError(reference, "is in no registry", "push it to one first: lazyimg convert")
    with open_meter(progress) as meter:
        shown = _LayerProgress(meter)
        pulled = asyncio.run(
            _pull(
                location,
                registry_access(access),
                platform=platform,
                containerd=(socket, namespace, snapshotter),
                progress=shown,
                config=invocation.config(),
            )
        )
    if output == "json":
        target = pulled.target
        print_json(
            _Result(
                pulled.name,
                str(target.digest),
                target.media_type,
                snapshotter,
                pulled.chain,
                shown.outcomes,
            )
        )
    else:
        print_line(str(pulled.target.digest))


class _Result(msgspec.Struct, frozen=True):
    """What is printed as JSON; `layers` counts them by what became of them."""

    reference: str
    digest: str
    media_type: str
    snapshotter: str
    snapshot: str
    layers: dict[str, int]


def _check_identifier(option: str, text: str) -> str:
    if _IDENTIFIER.fullmatch(text) is None:
        raise UsageError(option, f"containerd takes no such name: {text[:80]!r}")
    return text


async def _pull(
    location: RegistryLocation,
    access: RegistryAccess,
    *,
    platform: str,
    containerd: tuple[str, str, str],
    progress: _LayerProgress,
    config: Config,
) -> Pulled:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log would be between the lines

    from lazyimg.containerd.client import open_client  # noqa: PLC0415  not for --help
    from lazyimg.containerd.pull import pull_image  # noqa: PLC0415
    from lazyimg.registry.resolve import open_source, parse_platform  # noqa: PLC0415
    from lazyimg.registry.settings import apply_settings, make_client  # noqa: PLC0415

    async with open_client(*containerd) as client, make_client(config.registry) as registry:
        await client.check_snapshotter(_remedy(containerd[2], config.snapshotter.address))
        source, _ = await open_source(
            location, registry, apply_settings(access, location, config.registry)
        )
        wanted = parse_platform(platform)
        return await pull_image(client, source, location.reference, wanted, progress)


def _remedy(name: str, address: str) -> str:
    table = f'[proxy_plugins.{name}] type = "snapshot" address = "{address or SNAPSHOTTER_SOCKET}"'
    return (
        f"add to /etc/containerd/config.toml: {table}; and restart containerd "
        "(lazyimg setup containerd --apply --restart does both)"
    )


class _LayerProgress:
    """Shows layers that are downloaded; implements `lazyimg.containerd.ports.Progress`."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._outcomes: Counter[str] = Counter()

    @property
    def outcomes(self) -> dict[str, int]:
        """How many layers are lazy, were there already, or were unpacked."""
        return dict(sorted(self._outcomes.items()))

    def advance(self, layer: Descriptor, done: int) -> None:
        """Move a layer's bar."""
        self._meter.update(_task(layer), done, layer.size)

    def end(self, layer: Descriptor, outcome: Outcome) -> None:
        """Say what became of a layer."""
        self._outcomes[outcome.value] += 1
        self._meter.finish(_task(layer), _NOTES.get(outcome.value, ""))


_NOTES: Final = {"lazy": "is loaded when it is read", "present": "is there already"}


def _task(layer: Descriptor) -> str:
    return f"layer {layer.digest.hex[:12]}"
