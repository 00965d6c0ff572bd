"""The credentials that ``docker login`` stores: ``DOCKER_AUTH_CONFIG``, ``config.json`` and its credential helpers.

Source: docker/cli ``cli/config`` (configfile, credentials, the environment) and the protocol of
docker-credential-helpers. On purpose more: an entry of ``auths`` may be for a part of a registry (``HOST/PATH``), as
other clients have it; and a helper that fails leaves ``auths``, because credentials are only needed where a registry
wants them.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import msgspec

from moorage import errors
from moorage._lib.escapes import single_line
from moorage._lib.threads import run_blocking
from moorage.host.files import read_regular, write_atomically
from moorage.oci.reference import DEFAULT_HOST
from moorage.registry.credentials import ANONYMOUS, Credentials, parse_credentials
from moorage.registry.origin import is_same_host
from moorage.timeouts import DEFAULT, RegistryTimeouts

__all__ = (
    "DOCKER_HUB_KEY",
    "DockerConfig",
    "docker_config_path",
    "get_from_helper",
    "read_reply",
    "remove_credentials",
    "store_credentials",
)

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""The key of docker.io in ``config.json`` and for credential helpers."""

ENVIRONMENT_KEY = "DOCKER_AUTH_CONFIG"
"""A variable with a document like ``config.json``; its ``auths`` take precedence over everything else."""

_FILE_LIMIT = 1 << 20  # bytes
_VERSION_PATHS = ("", "v1", "v2")  # of old keys, which are URLs of registries' APIs


