"""What a driver is: methods of one kind, each with its typed request; and a plugin: one or several drivers.

A method may be ``def`` or ``async def``. It gets its request if the call has one, returns its answer, and raises
``CallFailed`` with a text for the user.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

from moorage.kit.failures import CallFailed
from moorage.kit.messages import decode, encode, parse_object

__all__ = ("CallAnswer", "Driver", "DriverCall", "Eventually", "Plugin", "log", "unsupported")

Result = TypeVar("Result")

Eventually: TypeAlias = Result | Awaitable[Result]
"""What a method returns: ``def`` the value itself, ``async def`` an awaitable of it."""


@dataclass(frozen=True)
class DriverCall:
    """One call of a kind of driver."""

    method: str
    """Name of the driver's method."""
    request: type | None = None
    """Class of its request; None for a call without one."""
    answer: Callable[[Any], Any] = lambda result: result
    """Makes the JSON answer of what the method returned."""


@dataclass(frozen=True)
class CallAnswer:
    """What is sent to the caller."""

    status: int
    body: bytes | Iterator[bytes]
    """Whole, or in pieces as they come."""


class Driver:
    """A driver of one kind. A subclass for each kind has the calls; an author's class has the methods."""

    kind: ClassVar[str] = ""
    """As in ``Plugin.Activate``: VolumeDriver."""
    prefix: ClassVar[str] = ""
    """Of the paths of its calls, where it is not the kind."""
    calls: ClassVar[Mapping[str, DriverCall]] = {}
    """By the last part of the path."""

    def start(self) -> None:
        """Called before the socket accepts; what takes long belongs here, because ready is when it accepts."""

    def stop(self) -> None:
        """Called at SIGTERM, after the last call."""

    def failure(self, text: str) -> dict[str, Any]:
        """The body of an answer to a call that failed."""
        return {"Err": text}


def unsupported(what: str) -> CallFailed:
    """A failure to raise for a call that a driver does not have."""
    return CallFailed(f"this driver does not support {what}")


def log(text: str) -> None:
    """Write a line on standard error, in one piece; a reader that has left is no failure."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


class Plugin:
    """The calls of one or several drivers, by path."""

    def __init__(self, *drivers: Driver) -> None:
        self.drivers = drivers
        self._calls: dict[str, tuple[Driver, DriverCall]] = {
            f"/{driver.prefix or driver.kind}.{name}": (driver, call)
            for driver in drivers
            for name, call in driver.calls.items()
        }

    @property
    def is_async(self) -> bool:
        """Whether a method is ``async def``."""
        return any(inspect.iscoroutinefunction(getattr(driver, call.method)) for driver, call in self._calls.values())

    def start(self) -> None:
        """Start every driver."""
        for driver in self.drivers:
            driver.start()

    def stop(self) -> None:
        """Stop every driver, also after one has failed."""
        for driver in self.drivers:
            try:
                driver.stop()
            except Exception:  # noqa: BLE001 - it is shown, and the others have to stop as well
                log(traceback.format_exc().rstrip())

    def handle(self, method: str, path: str, body: bytes) -> CallAnswer:
        """Answer a call in this thread."""
        found = self._calls.get(path)
        if method != "POST" or found is None:
            return self._other(method, path)
        driver, call = found
        try:
            answer = _success(call, getattr(driver, call.method)(*_arguments(call, body)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller waits for an answer
            answer = failure(driver, path, error)
        return _logged(path, answer)

    async def handle_async(self, method: str, path: str, body: bytes) -> CallAnswer:
        """Answer a call: an ``async def`` method is awaited, any other runs in a thread."""
        import asyncio

        found = self._calls.get(path)
        if method != "POST" or found is None:
            return self._other(method, path)
        driver, call = found
        function = getattr(driver, call.method)
        if not inspect.iscoroutinefunction(function):
            return await asyncio.to_thread(self.handle, method, path, body)
        try:
            answer = _success(call, await function(*_arguments(call, body)))
        except Exception as error:  # noqa: BLE001 - as above
            answer = failure(driver, path, error)
        return _logged(path, answer)

    def _other(self, method: str, path: str) -> CallAnswer:
        if method != "POST":
            return CallAnswer(405, encode({"Err": f"{method} is not possible, only POST"}))
        if path == "/Plugin.Activate":
            return CallAnswer(200, encode({"Implements": [driver.kind for driver in self.drivers]}))
        return CallAnswer(404, encode({"Err": f"unknown method {path}"}))


def _arguments(call: DriverCall, body: bytes) -> tuple[Any, ...]:
    return (decode(call.request, parse_object(body)),) if call.request is not None else ()


def _success(call: DriverCall, result: Any) -> CallAnswer:
    return CallAnswer(200, result if isinstance(result, Iterator) else encode(call.answer(result)))


def _logged(path: str, answer: CallAnswer) -> CallAnswer:
    """The answer, logged where the environment has DEBUG=1; without requests, which may contain secrets."""
    if os.environ.get("DEBUG", "0") not in ("", "0"):
        log(f"{path} is answered with {answer.status}")
    return answer


def failure(driver: Driver, path: str, error: Exception) -> CallAnswer:
    """The answer to a call that raised; what the driver did not expect is logged with its trace."""
    if isinstance(error, CallFailed):
        log(f"{path}: {error}")
        return CallAnswer(error.status, encode(driver.failure(str(error))))
    log("".join(traceback.format_exception(error)).rstrip())
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    name = f" {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return CallAnswer(500, encode(driver.failure(f"{type(error).__name__}{name}: {text}")))
