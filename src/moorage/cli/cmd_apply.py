"""``moorage apply``: applies a desired state of plugins."""

from pathlib import Path

import click

from moorage.cli.context import engine_client, json_option
from moorage.cli.health.options import wait_option
from moorage.cli.parameters import OptionalValueCommand


@click.command(
    cls=OptionalValueCommand,
    name="apply",
    help="Apply a YAML file of desired plugins: install, set and enable what differs.",
)
@click.option("-f", "--file", "source", required=True, metavar="FILE", help="Path of the file; - for standard input.")
@click.option("--dry-run", is_flag=True, help="Only show what differs, and privileges that the file does not grant.")
@click.option("--check", is_flag=True, help="Only compare: status 0, 4 if something differs, 5 if unhealthy.")
@click.option("--watch", is_flag=True, help="Apply again when the file changes, and every 5 minutes.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="With --watch: exists while all is well.")
@click.option("--prune", is_flag=True, help="Remove what this file installed and no longer has.")
@click.option("--adopt", is_flag=True, help="Take over plugins of the file that it did not install, for --prune.")
@wait_option
@click.option("-y", "--grant-all-permissions", "grant_all", is_flag=True, help="Grant all requested privileges.")
@json_option
def command(
    source: str,
    dry_run: bool,
    check: bool,
    watch: bool,
    ready_file: Path | None,
    prune: bool,
    adopt: bool,
    wait: float,
    grant_all: bool,
) -> int:
    """Apply; stops at the first failure. Status 3: it was rolled back."""
    from moorage.cli.apply.file import ApplyOptions, DesiredFile, read_source

    if dry_run + check + watch > 1:
        raise click.UsageError("--dry-run, --check and --watch cannot be used together")
    if watch and source == "-":
        raise click.UsageError("--watch needs a file, not standard input")
    if ready_file is not None and not watch:
        raise click.UsageError("--ready-file needs --watch")
    options = ApplyOptions(grant_all=grant_all, wait=wait, prunes=prune, adopts=adopt, shows_unchanged=not watch)
    if watch:
        from moorage.cli.apply.watch import watch_file

        watch_file(engine_client(), source, options, ready_file)
    desired = DesiredFile.parse(source, read_source(source))
    if check:
        return desired.check(engine_client(), options)
    if dry_run:
        return desired.dry_run(engine_client(), options)
    return desired.apply(engine_client(), options)
