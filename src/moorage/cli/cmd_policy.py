"""``moorage policy``: when a plugin is restarted, and what confines it."""

from collections.abc import Callable
from typing import Any

import click

from moorage import errors
from moorage.cli.common import json_option, plugin_names, reach, wants_json
from moorage.cli.limits import SIZE, ULIMIT, size_text
from moorage.cli.terminal import ask, complain, print_json, say

__all__ = ("command",)

_WIDENING = (
    ("seccomp", "unconfined", "seccomp: run without a system call filter"),
    ("new_privileges", True, "new privileges: gain privileges by set-uid programs"),
)


_AT_ONCE = frozenset(("memory_bytes", "cpus", "pids", "restarts", "most", "stop_timeout"))
"""What applies to a plugin that runs, too."""


def _restart_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--restart", "restarts", type=click.Choice(["always", "on-failure", "never"]), help="After which ends."
        ),
        click.option("--max", "most", type=click.IntRange(min=0), help="Most restarts in a row; 0 for no limit."),
        click.option("--stop-timeout", type=click.FloatRange(min=0), help="Seconds from SIGTERM to SIGKILL."),
    ):
        command = option(command)
    return command


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--memory", "memory_bytes", type=SIZE, help="Limit of memory, as in 256m; 0 for no limit."),
        click.option("--cpus", type=click.FloatRange(min=0), help="Limit of processors, as in 0.5; 0 for no limit."),
        click.option("--pids", type=click.IntRange(min=0), help="Limit of processes and threads; 0 for no limit."),
        click.option(
            "--ulimit", "rlimits", type=ULIMIT, multiple=True, help="NAME=SOFT[:HARD], as in nofile=1024:4096."
        ),
        click.option("--oom-score-adj", type=click.IntRange(-1000, 1000), help="Preference of the OOM killer."),
        click.option("--nice", type=click.IntRange(-20, 19), help="Nice value."),
    ):
        command = option(command)
    return command


def _privilege_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--seccomp", type=click.Choice(["default", "unconfined"]), help="System call filter."),
        click.option(
            "--allow-new-privileges/--no-new-privileges",
            "new_privileges",
            default=None,
            help="Whether set-uid programs gain privileges.",
        ),
        click.option(
            "--capabilities",
            type=click.Choice(["docker", "minimal"]),
            help="Capabilities besides those that the plugin requests.",
        ),
        click.option("--apparmor", metavar="PROFILE", help="AppArmor profile: default, unconfined, or a loaded one."),
        click.option("--selinux-label", help="SELinux label of the process; empty for none."),
        click.option("--read-only/--no-read-only", "read_only", default=None, help="Read-only root file system."),
        click.option("--userns", type=click.Choice(["host", "auto"]), help="User namespace; auto is one of its own."),
        click.option("--init/--no-init", default=None, help="Run an init program as its first process."),
        click.option("--grant-all-permissions", "grant_all", is_flag=True, help="Do not ask before widening."),
    ):
        command = option(command)
    return command


@click.command(
    name="policy",
    help="Show the restart policy and the confinement of a plugin; with options, change them. Limits of memory, "
    "processors and processes apply at once, the rest from the next start on.",
)
@click.argument("plugin", shell_complete=plugin_names)
@_privilege_options
@_limit_options
@_restart_options
@json_option
def command(plugin: str, grant_all: bool, **options: Any) -> None:
    """Show or change."""
    options["rlimits"] = dict(options["rlimits"]) or None
    given = {key: value for key, value in options.items() if value is not None}
    client = reach()
    if given:
        attended = _ask_for_widening(plugin, client.policy(plugin), given, grant_all=grant_all)
        found = client.set_policy(plugin, {**given, "attended": True} if attended else given)
        if given.keys() - _AT_ONCE and client.inspect(plugin)["Enabled"]:
            complain(f"applies from the next start on: moorage restart {plugin}")
    else:
        found = client.policy(plugin)
    if wants_json():
        print_json(found)
    else:
        _show(found)


def _ask_for_widening(plugin: str, now: Any, given: dict[str, Any], *, grant_all: bool) -> bool:
    """Whether a person agreed to what the change widens. Raises: Denied where they did not."""
    apparmor = given.get("apparmor")
    new = [text for key, value, text in _WIDENING if given.get(key) == value != now[_API[key]]]
    if apparmor not in (None, "default", now["AppArmor"]):
        new.append(f"apparmor: run under profile {apparmor}")
    if not new or grant_all:
        return False
    for text in new:
        say(f" + {text}", err=True)
    if not ask(f"This gives plugin {plugin} more than the default. Grant it?", "--grant-all-permissions"):
        raise errors.Denied(f"the policy of plugin {plugin} was not changed")
    return True


_API = {"seccomp": "Seccomp", "new_privileges": "NewPrivileges"}


def _show(found: Any) -> None:
    limit = f"at most {found['Most']} times in a row" if found["Most"] else "without limit"
    stop = "the engine's default" if found["StopTimeout"] is None else f"{found['StopTimeout']:g} s"
    rows = (
        ("restarts", f"{found['Restarts']}, {limit}"),
        ("stop timeout", stop),
        ("seccomp", found["Seccomp"]),
        ("new privileges", "allowed" if found["NewPrivileges"] else "no"),
        ("capabilities", found["Capabilities"]),
        ("apparmor", found["AppArmor"]),
        *((("selinux label", found["SelinuxLabel"]),) if found["SelinuxLabel"] else ()),
        ("root", "read-only" if found["ReadOnly"] else "writable"),
        ("user namespace", found["Userns"]),
        ("init", "yes" if found["Init"] else "no"),
        ("memory", size_text(found["MemoryBytes"]) if found["MemoryBytes"] else "no limit"),
        ("cpus", f"{found['Cpus']:g}" if found["Cpus"] else "no limit"),
        ("pids", str(found["Pids"]) if found["Pids"] else "no limit"),
        ("oom score adj", str(found["OomScoreAdj"])),
        ("nice", str(found["Nice"])),
        ("ulimits", " ".join(f"{name}={_pair(values)}" for name, values in found["Rlimits"].items())),
    )
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def _pair(values: Any) -> str:
    soft, hard = ("unlimited" if each == -1 else str(each) for each in values)
    return soft if soft == hard else f"{soft}:{hard}"
