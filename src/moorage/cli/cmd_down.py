"""``moorage down``: stop the engine, its plugins and its containerd."""

from pathlib import Path

import click

from moorage._lib.imports import collector_paused, without_certificates
from moorage.cli.engine_location import locate_engine, location_options, serve_options


@click.command(
    name="down",
    help="Stop the engine, its plugins and its private containerd. The data directory is retained, and enabled plugins "
    "start with the next engine. The engine is that of --root or --exec-root, else that of --host.",
)
@location_options
def command(root: Path | None, exec_root: Path | None, namespace: str | None, containerd: str | None) -> int:
    """Stop everything; the exit status."""
    with collector_paused(), without_certificates():
        import anyio

        from moorage.daemon import stop_engine

    options = serve_options(locate_engine(root, exec_root), None, namespace, containerd)
    return anyio.run(stop_engine, options, click.echo, backend_options={"use_uvloop": True})
