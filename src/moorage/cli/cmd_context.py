"""``moorage context``: engines by name."""

from dataclasses import replace

import click

from moorage import errors
from moorage.cli.context import each_name, is_json, json_option, print_name
from moorage.cli.format.rows import format_option, print_rows
from moorage.cli.terminal import print_json, say, table
from moorage.client.contexts import DEFAULT_NAME, EngineContextEntry, read_contexts, write_contexts
from moorage.client.host import DEFAULT_HOST, parse_ssh, socket_of


@click.group(
    name="context",
    help="Manage contexts: names for engines, also of other machines. --context or MOORAGE_CONTEXT selects one for a "
    "command; serve, down and doctor are for this machine.",
)
def command() -> None:
    """Manage contexts."""


@command.command(name="ls", help="List contexts; * marks the current one.")
@click.option("-q", "--quiet", is_flag=True, help="Only display names.")
@format_option
@json_option
def list_all(quiet: bool, template: str | None) -> None:
    """List."""
    contexts = read_contexts()
    entries = {DEFAULT_NAME: EngineContextEntry(DEFAULT_HOST, "The engine of this machine"), **contexts.entries}
    rows = [
        {"Name": name, "Current": name == contexts.current, "Description": each.description, "Host": each.host}
        for name, each in sorted(entries.items())
    ]
    if template is not None:
        print_rows(template, rows)
    elif is_json():
        for row in rows:
            print_json(row)
    elif quiet:
        for row in rows:
            say(str(row["Name"]))
    else:
        marked = [
            (f"{row['Name']}{' *' if row['Current'] else ''}", str(row["Host"]), row["Description"]) for row in rows
        ]
        table(("NAME", "HOST", "DESCRIPTION"), [tuple(map(str, row)) for row in marked])


@command.command(help="Create a context.")
@click.argument("name")
@click.option(
    "--host", metavar="HOST", required=True, help="Engine: unix://PATH, or ssh://[USER@]MACHINE[:PORT][/PATH]."
)
@click.option("--description", metavar="DESCRIPTION", default="", help="Description of the context.")
@json_option
def create(name: str, host: str, description: str) -> None:
    """Create."""
    if parse_ssh(host) is None:
        socket_of(host)
    contexts = read_contexts()
    if name == DEFAULT_NAME or name in contexts.entries:
        raise errors.Conflict(f"context {name} already exists")
    entries = {**contexts.entries, name: EngineContextEntry(host, description)}
    write_contexts(replace(contexts, entries=entries))
    print_name(name)


@command.command(help="Set the current context.")
@click.argument("name")
@json_option
def use(name: str) -> None:
    """Use."""
    contexts = read_contexts()
    contexts.host(name)
    write_contexts(replace(contexts, current=name))
    print_name(name)


@command.command(help="Print the name of the current context.")
@json_option
def show() -> None:
    """Show."""
    print_name(read_contexts().current)


@command.command(name="rm", help="Remove one or more contexts.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Remove the current context, too.")
@json_option
def remove(names: tuple[str, ...], force: bool) -> int:
    """Remove; continues after a failure."""

    def do(name: str) -> None:
        contexts = read_contexts()
        if name == DEFAULT_NAME:
            raise errors.Conflict(f"cannot remove context {name}: it is that of this machine")
        contexts.host(name)
        if name == contexts.current and not force:
            raise errors.Conflict(f"cannot remove context {name}: it is the current one; give -f")
        current = DEFAULT_NAME if name == contexts.current else contexts.current
        write_contexts(
            replace(contexts, current=current, entries={k: v for k, v in contexts.entries.items() if k != name})
        )
        print_name(name)

    return each_name(names, do)