def docker_config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The path of the Docker CLI's ``config.json``: in ``DOCKER_CONFIG``, else in ``~/.docker``.

    Without ``HOME`` and without an entry in the user database, the path names no existing file.
    """
    folder = environ.get("DOCKER_CONFIG") or Path("/", environ.get("HOME") or os.path.expanduser("~"), ".docker")
    return Path(folder, "config.json")


class DockerConfig:
    """The credentials for a registry, read again each time; an instance is a ``CredentialsFor``."""

    def __init__(
        self, path: Path, timeouts: RegistryTimeouts = DEFAULT, *, environ: Mapping[str, str] | None = None
    ) -> None:
        """``environ`` is searched for ``DOCKER_AUTH_CONFIG``; None: it is not used."""
        self._path = path
        self._timeouts = timeouts
        self._environ = environ or {}

    async def __call__(self, host: str, path: str = "") -> Credentials:
        """The stored credentials for a repository of this host, or ``ANONYMOUS``. Raises no MoorageError.

        In this order: ``DOCKER_AUTH_CONFIG``; an entry of ``auths`` for a part of the registry (the longest ``path``
        counts); the helper of this host (``credHelpers``) or of all (``credsStore``); ``auths`` for the host. What
        cannot be read or run is skipped; if nothing is found, ``reason_absent`` says what failed.
        """
        search = _CredentialsSearch(host, path, self._timeouts)
        search.read(self._environ.get(ENVIRONMENT_KEY, "").encode(), ENVIRONMENT_KEY)
        if found := search.entry(of_host=True):
            return found
        try:
            data = await run_blocking(self._read)
        except errors.MoorageError as error:
            search.problems.append(str(error))
            data = b""
        search.read(data, str(self._path))
        found = search.entry(of_host=False) or await search.helper() or search.entry(of_host=True)
        return found or (Credentials(reason_absent="; ".join(search.problems)) if search.problems else ANONYMOUS)

    def _read(self) -> bytes:
        """The file, empty if there is none (blocking). Raises: MoorageError."""
        try:
            data = read_regular(self._path, _FILE_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise errors.MoorageError(f"cannot read {self._path}: {error.strerror}") from error
        if len(data) > _FILE_LIMIT:
            raise errors.Invalid(f"cannot read {self._path}: it is larger than {_FILE_LIMIT} bytes")
        return data


class _CredentialsSearch:
    """Searches the credentials of one repository in one document after another; problems are recorded."""

    def __init__(self, host: str, path: str, timeouts: RegistryTimeouts) -> None:
        self._host = host
        self._parts = [each for each in path.split("/") if each]
        self._timeouts = timeouts
        self._document: dict[str, object] = {}
        self._where = ""
        self.problems: list[str] = []

    def read(self, data: bytes, where: str) -> None:
        """Continue with this document; ``where`` is its name in errors."""
        self._document, self._where = {}, where
        try:
            document = msgspec.json.decode(data) if data.strip() else {}
        except (ValueError, RecursionError) as error:
            self._note(f"cannot read {where}: {error}")
            return
        if isinstance(document, dict):
            self._document = document
        else:
            self._note(f"cannot read {where}: it is not a JSON object")

    def entry(self, *, of_host: bool) -> Credentials | None:
        """The entry of ``auths`` for the longest part of the path; with ``of_host`` also for the whole host."""
        ranked: list[tuple[int, bool, str]] = []
        auths = self._object("auths")
        for key in auths:
            rank = self._rank(key)
            if rank is not None and (rank > 0 or of_host):
                ranked.append((rank, key in (self._host, self._server), key))
        for *_, key in sorted(ranked, reverse=True):
            found = self._read_entry(key, auths[key])
            if found is not None and not found.is_anonymous:
                return found
        return None

    async def helper(self) -> Credentials | None:
        """The credentials from the helper that is configured for this host."""
        helpers = self._object("credHelpers")
        names = [name for host, name in helpers.items() if host == self._server or is_same_host(host, self._host)]
        name = next((each for each in [*names, self._document.get("credsStore")] if each), None)
        if name is None:
            return None
        try:
            return await get_from_helper(str(name), self._server, self._timeouts, self._where)
        except errors.MoorageError as error:
            self._note(str(error))
            return None

    @property
    def _server(self) -> str:
        return DOCKER_HUB_KEY if self._host == DEFAULT_HOST else self._host

    def _rank(self, key: str) -> int | None:
        """How many parts of the path a key of ``auths`` names, 0 for the whole host; None for another host."""
        is_url = "://" in key
        host, _, path = key.partition("://")[2].partition("/") if is_url else key.partition("/")
        if not is_same_host(host, self._host):
            return None
        if is_url or path.strip("/") in _VERSION_PATHS:
            return 0
        parts = path.strip("/").split("/")
        return len(parts) if self._parts[: len(parts)] == parts else None

    def _read_entry(self, key: str, entry: object) -> Credentials | None:
        try:
            if not isinstance(entry, dict):
                raise errors.Invalid(f"cannot read {self._where}: auths has no object for {key}")
            return parse_credentials(entry, f"{self._where}, auths of {key}")
        except errors.Invalid as error:
            self._note(str(error))
            return None

    def _object(self, key: str) -> dict[str, object]:
        value = self._document.get(key)
        if isinstance(value, dict):
            return value
        if value is not None:
            self._note(f"cannot read {self._where}: {key} is not an object")
        return {}

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NOTHING = ("credentials not found", "no credentials server url", "no credentials username")
_IDENTITY = "<token>"  # the name under which helpers store identity tokens


async def get_from_helper(name: str, server: str, timeouts: RegistryTimeouts, where: str) -> Credentials | None:
    """The credentials of a helper for a server, which it reads from standard input; None if it has none.

    ``where`` is the file that names the helper. Raises: NotFound for one that is not installed; Invalid for what cannot
    be a helper; Unavailable where it takes too long; MoorageError with its own message where it fails.
    """
    program = f"docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise errors.Invalid(f"cannot read {where}: it names a credential helper that cannot be one")
    try:
        with anyio.fail_after(timeouts.credential_helper), _input(server) as file:
            done = await anyio.run_process([program, "get"], stdin=file, check=False)
    except FileNotFoundError as error:
        raise errors.NotFound(
            f"cannot get credentials for {server}: {program}, which {where} names, is not installed"
        ) from error
    except TimeoutError as error:  # which is an OSError
        within = timeouts.credential_helper
        raise errors.Unavailable(f"cannot get credentials for {server}: {program} takes over {within:g} s") from error
    except OSError as error:
        raise errors.MoorageError(f"cannot run {program}: {error.strerror}") from error
    if done.returncode != 0:
        message = (done.stdout + b" " + done.stderr).decode(errors="replace")
        if any(each in message.lower() for each in _NOTHING):
            return None
        said = single_line(message) or "nothing"
        raise errors.MoorageError(
            f"cannot get credentials for {server}: {program} exits with {done.returncode} and says: {said}"
        )
    return read_reply(done.stdout, program, server)


@contextmanager
def _input(text: str) -> Iterator[BinaryIO]:
    """A file in memory, at its start: unlike a pipe, the helper need not read it."""
    with open(os.memfd_create("server"), "r+b") as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def read_reply(output: bytes, program: str, server: str) -> Credentials:
    """The credentials that a helper prints. Raises: MoorageError for any other output."""
    try:
        reply = msgspec.json.decode(output, type=dict[str, object])
        username, secret = reply.get("Username", ""), reply["Secret"]
        if not isinstance(username, str) or not isinstance(secret, str):
            raise ValueError("no texts")
    except (ValueError, KeyError, RecursionError) as error:
        raise errors.MoorageError(f"cannot get credentials for {server}: {program} prints no credentials") from error
    return Credentials(identity_token=secret) if username == _IDENTITY else Credentials(username, secret)


# ----------------------------------------------------------------------------------------------------------- storing


async def store_credentials(
    path: Path, host: str, credentials: Credentials, timeouts: RegistryTimeouts = DEFAULT
) -> bool:
    """Store the credentials for a registry as ``docker login`` does; whether a credential helper has them.

    Raises:
        errors.Invalid: the file is no JSON object, and is not changed
        errors.MoorageError: the file cannot be written, or the helper fails; its message
    """
    document = await run_blocking(lambda: _read_document(path))
    server = DOCKER_HUB_KEY if host == DEFAULT_HOST else host
    auths = document.setdefault("auths", {})
    if helper := _helper_of(document, host, server):
        name, secret = credentials.username, credentials.password
        if credentials.identity_token:
            name, secret = _IDENTITY, credentials.identity_token
        request = json.dumps({"ServerURL": server, "Username": name, "Secret": secret})
        await _run_helper(helper, "store", request, server, timeouts)
        auths[server] = {}  # docker's mark that a helper has them
    else:
        user = f"{credentials.username}:{'' if credentials.identity_token else credentials.password}"
        auths[server] = {"auth": base64.b64encode(user.encode()).decode()}
        if credentials.identity_token:
            auths[server]["identitytoken"] = credentials.identity_token
    await run_blocking(lambda: _write_document(path, document))
    return helper is not None


async def remove_credentials(path: Path, host: str, timeouts: RegistryTimeouts = DEFAULT) -> bool:
    """Remove the credentials for a registry as ``docker logout`` does; whether there were any.

    Raises:
        errors.Invalid: the file is no JSON object, and is not changed
        errors.MoorageError: the file cannot be written, or the helper fails; its message
    """
    document = await run_blocking(lambda: _read_document(path))
    server = DOCKER_HUB_KEY if host == DEFAULT_HOST else host
    removed = False
    if helper := _helper_of(document, host, server):
        removed = await get_from_helper(helper, server, timeouts, str(path)) is not None
        if removed:
            await _run_helper(helper, "erase", server, server, timeouts)
    auths = document.get("auths", {})
    keys = [key for key in auths if key == server or is_same_host(key.partition("://")[2] or key, host)]
    for key in keys:
        del auths[key]
    if keys:
        await run_blocking(lambda: _write_document(path, document))
    return removed or bool(keys)


def _helper_of(document: Mapping[str, Any], host: str, server: str) -> str | None:
    helpers = document.get("credHelpers")
    named = [name for key, name in helpers.items() if key in (host, server)] if isinstance(helpers, dict) else []
    return next((str(each) for each in [*named, document.get("credsStore")] if each), None)


async def _run_helper(name: str, verb: str, text: str, server: str, timeouts: RegistryTimeouts) -> None:
    program = f"docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise errors.Invalid(f"cannot {verb} credentials for {server}: {program!r} is no credential helper")
    try:
        with anyio.fail_after(timeouts.credential_helper), _input(text) as file:
            done = await anyio.run_process([program, verb], stdin=file, check=False)
    except TimeoutError as error:
        raise errors.Unavailable(f"cannot {verb} credentials for {server}: {program} takes too long") from error
    except OSError as error:
        raise errors.NotFound(f"cannot {verb} credentials for {server}: {program}: {error.strerror}") from error
    if done.returncode != 0:
        message = single_line((done.stdout + b" " + done.stderr).decode(errors="replace")) or "nothing"
        raise errors.MoorageError(f"cannot {verb} credentials for {server}: {program} says: {message}")


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_regular(path, _FILE_LIMIT) or b"{}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise errors.MoorageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"cannot change {path}: it is no JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("auths", {}), dict):
        raise errors.Invalid(f"cannot change {path}: it is not a JSON object with auths")
    return document


def _write_document(path: Path, document: Mapping[str, Any]) -> None:
    """The target of a link is written, as docker does it."""
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(target, json.dumps(document, indent="\t").encode())
    except OSError as error:
        raise errors.MoorageError(f"cannot write {path}: {error.strerror}") from error
