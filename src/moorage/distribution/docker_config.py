"""The credentials that ``docker login`` keeps: ``config.json`` and the credential helpers it names.

Source: docker/cli ``cli/config`` (configfile, credentials) and the protocol of docker-credential-helpers.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import anyio
import msgspec

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.distribution.auth import ANONYMOUS, Credentials, read_userpass
from moorage.plugins.reference import DEFAULT_HOST
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("DOCKER_HUB_KEY", "DockerConfig", "docker_config_path")

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""The name of docker.io in ``config.json`` and for helpers."""

_FILE_LIMIT = 1 << 20  # bytes
_WORDS_LIMIT = 300  # characters of what a helper says
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NOTHING = ("credentials not found", "no credentials server url", "no credentials username")
_IDENTITY = "<token>"  # the name under which helpers keep identity tokens


def docker_config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where Docker's own CLI has its ``config.json``: in ``DOCKER_CONFIG``, else in ``~/.docker``."""
    folder = environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or Path.home(), ".docker")
    return Path(folder, "config.json")


class DockerConfig:
    """The credentials for a host from a ``config.json``, read again each time; an instance is a ``CredentialsFor``."""

    def __init__(self, path: Path, timeouts: Timeouts = DEFAULT) -> None:
        self._path = path
        self._timeouts = timeouts

    async def __call__(self, host: str) -> Credentials:
        """What is kept for this host, ``ANONYMOUS`` where nothing is; no file is the same as an empty one.

        A helper for this very host (``credHelpers``) goes before that for all (``credsStore``), and both before
        ``auths``, as in Docker. A helper that is not installed, or that says it has nothing, means anonymous.

        Raises: Invalid for a file that cannot be understood; Unavailable for a helper that takes too long;
        MoorageError for a file that cannot be read, and with a helper's own words where it fails.
        """
        document = await run_blocking(self._read)
        key = DOCKER_HUB_KEY if host == DEFAULT_HOST else host
        helpers = self._object(document, "credHelpers")
        helper = helpers.get(host) or helpers.get(key) or document.get("credsStore")
        if helper:
            return await self._ask(str(helper), key)
        auths = self._object(document, "auths")
        for name, entry in sorted(auths.items(), key=lambda item: (item[0] != key, item[0] != host)):
            if name in (key, host) or _host_of(name) == _host_of(key):
                if not isinstance(entry, dict):
                    raise errors.Invalid(f"cannot read {self._path}: auths has no object for {name}")
                return read_userpass(entry, f"{self._path}, auths of {name}")
        return ANONYMOUS

    def _read(self) -> dict[str, object]:
        try:
            with self._path.open("rb") as file:
                data = file.read(_FILE_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise errors.MoorageError(f"cannot read {self._path}: {error.strerror}") from error
        if len(data) > _FILE_LIMIT:
            raise errors.Invalid(f"cannot read {self._path}: it is larger than {_FILE_LIMIT} bytes")
        try:
            document = msgspec.json.decode(data) if data.strip() else {}
        except (ValueError, RecursionError) as error:
            raise errors.Invalid(f"cannot read {self._path}: {error}") from error
        if not isinstance(document, dict):
            raise errors.Invalid(f"cannot read {self._path}: it is not a JSON object")
        return document

    def _object(self, document: dict[str, object], key: str) -> dict[str, object]:
        value = document.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise errors.Invalid(f"cannot read {self._path}: {key} is not an object")
        return value

    async def _ask(self, helper: str, server: str) -> Credentials:
        """What ``docker-credential-HELPER get`` prints for a server that it reads from its standard input."""
        program = f"docker-credential-{helper}"
        if not _HELPER.fullmatch(helper):
            raise errors.Invalid(f"cannot read {self._path}: it names a credential helper that cannot be one")
        try:
            with anyio.fail_after(self._timeouts.credential_helper):
                done = await anyio.run_process([program, "get"], input=server.encode(), check=False)
        except FileNotFoundError:
            return ANONYMOUS
        except TimeoutError as error:  # which is an OSError
            within = self._timeouts.credential_helper
            raise errors.Unavailable(
                f"cannot get credentials for {server}: {program} takes over {within:g} s"
            ) from error
        except OSError as error:
            raise errors.MoorageError(f"cannot run {program}: {error.strerror}") from error
        if done.returncode != 0:
            words = (done.stdout + b" " + done.stderr).decode(errors="replace")
            if any(each in words.lower() for each in _NOTHING):
                return ANONYMOUS
            said = " ".join(words.split())[:_WORDS_LIMIT] or "nothing"
            raise errors.MoorageError(
                f"cannot get credentials for {server}: {program} ends with {done.returncode} and says: {said}"
            )
        return _read_reply(done.stdout, program, server)


def _read_reply(output: bytes, program: str, server: str) -> Credentials:
    try:
        reply = msgspec.json.decode(output, type=dict[str, object])
        username, secret = reply.get("Username", ""), reply["Secret"]
        if not isinstance(username, str) or not isinstance(secret, str):
            raise ValueError("no texts")
    except (ValueError, KeyError, RecursionError) as error:
        raise errors.MoorageError(f"cannot get credentials for {server}: {program} prints no credentials") from error
    return Credentials(identity_token=secret) if username == _IDENTITY else Credentials(username, secret)


def _host_of(key: str) -> str:
    """The host in a key of ``auths``; old ones are URLs."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]
