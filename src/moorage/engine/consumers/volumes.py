"""Volumes of every volume driver of an engine: found, listed, mounted for owners, over calls to the drivers.

Nothing about volumes is stored here: drivers know what exists, and the plugin proxy knows what is mounted.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import anyio
from msgspec import Struct, field

from moorage import errors
from moorage.engine.values import PluginView
from moorage.proxy.protocol import VolumeMount
from moorage.timeouts import DEFAULT, EngineTimeouts

__all__ = ("Drivers", "VolumeListing", "VolumeService", "VolumeView", "mount_id")

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_CONSUMER = "moorage volume"
_MASK = "********"
_SECRET_WORDS = ("pass", "secret", "token", "key", "credential", "auth")
_LONGEST_OWNER = 4096
_POLL = 0.005  # seconds between two checks of what the proxy has reported


class Drivers(Protocol):
    """What is needed of an engine."""

    def list(self) -> Sequence[PluginView]:
        """Every plugin."""

    def get(self, name: str) -> PluginView:
        """One plugin. Raises: NotFound, Invalid."""

    async def volume_call(
        self, name: str, method: str, body: dict[str, Any], consumer: str, within: float
    ) -> dict[str, Any]:
        """Call ``VolumeDriver.<method>`` through the plugin proxy."""


class VolumeView(Struct, frozen=True):
    """A volume, as its driver shows it."""

    name: str
    driver: str
    mountpoint: str = ""
    """On the host; empty where the driver gives none."""
    created_at: str = ""
    scope: str = ""
    """local or global; empty where it was not queried."""
    status: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    mounts: tuple[VolumeMount, ...] = ()
    """Its users."""


class VolumeListing(Struct, frozen=True):
    """Volumes by name, and the drivers that did not answer, each with the cause."""

    volumes: tuple[VolumeView, ...]
    failures: Mapping[str, str]


def mount_id(owner: str) -> str:
    """The ID with which volumes are mounted for an owner: the same for the same owner, and as long as docker's."""
    return hashlib.sha256(f"moorage volume {owner}".encode()).hexdigest()


