"""Credential helpers: ``docker-credential-NAME get`` prints the credentials for a server.

Source: the protocol of docker-credential-helpers.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import anyio
import msgspec

from moorage import errors
from moorage.distribution._status import clean
from moorage.distribution.auth import Credentials
from moorage.timeouts import Timeouts

__all__ = ("ask_helper", "read_reply")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NOTHING = ("credentials not found", "no credentials server url", "no credentials username")
_IDENTITY = "<token>"  # the name under which helpers store identity tokens


async def ask_helper(name: str, server: str, timeouts: Timeouts, where: str) -> Credentials | None:
    """What the helper has for a server, which it reads from its standard input; None where it has nothing.

    ``where`` is the file that names the helper. Raises: NotFound for one that is not installed; Invalid for what cannot
    be a helper; Unavailable where it takes too long; MoorageError with its own words where it fails.
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
        words = (done.stdout + b" " + done.stderr).decode(errors="replace")
        if any(each in words.lower() for each in _NOTHING):
            return None
        said = clean(words) or "nothing"
        raise errors.MoorageError(
            f"cannot get credentials for {server}: {program} exits with {done.returncode} and says: {said}"
        )
    return read_reply(done.stdout, program, server)


@contextmanager
def _input(text: str) -> Iterator[BinaryIO]:
    """A file in memory, at its beginning: unlike a pipe it may be left unread by the helper."""
    with open(os.memfd_create("server"), "r+b") as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def read_reply(output: bytes, program: str, server: str) -> Credentials:
    """The credentials that a helper prints. Raises: MoorageError for something else."""
    try:
        reply = msgspec.json.decode(output, type=dict[str, object])
        username, secret = reply.get("Username", ""), reply["Secret"]
        if not isinstance(username, str) or not isinstance(secret, str):
            raise ValueError("no texts")
    except (ValueError, KeyError, RecursionError) as error:
        raise errors.MoorageError(f"cannot get credentials for {server}: {program} prints no credentials") from error
    return Credentials(identity_token=secret) if username == _IDENTITY else Credentials(username, secret)
