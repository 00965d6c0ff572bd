"""``moorage test``: the plugin protocol as a suite of checks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.terminal import print_object, say, say_lines, warn

if TYPE_CHECKING:
    from moorage.conformance.suite import CheckResult
    from moorage.conformance.target import Target

_NAME = "tested"


@click.command(
    name="test",
    help="Check that a plugin follows the protocol: a directory (config.json beside rootfs/), with settings "
    "NAME=VALUE, in an engine that exists as long as this command; an installed, enabled PLUGIN, which is killed and "
    "restarted; or a SOCKET of any process. The exit status is 1 if a check fails.",
)
@click.argument("plugin", metavar="DIRECTORY|PLUGIN|SOCKET")
@click.argument("assignments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option(
    "-o",
    "--opt",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    help="Option of the volumes, log streams and networks that the checks create, where the driver requires one; may "
    "be repeated.",
)
@click.option(
    "--junitxml", type=click.Path(path_type=Path), metavar="FILE", help="Also write the results as JUnit XML."
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    help="Seconds for one call, and for a restart.  [default: 60]",
)
@json_option
def command(
    plugin: str, assignments: tuple[str, ...], options: tuple[str, ...], junitxml: Path | None, timeout: float
) -> int:
    """Test; the exit status."""
    from moorage.cli.parameters import parse_driver_option
    from moorage.conformance.report import junit_xml, result_line, summary
    from moorage.conformance.suite import kinds_of, run_suite

    if math.isnan(timeout):
        raise click.BadParameter("it is not a number", param_hint="--timeout")

    def report(result: "CheckResult") -> None:
        if is_json():
            print_object(result)
        else:
            say_lines(result_line(result))

    given = dict(map(parse_driver_option, options))
    with _target(plugin, assignments, timeout) as target:
        results = run_suite(target, kinds_of(target, timeout), timeout, report, given)
    if not is_json():
        say(summary(results))
    if junitxml is not None:
        try:
            junitxml.write_bytes(junit_xml(Path(plugin).name, results))
        except OSError as error:
            raise errors.Invalid(f"cannot write {junitxml}: {error.strerror}") from error
    return 1 if any(each.outcome == "failed" for each in results) else 0


@contextmanager
def _target(plugin: str, assignments: tuple[str, ...], seconds: float) -> "Iterator[Target]":
    from moorage.conformance.session import temporary_engine
    from moorage.conformance.target import EngineTarget, SocketTarget

    path = Path(plugin)
    if path.is_dir():
        from moorage.cli.cmd_create import package
        from moorage.packages.directory import load_directory

        directory = load_directory(path, verb="test")
        for warning in directory.parsed.warnings:
            warn(f"{directory.path / 'config.json'}: {warning}")
        with temporary_engine(seconds) as client:
            client.create(_NAME, package(directory.path))
            if assignments:
                client.set(_NAME, assignments)
            client.grant(_NAME)
            client.enable(_NAME)
            yield EngineTarget(client, _NAME, seconds)
        return
    if assignments:
        raise click.UsageError("settings are for a directory; give them to an installed plugin with moorage set")
    if path.is_absolute() or path.exists():
        yield SocketTarget(path)
    else:
        yield EngineTarget(engine_client(), plugin, seconds)