class VolumeService:
    """Volumes of an engine. A driver is named as any plugin; without one, the drivers are queried for the volume."""

    def __init__(self, drivers: Drivers, timeouts: EngineTimeouts = DEFAULT) -> None:
        """``drivers``: the engine."""
        self._drivers = drivers
        self._timeouts = timeouts

    async def list(self, driver: str = "") -> VolumeListing:
        """The volumes of every enabled driver, or of one. All are queried at once, each with a bound."""
        plugins = [self._driver(driver)] if driver else self._enabled()
        found, failures = await self._query_each(plugins, self._list_one)
        volumes = [volume for each in found for volume in each]
        return VolumeListing(tuple(sorted(volumes, key=lambda each: (each.name, each.driver))), failures)

    async def inspect(self, name: str, driver: str = "") -> VolumeView:
        """One volume, with its scope.

        Raises:
            errors.NotFound: no driver has it
            errors.Invalid: several drivers have it, and none is named
            errors.Unavailable: no driver has it, and one did not answer
        """
        found = await self._find(name, driver)
        try:
            answer = await self._call(found.driver, "Capabilities", {}, self._timeouts.volume_list)
        except errors.MoorageError:
            answer = {}  # drivers need not have it: it was added to the protocol later
        scope = _mapping(answer.get("Capabilities")).get("Scope")
        return VolumeView(
            found.name,
            found.driver,
            found.mountpoint,
            found.created_at,
            scope if scope in ("local", "global") else "local",
            found.status,
            found.options,
            found.mounts,
        )

    async def create(self, name: str, driver: str, options: Mapping[str, str]) -> VolumeView:
        """Create a volume; a driver takes one that exists for created.

        Raises: Invalid without a name or a driver; NotFound, Conflict for the driver; what the driver reports.
        """
        if not name or "\0" in name:
            raise errors.Invalid("cannot create a volume: missing field 'name'")
        plugin = self._driver(driver)
        shown = " ".join(f"{key}={_MASK if _is_secret(key) else value}" for key, value in options.items())
        log.info("creating volume %s by driver %s with options: %s", name, plugin.name, shown or "none")
        try:
            await self._call(plugin.name, "Create", {"Name": name, "Opts": dict(options)})
        except errors.MoorageError as error:
            raise type(error)(f"cannot create volume {name}: {_masked(str(error), options)}") from None
        try:
            return await self._get(plugin, name)
        except errors.MoorageError:
            return VolumeView(name, plugin.name)  # it was created; drivers that do not answer to Get are used, too

    async def remove(self, name: str, driver: str = "", *, force: bool = False) -> None:
        """Remove a volume. Mounts that are in use are released first, if ``force``.

        Raises: Conflict with its users, unless forced; as ``inspect``; what the driver reports.
        """
        volume = await self._find(name, driver)
        if volume.mounts and not force:
            users = ", ".join(dict.fromkeys(each.consumer or each.id for each in volume.mounts))
            raise errors.Conflict(f"cannot remove volume {name}: it is in use by {users}")
        for mount in volume.mounts:
            try:
                await self._call(volume.driver, "Unmount", {"Name": name, "ID": mount.id})
            except errors.MoorageError as error:
                log.warning("cannot unmount volume %s of %s: %s", name, mount.consumer, error)
            await self._wait_reported(volume.driver, name, mount.id, is_mounted=False)
        await self._call(volume.driver, "Remove", {"Name": name})

    async def mount(self, name: str, owner: str, driver: str = "") -> tuple[str, str]:
        """Mount a volume for an owner, who releases it by ``unmount``; the host's path, and the driver.

        A mount that the owner has already is returned as it is. Raises: as ``inspect``; what the driver reports.
        """
        owner = _checked_owner(owner or name)
        id = mount_id(owner)
        # a driver that is named is not queried first: while it starts, a Mount may wait longer than a Get
        plugin = self._driver(driver or (await self._find(name, "")).driver)
        for mount in plugin.mounts:
            if _is(mount, name, id) and mount.path and not mount.problem:
                return mount.path, plugin.name
        answer = await self._call(plugin.name, "Mount", {"Name": name, "ID": id}, consumer=owner)
        path = answer.get("Mountpoint")
        if not isinstance(path, str) or not path:
            raise errors.InvalidResponse(f"cannot mount volume {name}: driver {plugin.name} returned no mount point")
        await self._wait_reported(plugin.name, name, id, is_mounted=True)
        return path, plugin.name

    async def unmount(self, name: str, owner: str, driver: str = "") -> None:
        """Release an owner's mount. Raises: as ``inspect``; what the driver reports."""
        owner = _checked_owner(owner or name)
        id = mount_id(owner)
        mounted = [plugin.name for plugin in self._enabled() if any(_is(each, name, id) for each in plugin.mounts)]
        if driver or not mounted:
            mounted = [self._driver(driver).name if driver else (await self._find(name, "")).driver]
        for each in mounted:
            await self._call(each, "Unmount", {"Name": name, "ID": id}, consumer=owner)
            await self._wait_reported(each, name, id, is_mounted=False)

    async def _wait_reported(self, driver: str, volume: str, id: str, *, is_mounted: bool) -> None:
        """Return when the proxy has reported a mount, or its release, so that the next call knows of it; or soon."""
        with anyio.move_on_after(self._timeouts.volume_report):
            while any(_is(each, volume, id) for each in self._drivers.get(driver).mounts) is not is_mounted:  # noqa: ASYNC110
                await anyio.sleep(_POLL)

    # drivers

    def _driver(self, name: str) -> PluginView:
        if not name:
            raise errors.Invalid("cannot use a volume without its driver: give the name of a plugin")
        plugin = self._drivers.get(name)
        if not _is_driver(plugin):
            raise errors.Invalid(f"cannot use plugin {plugin.name} for volumes: it is no volume driver")
        if not plugin.enabled:
            raise errors.Conflict(f"cannot use plugin {plugin.name} for volumes: it is disabled")
        return plugin

    def _enabled(self) -> Sequence[PluginView]:
        return [plugin for plugin in self._drivers.list() if plugin.enabled and _is_driver(plugin)]

    async def _find(self, name: str, driver: str) -> VolumeView:
        if driver:
            return await self._get(self._driver(driver), name)
        found, failures = await self._query_each(self._enabled(), lambda plugin: self._probe(plugin, name))
        volumes = [each for each in found if each is not None]
        if len(volumes) > 1:
            names = ", ".join(each.driver for each in volumes)
            raise errors.Invalid(f"cannot choose a driver of volume {name}: {names} have one; give --driver")
        if volumes:
            return volumes[0]
        if failures:
            causes = "; ".join(f"driver {each} did not answer: {cause}" for each, cause in failures.items())
            raise errors.Unavailable(f"cannot find volume {name}: {causes}")
        raise errors.NotFound(f"no such volume: {name}")

    async def _probe(self, plugin: PluginView, name: str) -> VolumeView | None:
        try:
            return await self._get(plugin, name)
        except (errors.Unavailable, errors.Conflict):
            raise
        except errors.MoorageError:
            return None

    async def _query_each(
        self, plugins: Sequence[PluginView], query: Callable[[PluginView], Awaitable[Result]]
    ) -> tuple[Sequence[Result], dict[str, str]]:
        """The answers of the plugins in their order, and why others did not answer."""
        answers: dict[str, Result] = {}
        failures: dict[str, str] = {}

        async def one(plugin: PluginView) -> None:
            try:
                with anyio.fail_after(self._timeouts.volume_list):
                    answers[plugin.name] = await query(plugin)
            except TimeoutError:
                failures[plugin.name] = f"no answer within {self._timeouts.volume_list:g} s"
            except errors.MoorageError as error:
                failures[plugin.name] = str(error)

        async with anyio.create_task_group() as tasks:
            for plugin in plugins:
                tasks.start_soon(one, plugin)
        return [answers[each.name] for each in plugins if each.name in answers], dict(sorted(failures.items()))

    # calls

    async def _list_one(self, plugin: PluginView) -> Sequence[VolumeView]:
        answer = await self._call(plugin.name, "List", {}, self._timeouts.volume_list)
        found = answer.get("Volumes") or []
        return [_volume(plugin, each) for each in found if _mapping(each).get("Name")]

    async def _get(self, plugin: PluginView, name: str) -> VolumeView:
        answer = await self._call(plugin.name, "Get", {"Name": name}, self._timeouts.volume_list)
        found = _mapping(answer.get("Volume"))
        if not found:
            raise errors.NotFound(f"no such volume: {name}")
        return _volume(plugin, {**found, "Name": name})

    async def _call(
        self, driver: str, method: str, body: dict[str, Any], within: float = 0, consumer: str = _CONSUMER
    ) -> dict[str, Any]:
        return await self._drivers.volume_call(driver, method, body, consumer, within)


