"""References of plugins: ``name``, ``name:tag``, ``name@digest``, ``host:port/name``, and all combinations.

Source: the grammar of the distribution project's references, in the normalised form that Docker uses (docker.io and
library are understood, the tag is latest).
"""

import re

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.escapes import quote, single_line
from moorage.oci.digest import check_digest, hex_digits

__all__ = ("DEFAULT_HOST", "DEFAULT_TAG", "Reference", "check_target", "local_name", "parse_reference")

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"

_LIBRARY = "library"
_MAX_NAME = 255
_HOST_PART = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ID = re.compile(r"[0-9a-f]{64}")


class Reference(Struct, frozen=True):
    """A plugin in a registry: the registry's host, the repository there, and a tag or digest.

    ``host`` may have a port; ``path`` is the repository; ``tag`` and ``digest`` (sha256:...) may both be None.
    """

    host: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository in full: ``docker.io/library/x``."""
        return f"{self.host}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """Registry and repository as Docker prints them: ``x``, ``vieux/sshfs``, ``localhost:5000/a/b``.

        Where that would be read as something else (``docker.io/a.b/c``, which Docker prints as ``a.b/c``), in full.
        """
        short = self.path.removeprefix(f"{_LIBRARY}/") if self.path.count("/") == 1 else self.path
        is_understood = _split_host(short) == (self.host, self.path) and not _ID.fullmatch(short)
        return short if is_understood else self.name

    @property
    def familiar(self) -> str:
        """The whole as Docker prints it, with the tag and digest that it has."""
        return self.familiar_name + self._suffix()

    @property
    def local_name(self) -> str:
        """The name of a plugin from here on this host: familiar, always with a tag, never with a digest."""
        return f"{self.familiar_name}:{self.tag or DEFAULT_TAG}"

    def with_default_tag(self) -> "Reference":
        """The same, with the tag latest if it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def __str__(self) -> str:
        """The whole in full, as it is stored and sent."""
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """Read a reference; host and ``library`` are filled in, a tag is not (see ``with_default_tag``).

    Raises:
        errors.Invalid: it is not a reference, with the part that is wrong.
    """
    rest, at, digest = text.partition("@")
    if at:
        _check_digest(text, digest)
    rest, tag = _split_tag(text, rest)
    if not rest:
        raise _invalid(text, "it has no name")
    if _ID.fullmatch(rest):
        raise _invalid(text, "a name cannot be 64 hexadecimal digits, they would be taken for an id")
    host, path = _split_host(rest)
    if not _HOST.fullmatch(host):
        raise _invalid(text, f"{quote(host, always=True)} is not the name of a registry")
    if not _PATH.fullmatch(path):
        is_case = _PATH.fullmatch(path.lower()) is not None
        raise _invalid(text, "repository name must be lowercase" if is_case else "it has characters that no name has")
    if len(host) + 1 + len(path) > _MAX_NAME:
        raise _invalid(text, f"the name is longer than {_MAX_NAME} characters")
    return Reference(host, path, tag, digest or None)


def local_name(text: str) -> str:
    """The name of a plugin on this host, as a user gave it, with the default tag.

    Raises:
        errors.Invalid: it is not a name, or has a digest.
    """
    reference = parse_reference(text)
    if reference.digest is not None:
        raise errors.Invalid(f"cannot use digest in plugin tag: {quote(text)}")
    return reference.local_name


def check_target(target: str) -> str:
    """The tag or digest, if it is one.

    Raises:
        errors.Invalid: it is neither.
    """
    if ":" in target:
        return check_digest(target)
    if not _TAG.fullmatch(target):
        raise errors.Invalid(f"cannot use {single_line(target)!r} as a tag")
    return target


def _split_tag(text: str, rest: str) -> tuple[str, str | None]:
    """A colon after the last slash starts a tag; one before it belongs to a port."""
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        return rest, None
    if not _TAG.fullmatch(tag):
        raise _invalid(text, f"{quote(tag, always=True)} is not a tag")
    return head, tag


def _split_host(rest: str) -> tuple[str, str]:
    """The part before the first slash is a host if it has a dot or a colon or is localhost, as Docker decides it."""
    first, slash, path = rest.partition("/")
    is_host = bool(slash) and (first == "localhost" or any(each in first for each in ".:"))
    host, path = (first, path) if is_host else (DEFAULT_HOST, rest)
    if host == f"index.{DEFAULT_HOST}":
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and "/" not in path:
        path = f"{_LIBRARY}/{path}"
    return host, path


def _check_digest(text: str, digest: str) -> None:
    algorithm, _, digits = digest.partition(":")
    length = hex_digits(algorithm)
    if length is None:
        raise _invalid(text, "its digest must be sha256, sha384 or sha512")
    if not re.fullmatch(rf"[0-9a-f]{{{length}}}", digits):
        raise _invalid(text, f"a {algorithm} digest has {length} hexadecimal digits")


def _invalid(text: str, cause: str) -> errors.Invalid:
    return errors.Invalid(f"failed to parse reference {quote(text)}: invalid reference format: {cause}")
