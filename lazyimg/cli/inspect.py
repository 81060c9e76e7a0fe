"""`lazyimg inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyimg.api.messages import InspectReply, InspectRequest
from lazyimg.cli.options import (
    access_options,
    common_options,
    output_option,
    pass_invocation,
    platform_option,
)
from lazyimg.cli.output import (
    format_part,
    format_size,
    print_facts,
    print_json,
    print_line,
    print_table,
    short_digest,
    without,
)
from lazyimg.cli.reference import absolute_reference, daemon_access, read_location
from lazyimg.errors import DaemonUnavailableError, NotFoundError, NotRootError, UsageError

if TYPE_CHECKING:
    from lazyimg.api.messages import Access, LayerReport
    from lazyimg.cli.invocation import Invocation

_LOCAL_FIELDS = ("fsid", "bootstrap_size")
_LOCAL_LAYER_FIELDS = ("device", "device_size", "present", "index")
_PLACES = {"": "none", "layer": "in the layer", "node": "this node's", "repository": "beside it"}


@click.command("inspect")
@click.argument("target", metavar="REF|DIR|FILE")
@click.option("--raw", is_flag=True, help="Print the manifest, or index, byte for byte.")
@platform_option
@output_option
@access_options
@common_options
@pass_invocation
def command(
    invocation: Invocation,
    *,
    target: str,
    raw: bool,
    platform: str,
    output: str,
    access: Access,
) -> None:
    """Show what an image, a mount or a file is.

    REF: layers, formats, sizes, where the index of each is by which it is loaded lazily, and how
    much is local; without a daemon, the registry is asked, and what is local is not known.
    DIR: what is mounted there, or an OCI layout. FILE: an EROFS image, a device table, a
    zstd:chunked or eStargz layer, a manifest. What exists as a file is not taken for a REF: write
    docker://REF.
    """
    path = Path(target)
    if path.is_dir() and (path / "oci-layout").is_file():
        target = f"oci:{target}"
    elif path.is_dir() and not raw:
        request = InspectRequest(directory=str(path.resolve()))
        _print_image(invocation.client().inspect(request), output)
        return
    elif path.is_file() and not raw:
        _inspect_file(path, output)
        return
    elif path.exists():
        raise UsageError(target, "only an image's manifest can be printed raw", "give a REF")
    elif target.startswith(("/", "./", "../")):
        raise NotFoundError(target, "there is no such file or directory")
    if raw:
        click.echo(_fetch_raw(invocation, target, access), nl=False)
    else:
        reply, asked_daemon = _inspect(invocation, target, platform, access)
        _print_image(reply, output, knows_local=asked_daemon)


def _inspect(
    invocation: Invocation, target: str, platform: str, access: Access
) -> tuple[InspectReply, bool]:
    """Ask the daemon, or the registry where there is none; gives whether it was the daemon."""
    request = InspectRequest(
        reference=absolute_reference(target),
        platform=platform,
        access=daemon_access(access, target),
    )
    try:
        return invocation.client().inspect(request), True
    except (DaemonUnavailableError, NotRootError):
        import asyncio  # noqa: PLC0415  slow to import

        from lazyimg.cli.inspect_image import fetch_description  # noqa: PLC0415

        settings = invocation.config().registry
        described = fetch_description(read_location(target), platform, access, settings)
        return asyncio.run(described), False


def _fetch_raw(invocation: Invocation, target: str, access: Access) -> bytes:
    import asyncio  # noqa: PLC0415  slow to import

    from lazyimg.cli.inspect_image import fetch_raw  # noqa: PLC0415

    settings = invocation.config().registry
    return asyncio.run(fetch_raw(read_location(target), access, settings))


def _print_image(reply: InspectReply, output: str, *, knows_local: bool = True) -> None:
    if output == "json":
        print_json(reply if knows_local else _without_local(reply))
        return
    compressed = sum(layer.size for layer in reply.layers)
    facts = [
        ("image", reply.reference),
        ("digest", reply.digest),
        ("platform", reply.platform),
        ("layers", f"{len(reply.layers)}, {format_size(compressed)} compressed"),
    ]
    if reply.fsid:
        files = sum(layer.device_size for layer in reply.layers)
        local = format_part(sum(layer.present for layer in reply.layers), files)
        facts += [
            ("fsid", reply.fsid),
            ("metadata", format_size(reply.bootstrap_size)),
            ("files", f"{format_size(files)}, {local} local"),
        ]
    elif not knows_local:
        facts.append(("local", "not known: no daemon was asked"))
    print_facts(facts)
    print_line("")
    head = ("LAYER", "FORMAT", "SIZE", "INDEX", "FILES", "LOCAL")
    print_table(head, [_row(layer, knows_local=knows_local) for layer in reply.layers])


def _row(layer: LayerReport, *, knows_local: bool) -> tuple[str, ...]:
    index = _PLACES.get(layer.index, layer.index) if knows_local or layer.index else "-"
    files = format_size(layer.device_size) if layer.device else "-"
    local = format_part(layer.present, layer.device_size) if layer.device else "-"
    return short_digest(layer.digest), layer.format, format_size(layer.size), index, files, local


def _without_local(reply: InspectReply) -> dict[str, Any]:
    layers = [without(layer, *_LOCAL_LAYER_FIELDS) for layer in reply.layers]
    return without(reply, *_LOCAL_FIELDS, "layers") | {"layers": layers}


def _inspect_file(path: Path, output: str) -> None:
    from lazyimg.cli.inspect_file import describe_file  # noqa: PLC0415  slow to import

    facts = describe_file(path)
    if output == "json":
        print_json({name.replace(" ", "_"): value for name, value in facts.items()})
        return
    tables = {name: value for name, value in facts.items() if isinstance(value, list)}
    print_facts([(name, _show(name, v)) for name, v in facts.items() if name not in tables])
    for name, rows in tables.items():
        print_line("")
        if rows:
            head = [column.upper() for column in rows[0]]
            print_table(head, [[_cell(key, cell) for key, cell in row.items()] for row in rows])
        else:
            print_line(f"no {name}")


def _show(name: str, value: object) -> str:
    if isinstance(value, int) and name.endswith("size"):
        return format_size(value)
    return str(value)


def _cell(name: str, value: object) -> str:
    return short_digest(str(value)) if name in {"tag", "digest"} else _show(name, value)
