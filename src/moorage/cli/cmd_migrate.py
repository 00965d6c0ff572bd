"""``moorage migrate``: a managed plugin of a dockerd becomes one of Moorage."""

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage.cli.consent import confirm_grant, grant_option, show_requested
from moorage.cli.context import directories, engine_client, is_json, json_option
from moorage.cli.terminal import print_object, say, warn

if TYPE_CHECKING:
    from moorage.cli.migration.docker_root import DockerPlugin
    from moorage.client import MoorageClient

_DOCKER_ROOT = "/var/lib/docker"
_MOST_NAMED = 5


@click.command(
    name="migrate",
    help="Migrate a managed plugin of a Docker daemon on this host: its package, its settings and the data below its "
    "propagated mount. It is published by the same name and enabled. The daemon must not run, or the plugin must be "
    "disabled there; nothing of the daemon is changed.",
)
@click.argument("plugin", metavar="NAME")
@click.option(
    "--docker-root",
    type=click.Path(path_type=Path),
    default=_DOCKER_ROOT,
    show_default=True,
    shell_complete=directories,
    help="Data directory of the daemon.",
)
@click.option("--no-publish", is_flag=True, help="Do not publish the plugin.")
@click.option("--disable", "leave_disabled", is_flag=True, help="Do not enable the plugin.")
@grant_option
@json_option
def command(plugin: str, docker_root: Path, no_publish: bool, leave_disabled: bool, grant_all: bool) -> None:
    """Migrate; undone as a whole up to the point where the plugin is complete."""
    from moorage.cli.migration.docker_root import changed_settings, find_plugin, is_daemon_running

    found = find_plugin(docker_root, plugin)
    if found.is_enabled and is_daemon_running(docker_root):
        raise errors.Conflict(
            f"cannot migrate plugin {found.name}: it is enabled in a running Docker daemon; "
            f"stop the containers that use it, and run: docker plugin disable -f {found.name}"
        )
    client = engine_client()
    _check_name(client, found)
    is_whole = _load(client, docker_root, found, grant_all=grant_all)
    try:
        _grant(client, found.name, grant_all=grant_all)
        if assignments := changed_settings(found.config, found.settings):
            client.set(found.name, assignments)
        _copy_data(client, found)
    except BaseException:
        client.remove(found.name)
        raise
    if is_whole:
        _warn_of_written_files(docker_root, found)
    if not no_publish:
        _publish(client, found.name)
    if not leave_disabled:
        _enable(client, found.name)
    if is_json():
        print_object(client.inspect(found.name))
    else:
        say(found.name)
    say(  # with -f, because a daemon that has volumes of the plugin refuses without
        f"left to do: docker plugin rm -f {found.name}; as long as the daemon has this plugin, it does not use the "
        "published one",
        err=True,
    )


def _check_name(client: "MoorageClient", found: "DockerPlugin") -> None:
    try:
        client.inspect(found.name)
    except errors.NotFound:
        return
    raise errors.Conflict(f"cannot migrate plugin {found.name}: a plugin of this name exists here already")


def _load(client: "MoorageClient", docker_root: Path, found: "DockerPlugin", *, grant_all: bool) -> bool:
    """Load the package; whether the daemon still had it, as otherwise the plugin is created from its files."""
    from moorage.cli.migration.docker_root import is_complete, oci_archive

    if not is_complete(docker_root, found):
        _create(client, docker_root, found, grant_all=grant_all)
        return False
    for loaded in client.load(oci_archive(docker_root, found), found.name):
        for warning in loaded.warnings:
            warn(f"{loaded.name}: {warning}")
    return True


def _create(client: "MoorageClient", docker_root: Path, found: "DockerPlugin", *, grant_all: bool) -> None:
    """Create the plugin from its config and its root file system, with what it has written there. Raises: Denied."""
    from moorage.api.schema.plugins import PluginPrivilege
    from moorage.cli.cmd_create import package
    from moorage.cli.migration.docker_root import config_path
    from moorage.plugins import compute_privileges, parse_config

    path = config_path(docker_root, found)
    upgrade = f"; later: moorage upgrade {found.name} {found.reference}" if found.reference != found.name else ""
    warn(f"the daemon has deleted parts of the package of {found.name}: it is created from its files{upgrade}")
    config = parse_config(path.read_bytes()).config
    requested = [PluginPrivilege(each.name, each.description, list(each.value)) for each in compute_privileges(config)]
    if requested and not grant_all:
        confirm_grant(found.name, requested)
    else:
        show_requested(requested)
    client.create(found.name, package(found.directory, path))
    if requested and not grant_all:
        client.grant(found.name, attended=True)


def _grant(client: "MoorageClient", name: str, *, grant_all: bool) -> None:
    """Grant what its config requests, after a person agreed; settings are granted by being set. Raises: Denied."""
    details = client.inspect(name).moorage
    if not details.ungranted:
        return
    if grant_all:
        show_requested(details.privileges)
        client.grant(name)
        return
    confirm_grant(name, details.privileges)
    client.grant(name, details.privileges, attended=True)


def _copy_data(client: "MoorageClient", found: "DockerPlugin") -> None:
    """Copy what is below the propagated mount, with owners and attributes; what is mounted there is not its data.

    Raises: MoorageError where the copy fails.
    """
    source = found.propagated_mount
    if not found.propagated_path or not source.is_dir() or not os.listdir(source):
        return
    target = client.host_path(found.name, found.propagated_path)
    done = subprocess.run(
        ["cp", "--archive", "--one-file-system", "--", f"{source}/.", target],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise errors.MoorageError(f"cannot copy the data of plugin {found.name} to {target}: {done.stderr.strip()}")


def _warn_of_written_files(docker_root: Path, found: "DockerPlugin") -> None:
    from moorage.cli.migration.docker_root import layer_paths
    from moorage.cli.migration.root_changes import find_written_files

    try:
        written = find_written_files(found.directory / "rootfs", layer_paths(docker_root, found), _MOST_NAMED)
    except (OSError, errors.MoorageError) as error:
        warn(f"cannot check which files plugin {found.name} has written into its root file system: {error}")
        return
    if written:
        more = " and more" if len(written) == _MOST_NAMED else ""
        warn(f"files that it wrote into its root file system are not migrated: {', '.join(written)}{more}")


def _publish(client: "MoorageClient", name: str) -> None:
    try:
        client.publish(name)
    except errors.Conflict as error:  # a metrics collector, or a name that another program serves
        warn(f"plugin {name} is not published: {error}")


def _enable(client: "MoorageClient", name: str) -> None:
    try:
        client.enable(name)
    except errors.MoorageError as error:
        raise type(error)(
            f"plugin {name} is migrated, but cannot be enabled: {error}; after fixing that, run: moorage enable {name}"
        ) from error
