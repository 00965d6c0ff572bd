"""Checks of volume drivers."""

from moorage.conformance.check import CheckFailed, CheckSkipped, ConformanceCheck, PluginCalls, require
from moorage.conformance.checks.common import common_checks

__all__ = ("VOLUME_CHECKS",)


def _names(plugin: PluginCalls) -> list[str]:
    volumes = plugin.succeed("List").get("Volumes")
    require(volumes is None or isinstance(volumes, list), f'List must have a list "Volumes"; it is {volumes!r}')
    return [str(each.get("Name")) for each in volumes or () if isinstance(each, dict)]


def _mountpoint(plugin: PluginCalls, name: str, user: str) -> str:
    point = plugin.succeed("Mount", Name=name, ID=user).get("Mountpoint")
    require(
        isinstance(point, str) and point.startswith("/"), f"Mount must return an absolute Mountpoint, not {point!r}"
    )
    return str(point)


def _life(plugin: PluginCalls) -> None:
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    require(name in _names(plugin), f"List must have the volume {name} after Create")
    volume = plugin.succeed("Get", Name=name).get("Volume")
    found = volume.get("Name") if isinstance(volume, dict) else None
    require(found == name, f'Get must answer with {{"Volume": {{"Name": "{name}"}}}}; Volume is {volume!r}')
    plugin.succeed("Path", Name=name)
    plugin.succeed("Remove", Name=name)
    require(name not in _names(plugin), f"List must not have the volume {name} after Remove")


def _create_twice(plugin: PluginCalls) -> None:
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    require(_names(plugin).count(name) == 1, f"List must have the volume {name} once after two Creates")
    plugin.succeed("Remove", Name=name)


def _null_options(plugin: PluginCalls) -> None:
    if plugin.options:
        raise CheckSkipped("options were given, so that it may require them")
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=None)
    plugin.succeed("Remove", Name=name)


def _unknown_volume(plugin: PluginCalls) -> None:
    for method in ("Get", "Path", "Remove"):
        plugin.fail(method, Name=plugin.name())
    plugin.fail("Mount", Name=plugin.name(), ID="one")


def _capabilities(plugin: PluginCalls) -> None:
    found = plugin.succeed("Capabilities").get("Capabilities")
    scope = found.get("Scope") if isinstance(found, dict) else None
    require(scope in ("local", "global"), f"Capabilities must have the Scope local or global; it is {scope!r}")


def _two_users(plugin: PluginCalls) -> None:
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    first = _mountpoint(plugin, name, "one")
    second = _mountpoint(plugin, name, "two")
    require(first == second, f"both users must get the same Mountpoint; they get {first} and {second}")
    plugin.succeed("Unmount", Name=name, ID="one")
    _require_mounted(plugin, name, "one of two users has unmounted it")
    _require_in_use(plugin, name, "one of two users has unmounted it")
    plugin.succeed("Unmount", Name=name, ID="two")
    plugin.succeed("Remove", Name=name)


def _same_user(plugin: PluginCalls) -> None:
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    for _ in range(2):
        _mountpoint(plugin, name, "one")
    plugin.succeed("Unmount", Name=name, ID="one")
    reply = plugin.call("Remove", Name=name)
    require(
        reply.is_success,
        "a Mount that is repeated with the same ID, as callers do after a lost answer, must count once: after one "
        f"Unmount the volume is not in use; Remove is answered with {reply}",
    )


def _unknown_user(plugin: PluginCalls) -> None:
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    _mountpoint(plugin, name, "one")
    plugin.call("Unmount", Name=name, ID="another")  # may fail or succeed
    _require_mounted(plugin, name, "an unknown user has unmounted it")
    _require_in_use(plugin, name, "an unknown user has unmounted it")
    plugin.succeed("Unmount", Name=name, ID="one")
    plugin.succeed("Remove", Name=name)


def _require_mounted(plugin: PluginCalls, name: str, when: str) -> None:
    point = plugin.succeed("Path", Name=name).get("Mountpoint")
    require(point, f"volume {name} must stay mounted when {when}; Path is {point!r}")


def _require_in_use(plugin: PluginCalls, name: str, when: str) -> None:
    reply = plugin.call("Remove", Name=name)
    require(not reply.is_success, f"volume {name} is in use when {when}, so Remove must fail; it is {reply}")


def _mountpoint_below(plugin: PluginCalls) -> None:
    top = plugin.target.propagated_mount
    if not top and plugin.target.types:
        raise CheckSkipped("its config has no propagatedMount")
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    point = _mountpoint(plugin, name, "one")
    try:
        is_below = not top or point == top or point.startswith(f"{top.rstrip('/')}/")
        require(is_below, f"Mountpoint must be below propagatedMount ({top}), which the host sees; it is {point}")
        path = plugin.target.host_path(point)
        require(path.is_dir(), f"Mountpoint {point} must be a directory of the host: {path} is not")
    finally:
        plugin.call("Unmount", Name=name, ID="one")
        plugin.call("Remove", Name=name)


def _survives_kill(plugin: PluginCalls) -> None:
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    point = _mountpoint(plugin, name, "one")
    file = plugin.target.host_path(point) / "file"
    try:
        file.write_text("text")
        is_written = True
    except OSError:
        is_written = False  # a volume that cannot be written to
    plugin.target.kill()
    require(name in _names(plugin), f"volume {name} must still exist after kill -9")
    _require_in_use(plugin, name, "its plugin was killed while it was mounted")
    again = _mountpoint(plugin, name, "two")
    require(again == point, f"Mountpoint must be the same after kill -9; it was {point} and is {again}")
    if is_written and _read(plugin, point) != "text":
        raise CheckFailed(f"what was written to volume {name} is not in it after kill -9 of the plugin")
    plugin.succeed("Unmount", Name=name, ID="two")
    _require_in_use(plugin, name, "a user from before the kill has it mounted")
    plugin.succeed("Unmount", Name=name, ID="one")
    plugin.succeed("Remove", Name=name)


def _read(plugin: PluginCalls, point: str) -> str:
    try:
        return (plugin.target.host_path(point) / "file").read_text()
    except OSError:
        return ""


def _survives_stop(plugin: PluginCalls) -> None:
    name = plugin.name()
    plugin.succeed("Create", Name=name, Opts=plugin.options)
    plugin.target.stop()
    require(name in _names(plugin), f"volume {name} must still exist after a restart")
    plugin.succeed("Remove", Name=name)


VOLUME_CHECKS = (
    *common_checks("List", {}),
    ConformanceCheck("V01", "creates, lists, describes and removes a volume", _life),
    ConformanceCheck("V02", "takes a second Create with the same options", _create_twice),
    ConformanceCheck("V03", "takes null as options", _null_options),
    ConformanceCheck("V04", "refuses a volume that does not exist", _unknown_volume),
    ConformanceCheck("V05", "has a scope", _capabilities),
    ConformanceCheck("V06", "keeps a volume mounted for its second user", _two_users),
    ConformanceCheck("V07", "counts a repeated Mount of one user once", _same_user),
    ConformanceCheck("V08", "keeps a volume mounted when an unknown user unmounts it", _unknown_user),
    ConformanceCheck("V09", "mounts below propagatedMount", _mountpoint_below),
    ConformanceCheck("V10", "remembers volumes and users after kill -9", _survives_kill, needs_restart=True),
    ConformanceCheck("V11", "remembers volumes after a restart", _survives_stop, needs_restart=True),
)
