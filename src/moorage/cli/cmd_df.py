"""``moorage df``: disk usage of plugins."""

import click

from moorage._lib.units import size
from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.format.rows import format_option, print_rows
from moorage.cli.terminal import print_object, say, table

_HEAD = ("NAME", "PACKAGE", "PACKAGE SHARED", "LAYERS", "LAYERS SHARED", "WRITTEN", "DATA", "LOGS")
_FIELDS = ("Name", "Package", "PackageShared", "Layers", "LayersShared", "Written", "Data", "Logs")


@click.command(name="df", help="Show disk usage of plugins: packages, layers, files, logs.")
@format_option
@json_option
def command(template: str | None) -> None:
    """Disk usage."""
    usage = engine_client().disk_usage()
    if is_json():
        print_object(usage)
        return
    rows = [
        (
            each.name,
            size(each.package_bytes),
            size(each.shared_package_bytes),
            size(each.layers_bytes),
            size(each.shared_layers_bytes),
            size(each.written_bytes),
            size(each.data_bytes),
            size(each.logs_bytes),
        )
        for each in usage.plugins
    ]
    if template is not None:
        print_rows(template, [dict(zip(_FIELDS, row, strict=True)) for row in rows])
        return
    table(_HEAD, rows)
    say()
    say(f"packages      {size(usage.content_bytes)}, each blob once")
    say(f"layers        {size(usage.layers_bytes)}, each once; written on top {size(usage.written_bytes)}")
    say(f"uploads       {usage.uploads}, {size(usage.uploads_bytes)}")
    say(f"unreferenced  {size(usage.unreferenced_bytes)}; moorage prune frees what interrupted operations left")
