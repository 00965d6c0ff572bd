"""Options and texts of health checks, in the words of docker's and podman's."""

import json
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from moorage.cli.parameters import DURATION, ParsedValue, in_order

if TYPE_CHECKING:
    from moorage.api.schema.plugins import HealthRequest, PluginHealthCheck, PluginHealthPolicy

__all__ = (
    "HEALTH_ACTIONS",
    "describe_checks",
    "describe_health",
    "health_options",
    "make_checks",
    "parse_command",
    "take_health",
    "wait_option",
)

HEALTH_ACTIONS = ("none", "kill", "restart")
_FIELDS = {
    "health_interval": "interval",
    "health_timeout": "timeout",
    "health_start_period": "start_period",
    "health_retries": "failures",
    "health_on_failure": "on_failure",
}


def parse_command(text: str) -> list[str]:
    """A command and its arguments, from a JSON list or as a shell splits words. Raises: ValueError."""
    if text.startswith("["):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{text!r} is no JSON list: {error}") from error
        if not all(isinstance(each, str) for each in found):
            raise ValueError(f"{text!r} is not a list of texts")
    else:
        found = shlex.split(text)
    if not found:
        raise ValueError("the command is empty")
    return list(found)


def make_checks(call: str | None, command: Sequence[str] | None, *, connects: bool) -> "list[PluginHealthCheck]":
    """The checks that were requested: a call, a command inside the plugin, a connection."""
    from moorage.api.schema.plugins import PluginHealthCheck

    return [
        *([PluginHealthCheck(kind="connect")] if connects else []),
        *([PluginHealthCheck(kind="call", method=call.lstrip("/"))] if call else []),
        *([PluginHealthCheck(kind="command", command=list(command))] if command else []),
    ]


def wait_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--wait[=SECONDS]`` of an ``OptionalValueCommand``: seconds, 0 where it is not given."""
    return click.option(
        "--wait",
        type=DURATION,
        default=0.0,
        metavar="[=SECONDS]",
        help="Wait until the plugin is healthy, at most 60s unless given.",
    )(command)


def health_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that changes health checks; ``take_health`` takes their values."""
    options = (
        click.option("--health-call", metavar="METHOD", help="Health check by a call, as in VolumeDriver.List."),
        click.option(
            "--health-cmd",
            type=ParsedValue("command", parse_command),
            help="Health check by a command inside the plugin; without a shell.",
        ),
        click.option("--health-connect", is_flag=True, help="Health check by a connection to the plugin's socket."),
        click.option("--no-healthcheck", is_flag=True, help="Remove the health checks."),
        click.option("--health-interval", type=DURATION, help="Time between two health checks (default 30s)."),
        click.option("--health-timeout", type=DURATION, help="Maximum time of one health check (default 5s)."),
        click.option("--health-start-period", type=DURATION, help="Time in which failures do not count (default 10s)."),
        click.option(
            "--health-retries",
            metavar="N",
            type=click.IntRange(min=1),
            help="Failures in a row until unhealthy (default 3).",
        ),
        click.option(
            "--health-on-failure", type=click.Choice(HEALTH_ACTIONS), help="Action once the plugin is unhealthy."
        ),
    )
    return in_order(command, options)


def take_health(options: dict[str, Any]) -> "HealthRequest | None":
    """The change that the options of ``health_options`` request, and take them out; None where they request none.

    Raises:
        click.UsageError: a check, and also that there is to be none
    """
    from moorage.api.schema.plugins import HealthRequest

    call, command = options.pop("health_call"), options.pop("health_cmd")
    connects, removes = options.pop("health_connect"), options.pop("no_healthcheck")
    given: dict[str, Any] = {name: options.pop(option) for option, name in _FIELDS.items()}
    change = {name: value for name, value in given.items() if value is not None}
    checks = make_checks(call, command, connects=connects)
    if checks and removes:
        raise click.UsageError("--no-healthcheck cannot be used together with a health check")
    if checks or removes:
        change["checks"] = checks
    return HealthRequest(**change) if change else None


def describe_checks(checks: "Sequence[PluginHealthCheck]") -> str:
    """What is checked, for people."""
    return ", ".join(each.method or shlex.join(each.command) or "connection" for each in checks) or "none"


def describe_health(policy: "PluginHealthPolicy") -> str:
    """A line of ``moorage policy``."""
    if not policy.checks:
        return "no checks"
    return (
        f"{describe_checks(policy.checks)} every {policy.interval:g} s, at most {policy.timeout:g} s; "
        f"unhealthy after {policy.failures} failures, start period {policy.start_period:g} s, "
        f"on failure: {policy.on_failure}"
    )
