"""The HTTP server of the page: which request is answered by what, and who may send it."""

import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, unquote

import anyio
from aiohttp import web
from anyio.abc import TaskGroup

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage.api.http.errors import log_failure, status_of
from moorage.api.http.listener import ListenerLimits, serve_http
from moorage.api.schema.consumers import VolumeList
from moorage.api.schema.output import LogLine
from moorage.api.schema.system import DiskUsageReport
from moorage.client import MoorageClient
from moorage.timeouts import PageTimeouts
from moorage.ui.access import HEADERS, Access
from moorage.ui.files import find_file
from moorage.ui.live import PageStates, Parts, changes, parts_of
from moorage.ui.markup import Child, el
from moorage.ui.operations import ACTIONS, PageOperations
from moorage.ui.pages.events import event_page
from moorage.ui.pages.layout import document, message_page, page
from moorage.ui.pages.login import login_page
from moorage.ui.pages.plugin_list import plugin_list
from moorage.ui.pages.plugin_page import log_line, plugin_page
from moorage.ui.pages.storage import disk_page, volume_page
from moorage.ui.pages.view import View, plugin_path
from moorage.ui.streams import StreamReader
from moorage.ui.watcher import EngineWatcher

__all__ = ("serve_page",)

log = logging.getLogger(__name__)

_CONNECTIONS = 128
_STREAMS = 32
_LOG_STREAMS = 16
_BEAT = 10.0  # seconds between two signs of life on a stream, by which a client that is gone is noticed
_LEAST_PAUSE = 0.2  # seconds between two changes of an open page
_FORM_BYTES = 256 * 1024
_FORM_FIELDS = 500
_FIRST_LINES = 200
_FILTERED_LINES = 5000  # that are searched for those that fit a filter
_COMPRESSED = 1024

_SIGN_OF_LIFE = b":\n\n"
_STREAM = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}

Pages = Mapping[str, Callable[[View], Awaitable[tuple[Child, ...]]]]


@asynccontextmanager
async def serve_page(
    listener: socket.socket, watcher: EngineWatcher, access: Access, timeouts: PageTimeouts
) -> AsyncIterator[None]:
    """Answer requests until the block ends. The listening socket stays the caller's."""
    limits = ListenerLimits(_CONNECTIONS)
    async with background_tasks() as tasks:
        server = _Server(watcher, access, timeouts, tasks)
        async with serve_http(listener, server.answer, limits, HEADERS, last_answers=timeouts.ui_shutdown):
            yield


