"""Routes for how plugins are used: published sockets, and volumes of volume drivers."""

from aiohttp import web
from msgspec import UNSET

from moorage import errors
from moorage.api.conversion import to_plugin, to_publish_options, to_volume
from moorage.api.http.query import boolean
from moorage.api.request import Request, json_answer
from moorage.api.schema.consumers import (
    MountedVolume,
    PublishRequest,
    SilentDriver,
    VolumeList,
    VolumeMountRequest,
    VolumeRequest,
)
from moorage.engine.consumers.volumes import VolumeService

__all__ = (
    "create_volume",
    "inspect_volume",
    "list_volumes",
    "mount_volume",
    "publish",
    "remove_volume",
    "unmount_volume",
    "unpublish",
)


async def publish(request: Request) -> web.Response:
    """POST publish: as inspect shows the plugin afterwards."""
    body = await request.read(PublishRequest)
    view = await request.backend.publish(
        request.name,
        body.names or (),
        to_publish_options(body),
        body.group or "",
        force=bool(body.force),
        podman=None if body.podman is UNSET else body.podman,
    )
    return json_answer(to_plugin(view))


async def unpublish(request: Request) -> web.Response:
    """POST unpublish."""
    await request.backend.unpublish(request.name, force=boolean(request.query("force")))
    return web.Response(status=204)


async def list_volumes(request: Request) -> web.Response:
    """GET volumes: of every driver, or of one."""
    listing = await VolumeService(request.backend).list(request.query("driver"))
    failures = [SilentDriver(driver, cause) for driver, cause in listing.failures.items()]
    return json_answer(VolumeList([to_volume(each) for each in listing.volumes], failures))


async def create_volume(request: Request) -> web.Response:
    """POST volumes."""
    body = await request.read(VolumeRequest)
    if not body.name:
        raise errors.Invalid("cannot create a volume: missing field 'name'")
    options = {} if body.options is UNSET else body.options
    made = await VolumeService(request.backend).create(body.name, body.driver or "", options)
    return json_answer(to_volume(made), 201)


async def inspect_volume(request: Request) -> web.Response:
    """GET volumes/{name}."""
    return json_answer(
        to_volume(await VolumeService(request.backend).inspect(request.values["name"], request.query("driver")))
    )


async def remove_volume(request: Request) -> web.Response:
    """DELETE volumes/{name}."""
    force = boolean(request.query("force"))
    await VolumeService(request.backend).remove(request.values["name"], request.query("driver"), force=force)
    return web.Response(status=204)


async def mount_volume(request: Request) -> web.Response:
    """POST mount."""
    owner = (await request.read(VolumeMountRequest)).owner or ""
    service = VolumeService(request.backend)
    path, driver = await service.mount(request.values["name"], owner, request.query("driver"))
    return json_answer(MountedVolume(path, driver))


async def unmount_volume(request: Request) -> web.Response:
    """POST unmount."""
    owner = (await request.read(VolumeMountRequest)).owner or ""
    await VolumeService(request.backend).unmount(request.values["name"], owner, request.query("driver"))
    return web.Response(status=204)
