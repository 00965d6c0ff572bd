"""The files of the page: style, script and icon, read once."""

import hashlib
from functools import cache
from importlib.resources import files

from aiohttp import web

from moorage import errors

__all__ = ("find_file",)

_TYPES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


@cache
def _read(name: str) -> tuple[bytes, str]:
    body = files("moorage.ui").joinpath("static", name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def find_file(request: web.BaseRequest, name: str) -> web.Response:
    """One of the files, or that the browser has it already.

    Raises:
        errors.NotFound: there is no such file
    """
    if name not in _TYPES:
        raise errors.NotFound("page not found")
    body, tag = _read(name)
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    answer = web.Response(body=body, content_type=_TYPES[name], charset="utf-8", headers=headers)
    answer.enable_compression()
    return answer