class _Server:
    def __init__(self, watcher: EngineWatcher, access: Access, timeouts: PageTimeouts, tasks: TaskGroup) -> None:
        self._watcher = watcher
        self._timeouts = timeouts
        self._access = access
        self._operations = PageOperations(watcher.host, tasks, self._note_operation)
        self._states = PageStates()
        self._log_streams = StreamReader(watcher.host, _LOG_STREAMS)
        self._open_streams = 0
        self._pages: Pages = {
            "/": self._list,
            "/events": self._events,
            "/volumes": self._volumes,
            "/disk": self._disk,
        }

    def _note_operation(self) -> None:
        self._watcher.touch()
        self._watcher.refresh()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; a failure is a page that says what cannot be done."""
        try:
            self._access.check_host(request)
            return await self._route(request)
        except errors.MoorageError as error:
            log.info("%s %s: %s", request.method, request.path, error)
            return _html(message_page(_TITLES.get(status_of(error), "It failed"), str(error)), status_of(error))
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - reported to the person, and logged
            text = log_failure(error, f"{request.method} {request.path}")
            return _html(message_page("It failed", text), 500)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/") or "/"
        if request.method not in ("GET", "HEAD", "POST"):
            raise errors.Unsupported(f"cannot {request.method} anything here")
        is_post = request.method == "POST"
        if path.startswith("/static/") and not is_post:
            return find_file(request, path.removeprefix("/static/"))
        if is_post:
            self._access.check_origin(request)
        if path == "/login":
            return await self._log_in(request) if is_post else _html(login_page())
        if not self._access.is_known(request):
            return self._refuse(request)
        if is_post:
            return await self._post(request, path)
        if path == "/session":
            return web.Response(status=204)
        if path.startswith("/plugins/") and path.endswith("/logs"):
            return await self._stream_log(request, _middle(path, "/logs"))
        return await self._page(request, path)

    # who may see it

    async def _log_in(self, request: web.BaseRequest) -> web.Response:
        form = await _read_form(request, self._timeouts)
        if not self._access.is_token(form.get("token", "").strip()):
            log.warning("refused a wrong token")
            return _html(login_page("This is not the token."), 403)
        answer = _see("/")
        self._access.log_in(answer)
        return answer

    def _refuse(self, request: web.BaseRequest) -> web.Response:
        """A person gets the form for the token; a script and a click of a page that is too old get an error."""
        is_page = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
        if is_page:
            return _see("/login")
        return _html(message_page("Sign in", "The token is missing; sign in first."), 401)

    # what changes something

    async def _post(self, request: web.BaseRequest, path: str) -> web.Response:
        if path == "/logout":
            answer = _see("/login")
            self._access.log_out(answer)
            return answer
        name, _, action = path.removeprefix("/plugins/").rpartition("/")
        if not path.startswith("/plugins/") or action not in ACTIONS:
            raise errors.NotFound("page not found")
        plugin = await self._watcher.find(unquote(name))
        over = self._operations.start(plugin, action, await _read_form(request, self._timeouts))
        self._watcher.touch()
        with anyio.move_on_after(self._timeouts.ui_result):
            await over.wait()
        return _see(plugin_path(plugin))

    # pages

    def _view(self, request: web.BaseRequest, *, is_live: bool = False) -> View:
        watcher = self._watcher
        return View(watcher.state, watcher.history, watcher.timeline, self._operations, dict(request.query), is_live)

    async def _page(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if "text/event-stream" in request.headers.get("Accept", ""):
            return await self._stream_page(request, path)
        body = await self._build(path, self._view(request))
        key = self._states.add(parts_of(el("div", {}, body)))
        title = unquote(path.rpartition("/")[2]) or "plugins"
        return _html(document(title, *body, key=key))

    async def _build(self, path: str, view: View) -> tuple[Child, ...]:
        """The body of a page. Raises: NotFound, and what the engine reports."""
        if path in self._pages:
            return await self._pages[path](view)
        if path.startswith("/plugins/"):
            plugin = await self._watcher.find(unquote(path.removeprefix("/plugins/")))
            lines: list[LogLine] = []
            if not view.is_live and not view.state.problem:
                lines = await self._last_lines(plugin.id, view.query)
            return plugin_page(view, plugin, lines)
        raise errors.NotFound("page not found")

    async def _list(self, view: View) -> tuple[Child, ...]:
        return plugin_list(view)

    async def _events(self, view: View) -> tuple[Child, ...]:
        return event_page(view)

    async def _volumes(self, view: View) -> tuple[Child, ...]:
        if view.is_live:
            return page("Volumes", view.state)
        driver = view.query.get("driver", "")
        return volume_page(view, await self._watcher.query(lambda client: _volumes(client, driver)))

    async def _disk(self, view: View) -> tuple[Child, ...]:
        if view.is_live:
            return page("Disk", view.state)
        return disk_page(view, await self._watcher.query(_disk_usage))

    async def _last_lines(self, id: str, query: Mapping[str, str]) -> list[LogLine]:
        fits = _log_filter(query)
        tail = _FILTERED_LINES if _is_filtered(query) else _FIRST_LINES
        try:
            lines = await self._watcher.query(
                lambda client: [each for each in client.logs(id, tail=tail) if fits(each)]
            )
        except errors.MoorageError as error:
            log.info("cannot show the output of plugin %s: %s", id, error)
            return []
        return lines[-_FIRST_LINES:]

    # streams

    async def _stream_page(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """What changes on an open page, until its client is gone."""
        if self._open_streams >= _STREAMS:
            raise errors.Unavailable(f"cannot follow: {_STREAMS} pages are open")
        before = self._states.take(request.query.get("key", ""))
        await self._build(path, self._view(request, is_live=True))  # what cannot be shown is refused as an error
        self._open_streams += 1
        response = web.StreamResponse(headers=_STREAM)
        try:
            await response.prepare(request)
            with self._watcher.viewing():
                await self._send_changes(request, path, response, before)
        except errors.NotFound as error:
            await response.write(_event(f"{error}; it was removed", "gone"))
        except ConnectionError:
            pass  # the page was closed
        finally:
            self._open_streams -= 1
        return response

    async def _send_changes(
        self, request: web.BaseRequest, path: str, response: web.StreamResponse, before: Parts | None
    ) -> None:
        """Raises: ConnectionError when the client is gone, NotFound when what the page shows is."""
        while True:
            revision = self._watcher.revision
            after = parts_of(el("div", {}, await self._build(path, self._view(request, is_live=True))))
            if message := changes(before, after):
                await response.write(f"data: {message}\n\n".encode())
            before = after
            with anyio.move_on_after(_BEAT) as beat:
                await self._watcher.wait_change(revision)
                await anyio.sleep(_LEAST_PAUSE)
            if beat.cancelled_caught:
                await response.write(_SIGN_OF_LIFE)

    async def _stream_log(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """The output of a plugin as it comes, as far as it fits the filter, until the client is gone."""
        plugin = await self._watcher.find(unquote(name))
        fits = _log_filter(request.query)
        tail = _FILTERED_LINES if _is_filtered(request.query) else _FIRST_LINES

        def read(client: MoorageClient) -> Iterator[tuple[str, str, str]]:
            return (log_line(each) for each in client.logs(plugin.id, tail=tail, follow=True) if fits(each))

        async with self._log_streams.follow(read, _FILTERED_LINES) as followed:
            response = web.StreamResponse(headers=_STREAM)
            try:
                await response.prepare(request)
                await response.write(_event("", "start"))
                async for batch in followed.batches(_BEAT):
                    lines = {"lines": batch.items, "dropped": batch.dropped}
                    await response.write(_event(lines) if batch.items else _SIGN_OF_LIFE)
            except errors.MoorageError as error:
                await response.write(_event(str(error), "problem"))
            except ConnectionError:
                pass  # the page was closed
        return response


_TITLES = {400: "That is wrong", 401: "Sign in", 403: "Refused", 404: "Not found", 409: "Not now", 503: "Not available"}


def _html(text: str, status: int = 200) -> web.Response:
    answer = web.Response(
        text=text, status=status, content_type="text/html", charset="utf-8", headers={"Cache-Control": "no-store"}
    )
    if len(text) > _COMPRESSED:
        answer.enable_compression()
    return answer


def _see(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path, "Cache-Control": "no-store"})


async def _read_form(request: web.BaseRequest, timeouts: PageTimeouts) -> dict[str, str]:
    """The fields of a form. Raises: Invalid."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise errors.Invalid("cannot read the form: it has another content type than forms have")
    raw = b""
    try:
        with anyio.fail_after(timeouts.request_body):
            async for chunk in request.content.iter_any():
                raw += chunk
                if len(raw) > _FORM_BYTES:
                    raise errors.Invalid(f"cannot read the form: it is longer than {_FORM_BYTES} bytes")
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=_FORM_FIELDS))
    except TimeoutError as error:
        raise errors.Invalid(f"cannot read the form: it did not come within {timeouts.request_body:g} s") from error
    except ValueError as error:
        raise errors.Invalid("cannot read the form: it is not encoded as forms are") from error


def _event(data: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _middle(path: str, end: str) -> str:
    return path.removeprefix("/plugins/").removesuffix(end)


def _is_filtered(query: Mapping[str, str]) -> bool:
    return bool(query.get("text") or query.get("stream"))


def _log_filter(query: Mapping[str, str]) -> Callable[[LogLine], bool]:
    text, stream = query.get("text", "").lower(), query.get("stream", "")

    def fits(line: LogLine) -> bool:
        return (not stream or line.stream == stream) and (not text or text in line.text.lower())

    return fits


def _volumes(client: MoorageClient, driver: str) -> VolumeList:
    return client.volumes(driver)


def _disk_usage(client: MoorageClient) -> DiskUsageReport:
    return client.disk_usage()
