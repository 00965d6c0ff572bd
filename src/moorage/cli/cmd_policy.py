"""``moorage policy``: when a plugin is restarted, how its health is checked, and what confines it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.format.rows import format_option, print_rows
from moorage.cli.health.options import describe_health, health_options, take_health
from moorage.cli.parameters import RESTART_POLICY, SIZE, ULIMIT, in_order, size_text
from moorage.cli.terminal import complain, confirm, print_object, say

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginPolicy

_WIDENING = (
    ("seccomp", "unconfined", "seccomp: run without a system call filter"),
    ("new_privileges", True, "new privileges: gain privileges by set-uid programs"),
)


_AT_ONCE = frozenset(("log", "memory_bytes", "cpus", "pids", "restarts", "most", "stop_timeout", "standby", "health"))
"""Options that apply to a running plugin at once."""


def _restart_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option(
            "--restart",
            "restarts",
            type=RESTART_POLICY,
            metavar="no|always|on-failure[:MAX]",
            help="When to restart the plugin after it exits.",
        ),
        click.option(
            "--max",
            "most",
            metavar="N",
            type=click.IntRange(min=0),
            help="Maximum number of restarts in a row; 0 for no limit.",
        ),
        click.option(
            "--log",
            type=click.Choice(["file", "journald", "syslog"]),
            help="Also send the output to the journal or syslog; file for neither.",
        ),
        click.option(
            "--stop-timeout", metavar="SECONDS", type=click.FloatRange(min=0), help="Seconds from SIGTERM to SIGKILL."
        ),
        click.option(
            "--standby/--no-standby",
            "standby",
            default=None,
            help="Create the container of the next run in advance, for a quick restart.",
        ),
    )
    return in_order(command, options)


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--memory", "memory_bytes", type=SIZE, help="Memory limit, as in 256m; 0 for no limit."),
        click.option(
            "--cpus",
            metavar="NUMBER",
            type=click.FloatRange(min=0),
            help="Number of processors, as in 0.5; 0 for no limit.",
        ),
        click.option(
            "--pids", metavar="N", type=click.IntRange(min=0), help="Limit of processes and threads; 0 for no limit."
        ),
        click.option(
            "--ulimit",
            "rlimits",
            type=ULIMIT,
            multiple=True,
            help="Resource limit NAME=SOFT[:HARD], as in nofile=1024:4096.",
        ),
        click.option(
            "--oom-score-adj",
            metavar="N",
            type=click.IntRange(-1000, 1000),
            help="Adjustment of the OOM killer's preference.",
        ),
        click.option("--nice", metavar="N", type=click.IntRange(-20, 19), help="Nice value."),
    )
    return in_order(command, options)


def _privilege_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--seccomp", type=click.Choice(["default", "unconfined"]), help="System call filter."),
        click.option(
            "--allow-new-privileges/--no-new-privileges",
            "new_privileges",
            default=None,
            help="Allow set-uid programs to gain privileges.",
        ),
        click.option(
            "--capabilities",
            type=click.Choice(["docker", "minimal"]),
            help="Default capabilities, besides those that the plugin requests.",
        ),
        click.option("--apparmor", metavar="PROFILE", help="AppArmor profile: default, unconfined, or a loaded one."),
        click.option("--selinux-label", metavar="LABEL", help="SELinux label of the process; empty for none."),
        click.option("--read-only/--no-read-only", "read_only", default=None, help="Read-only root file system."),
        click.option(
            "--userns",
            type=click.Choice(["host", "auto"]),
            help="User namespace; auto for a separate one.",
        ),
        click.option("--init/--no-init", default=None, help="Run an init process in the plugin."),
        click.option(
            "-y",
            "--grant-all-permissions",
            "grant_all",
            is_flag=True,
            help="Grant additional privileges without asking.",
        ),
    )
    return in_order(command, options)


@click.command(
    name="policy",
    help="Show or change the restart policy, the health checks and the confinement of a plugin. Limits of memory, "
    "processors and processes, the restart policy, the standby and health checks apply at once, other changes from the "
    "next start.",
)
@click.argument("plugin", shell_complete=plugin_names)
@_restart_options
@health_options
@_limit_options
@_privilege_options
@format_option
@json_option
def command(plugin: str, grant_all: bool, template: str | None, **options: Any) -> None:
    """Show or change."""
    if options["restarts"] is not None:
        options["restarts"], most = options["restarts"]
        options["most"] = most if options["most"] is None else options["most"]
    options["rlimits"] = dict(options["rlimits"]) or None
    options["health"] = take_health(options)
    given = {key: value for key, value in options.items() if value is not None}
    client = engine_client()
    if given:
        from moorage.api.schema.plugins import PolicyRequest

        attended = _confirm_widening(plugin, client.policy(plugin), given, grant_all=grant_all)
        change = {**given, "attended": True} if attended else given
        found = client.set_policy(plugin, PolicyRequest(**change))
        if given.keys() - _AT_ONCE and client.inspect(plugin).enabled:
            complain(f"applies from the next start: moorage restart {plugin}")
    else:
        found = client.policy(plugin)
    if template is not None:
        from moorage.api.schema.base import to_document

        print_rows(template, [to_document(found)])
    elif is_json():
        print_object(found)
    else:
        _show(found)


def _confirm_widening(plugin: str, now: "PluginPolicy", given: dict[str, Any], *, grant_all: bool) -> bool:
    """Whether a person agreed to what the change widens.

    Raises:
        errors.Denied: they did not
    """
    apparmor = given.get("apparmor")
    new = [text for key, value, text in _WIDENING if given.get(key) == value != getattr(now, key)]
    if apparmor not in (None, "default", now.apparmor):
        new.append(f"apparmor: run under profile {apparmor}")
    if not new or grant_all:
        return False
    for text in new:
        say(f" + {text}", err=True)
    if not confirm(
        f"Plugin {plugin} gets these privileges in addition to the default. Grant them?", "--grant-all-permissions"
    ):
        raise errors.Denied(f"the policy of plugin {plugin} was not changed")
    return True


def _show(found: "PluginPolicy") -> None:
    limit = f"at most {found.most} times in a row" if found.most else "without limit"
    stop = "the engine's default" if found.stop_timeout is None else f"{found.stop_timeout:g} s"
    rows = (
        ("restarts", f"{found.restarts}, {limit}"),
        ("stop timeout", stop),
        ("health", describe_health(found.health) if found.health else "no checks"),
        ("log", found.log),
        ("standby", "yes" if found.standby else "no"),
        ("seccomp", found.seccomp),
        ("new privileges", "allowed" if found.new_privileges else "no"),
        ("capabilities", found.capabilities),
        ("apparmor", found.apparmor),
        *((("selinux label", found.selinux_label),) if found.selinux_label else ()),
        ("root", "read-only" if found.read_only else "writable"),
        ("user namespace", found.userns),
        ("init", "yes" if found.init else "no"),
        ("memory", size_text(found.memory_bytes) if found.memory_bytes else "no limit"),
        ("cpus", f"{found.cpus:g}" if found.cpus else "no limit"),
        ("pids", str(found.pids) if found.pids else "no limit"),
        ("oom score adj", str(found.oom_score_adj)),
        ("nice", str(found.nice)),
        ("ulimits", " ".join(f"{name}={_pair(values)}" for name, values in found.rlimits.items())),
    )
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def _pair(values: tuple[int, int]) -> str:
    soft, hard = ("unlimited" if each == -1 else str(each) for each in values)
    return soft if soft == hard else f"{soft}:{hard}"
