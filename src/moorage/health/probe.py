"""Makes one health check, bounded in time: a connection, a call, or a process inside the plugin."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage._lib.escapes import escape
from moorage._lib.json_document import decode_json
from moorage.health.model import HealthCheck, HealthPolicy, HealthResult
from moorage.host.sockets import PluginSocket
from moorage.runs.http_call import call

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess
    from moorage.containerd.stdio import FifoReader

__all__ = ("RunCommand", "make_checks")

RunCommand = Callable[[Sequence[str]], "AbstractAsyncContextManager[AddedProcess]"]
"""Runs a process inside the plugin until the block ends, and then removes it. Raises: MoorageError."""

_MOST_TEXT = 500
_ANSWER_BYTES = 1024 * 1024
_REST_OF_OUTPUT = 0.2  # seconds from the exit of a command


class _CheckFailed(Exception):
    """A check failed; the text says why."""


async def make_checks(policy: HealthPolicy, socket: PluginSocket, run_command: RunCommand) -> HealthResult:
    """Make the checks one after another, each within its time limit; the first that fails is the result."""
    at, started = datetime.now(UTC), anyio.current_time()
    text = ""
    is_passed = True
    for check in policy.checks:
        with anyio.move_on_after(policy.timeout) as scope:
            try:
                text = await _make(check, socket, run_command)
            except (_CheckFailed, errors.MoorageError, OSError) as error:
                is_passed, text = False, str(error)
        if scope.cancelled_caught:
            is_passed, text = False, f"no result within {policy.timeout:g} s"
        if not is_passed:
            text = f"{_describe(check)}: {text}"
            break
    return HealthResult(at, round(anyio.current_time() - started, 6), is_passed, escape(text[:_MOST_TEXT]))


def _describe(check: HealthCheck) -> str:
    if check.kind == "call":
        return check.method
    return check.command[0] if check.kind == "command" else "connection"


async def _make(check: HealthCheck, socket: PluginSocket, run_command: RunCommand) -> str:
    """What the check printed. Raises: _CheckFailed, MoorageError; it is cancelled at its time limit."""
    if check.kind == "connect":
        if not socket.is_listening():
            raise _CheckFailed(f"{socket.path} does not accept connections")
        return ""
    if check.kind == "call":
        return await _call(check.method, socket)
    return await _run(check.command, run_command)


async def _call(method: str, socket: PluginSocket) -> str:
    answer = await call(socket, method, b"{}", float("inf"), most_bytes=_ANSWER_BYTES)
    try:
        document = decode_json(answer.body) if answer.body else {}
    except ValueError as error:
        raise _CheckFailed(f"the answer is no JSON: {error}") from error
    # Err is Docker's word for every kind of plugin but IPAM drivers, which have Error
    problem = next((document[key] for key in ("Err", "Error") if isinstance(document, dict) and document.get(key)), "")
    if problem or answer.status != 200:
        raise _CheckFailed(str(problem or f"status {answer.status}"))
    return ""


async def _run(command: Sequence[str], run_command: RunCommand) -> str:
    output = bytearray()
    code = -1
    failure: errors.MoorageError | None = None

    async def copy(reader: "FifoReader") -> None:
        while data := await reader.read():
            output.extend(data[: _MOST_TEXT - len(output)])

    async with run_command(command) as process:
        await process.close_input()
        async with anyio.create_task_group() as tasks:
            for reader in (process.stdout, process.stderr):
                if reader is not None:
                    tasks.start_soon(copy, reader)
            try:
                code = (await process.wait()).code
            except errors.MoorageError as error:  # from inside the task group it would come out as a group
                failure = error
            # what it has started may have its output open
            tasks.cancel_scope.deadline = anyio.current_time() + _REST_OF_OUTPUT
    if failure is not None:
        raise failure
    text = output.decode(errors="replace").strip()
    if code:
        raise _CheckFailed(f"exit status {code}{f': {text}' if text else ''}")
    return text
