"""Calls of the engine to volume drivers, through the plugin proxy: it alone knows what is mounted."""

from typing import TYPE_CHECKING, Any

import msgspec

from moorage import errors
from moorage.engine.consumers.names import is_kind
from moorage.runs.http_call import PluginResponse, call

if TYPE_CHECKING:
    from moorage.engine.consumers.publisher import Publisher
    from moorage.engine.supervisor import Supervisor
    from moorage.timeouts import EngineTimeouts

__all__ = ("call_driver",)

_REPEATABLE = frozenset({"Get", "List", "Path", "Capabilities", "Mount", "Unmount"})
"""Methods that have no further effect when they are called once more with the same arguments."""
_MOUNTING = frozenset({"Mount", "Unmount", "Remove"})
"""Methods after which something else is mounted."""
_TEXT_BYTES = 200
"""Of an answer that is no JSON object, in an error."""


async def call_driver(
    publisher: "Publisher",
    plugin: "Supervisor",
    method: str,
    body: dict[str, Any],
    consumer: str,
    within: float,
    timeouts: "EngineTimeouts",
) -> dict[str, Any]:
    """The answer of a volume driver; see ``Engine.volume_call``. Repeated once if the proxy exits meanwhile."""
    if not is_kind(plugin.config, "volumedriver"):
        raise errors.Invalid(f"cannot call plugin {plugin.name}: it is no volume driver")
    within = within or timeouts.volume_call
    publisher.use(plugin.id)
    if not await publisher.settle():
        problem = publisher.problem or "the plugin proxy does not answer"
        raise errors.Unavailable(f"cannot call plugin {plugin.name}: {problem}")
    starts = publisher.starts
    headers = {"Content-Type": "application/json", "Moorage-Consumer": consumer}
    socket, raw = publisher.internal_socket(plugin.id), msgspec.json.encode(body)

    async def post() -> PluginResponse:
        return await call(socket, f"VolumeDriver.{method}", raw, within, plugin=plugin.name, headers=headers)

    try:
        response = await post()
    except errors.Unavailable:
        if method not in _REPEATABLE or not await publisher.is_started_again(starts):
            raise
        response = await post()
    if method in _MOUNTING:
        await publisher.refresh()  # so that the caller's next request finds it
    return _parse(response, f"VolumeDriver.{method} of plugin {plugin.name}")


def _parse(response: PluginResponse, called: str) -> dict[str, Any]:
    """Raises: MoorageError with the driver's own text; InvalidResponse for what is no JSON object."""
    try:
        answer = msgspec.json.decode(response.body or b"{}")
    except msgspec.DecodeError:
        answer = None
    if response.status == 200 and isinstance(answer, dict):
        return answer
    text = response.body[:_TEXT_BYTES].decode(errors="replace")
    if response.status == 200:
        raise errors.InvalidResponse(f"cannot use the answer to {called}: it is no JSON object: {text}")
    message = answer.get("Err") if isinstance(answer, dict) else None
    raise errors.MoorageError(message if isinstance(message, str) and message else f"{called} failed: {text}")