def _volume(plugin: PluginView, found: Mapping[str, Any]) -> VolumeView:
    name = str(found["Name"])
    return VolumeView(
        name=name,
        driver=plugin.name,
        mountpoint=_text(found.get("Mountpoint")),
        created_at=_text(found.get("CreatedAt")),
        status=_mapping(found.get("Status")),
        options=_mapping(found.get("Options")),
        mounts=tuple(each for each in plugin.mounts if each.volume == name),
    )


def _is(mount: VolumeMount, volume: str, id: str) -> bool:
    return mount.volume == volume and mount.id == id


def _is_driver(plugin: PluginView) -> bool:
    return any(each.capability.lower() == "volumedriver" for each in plugin.config.interface.types)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _checked_owner(owner: str) -> str:
    if not owner.isprintable() or not owner.isascii() or len(owner) > _LONGEST_OWNER:
        raise errors.Invalid(f"cannot mount a volume for {owner[:80]!r}: an owner is a line of printable ASCII")
    return owner


def _is_secret(option: str) -> bool:
    return any(word in option.lower() for word in _SECRET_WORDS)


def _masked(text: str, options: Mapping[str, str]) -> str:
    """A driver's message, without secrets: drivers quote the options that they refuse."""
    for value in sorted((value for key, value in options.items() if value and _is_secret(key)), key=len, reverse=True):
        text = text.replace(value, _MASK)
    return text
