"""The credentials that ``docker login`` stores: ``DOCKER_AUTH_CONFIG``, ``config.json`` and its credential helpers.

Source: docker/cli ``cli/config`` (configfile, credentials, the environment) and the protocol of
docker-credential-helpers. On purpose more: an entry of ``auths`` may be for a part of a registry (``HOST/PATH``), as
other clients have it; and a helper that fails leaves ``auths``, because credentials are only needed where a registry
wants them.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from moorage import errors
from moorage._lib.regular_file import read_regular
from moorage._lib.threads import run_blocking
from moorage.distribution.auth import ANONYMOUS, Credentials, read_userpass
from moorage.distribution.credential_helper import ask_helper
from moorage.distribution.origin import is_same_host
from moorage.plugins.reference import DEFAULT_HOST
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("DOCKER_HUB_KEY", "DockerConfig", "docker_config_path")

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""The name of docker.io in ``config.json`` and for helpers."""

ENVIRONMENT_KEY = "DOCKER_AUTH_CONFIG"
"""A variable with a document like ``config.json``, of which ``auths`` counts, before everything else."""

_FILE_LIMIT = 1 << 20  # bytes
_VERSION_PATHS = ("", "v1", "v2")  # of old keys, which are URLs of registries' APIs


def docker_config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where Docker's own CLI has its ``config.json``: in ``DOCKER_CONFIG``, else in ``~/.docker``.

    A user without ``HOME`` who is in no list of users has none: the path then leads to no file.
    """
    folder = environ.get("DOCKER_CONFIG") or Path("/", environ.get("HOME") or os.path.expanduser("~"), ".docker")
    return Path(folder, "config.json")


class DockerConfig:
    """The credentials for a registry, read again each time; an instance is a ``CredentialsFor``."""

    def __init__(self, path: Path, timeouts: Timeouts = DEFAULT, *, environ: Mapping[str, str] | None = None) -> None:
        """``environ`` is where ``DOCKER_AUTH_CONFIG`` is looked for; None: nowhere."""
        self._path = path
        self._timeouts = timeouts
        self._environ = environ or {}

    async def __call__(self, host: str, path: str = "") -> Credentials:
        """What is stored for a repository of this host, ``ANONYMOUS`` where nothing is. Raises nothing of ``errors``.

        In this order: ``DOCKER_AUTH_CONFIG``; an entry of ``auths`` for a part of the registry (the longest ``path``
        counts); the helper of this host (``credHelpers``) or of all (``credsStore``); ``auths`` for the host. What
        cannot be read or run is passed over; where nothing is found then, ``absence`` says what went wrong.
        """
        search = _Search(host, path, self._timeouts)
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
        return found or (Credentials(absence="; ".join(search.problems)) if search.problems else ANONYMOUS)

    def _read(self) -> bytes:
        """The file, empty where there is none (blocking). Raises: MoorageError."""
        try:
            data = read_regular(self._path, _FILE_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise errors.MoorageError(f"cannot read {self._path}: {error.strerror}") from error
        if len(data) > _FILE_LIMIT:
            raise errors.Invalid(f"cannot read {self._path}: it is larger than {_FILE_LIMIT} bytes")
        return data


class _Search:
    """For the credentials of one repository, in one document after another; what goes wrong is noted."""

    def __init__(self, host: str, path: str, timeouts: Timeouts) -> None:
        self._host = host
        self._parts = [each for each in path.split("/") if each]
        self._timeouts = timeouts
        self._document: dict[str, object] = {}
        self._where = ""
        self.problems: list[str] = []

    def read(self, data: bytes, where: str) -> None:
        """Go on with this document, which is called ``where`` in errors."""
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
        """What ``auths`` has: for the longest part of the path, and with ``of_host`` also for the host as a whole."""
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
        """What the helper says that is configured for this host."""
        helpers = self._object("credHelpers")
        names = [name for host, name in helpers.items() if host == self._server or is_same_host(host, self._host)]
        name = next((each for each in [*names, self._document.get("credsStore")] if each), None)
        if name is None:
            return None
        try:
            return await ask_helper(str(name), self._server, self._timeouts, self._where)
        except errors.MoorageError as error:
            self._note(str(error))
            return None

    @property
    def _server(self) -> str:
        return DOCKER_HUB_KEY if self._host == DEFAULT_HOST else self._host

    def _rank(self, key: str) -> int | None:
        """How many parts of the path a key of ``auths`` names, 0 for the whole host; None where it is for others."""
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
            return read_userpass(entry, f"{self._where}, auths of {key}")
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
