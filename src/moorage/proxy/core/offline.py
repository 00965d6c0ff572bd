"""What the proxy answers for a plugin that is disabled or has failed: at once, and from what it knows (row P03)."""

import msgspec

from moorage.proxy.core import calls
from moorage.proxy.core.answers import Answer, failure
from moorage.proxy.core.jobs import Job
from moorage.proxy.core.ledger import Ledger
from moorage.proxy.protocol import PluginTable

__all__ = ("answer", "is_listening", "is_released")


def is_listening(table: PluginTable, ledger: Ledger) -> bool:
    """Whether the sockets for consumers exist.

    dockerd waits 15 s for each socket without an answer, and podman's list of volumes fails where one is missing.
    """
    if table.state != "disabled" or table.options.while_disabled == "answer":
        return True
    return table.options.while_disabled == "auto" and ledger.is_used_by_podman


def is_released(path: str) -> bool:
    """Whether a call returns what went with the plugin's process, so that it succeeds without it."""
    return path in (calls.UNMOUNT, calls.STOP_LOGGING, calls.STOP_METRICS)


def answer(job: Job, table: PluginTable, ledger: Ledger) -> Answer:
    """The answer to a call that cannot be forwarded."""
    volume = job.arguments.volume
    if job.path == calls.LIST:
        return _answer({"Volumes": [{"Name": name, "Mountpoint": path} for name, path in ledger.volumes.items()]})
    if job.path in (calls.GET, calls.PATH) and volume in ledger.volumes:
        path = ledger.volumes[volume]
        if job.path == calls.PATH:
            return _answer({"Mountpoint": path})
        return _answer({"Volume": {"Name": volume, "Mountpoint": path, "Status": {}}})
    if job.path == calls.SCOPE:
        return _answer({"Capabilities": {"Scope": ledger.scope or "local"}})
    if job.path == calls.LOG_CAPABILITIES and ledger.log_capabilities:
        return Answer(200, ledger.log_capabilities)
    if job.path in (calls.GET, calls.PATH):
        return failure(f"plugin {table.name} is {table.state}, and no volume {volume} of it is known")
    step = "enable it" if table.state == "disabled" else "it is not started again by itself"
    return failure(f"cannot call {calls.method(job.path)}: plugin {table.name} is {table.state}; {step}")


def _answer(document: dict[str, object]) -> Answer:
    return Answer(200, msgspec.json.encode({**document, "Err": ""}))
