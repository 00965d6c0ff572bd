"""Challenges: how a server says in ``WWW-Authenticate`` in which ways it wants a request authorized.

Source: RFC 9110 section 11.
"""

import re
from collections.abc import Iterable, Mapping

from msgspec import Struct

__all__ = ("Challenge", "parse_challenges")

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[ \t,]*({_TOKEN})(?:[ \t]+|(?=,)|$)")
_PARAMETER = re.compile(rf'[ \t,]*({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))[ \t]*(?=,|$)', re.DOTALL)
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")


class Challenge(Struct, frozen=True):
    """One way in which a server wants to be answered: the scheme in small letters, parameters by names in them."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` headers, in order; what has no form of a challenge is passed over."""
    found: list[Challenge] = []
    for header in headers:
        at = 0
        while scheme := _SCHEME.match(header, at):
            parameters: dict[str, str] = {}
            at = scheme.end()
            while parameter := _PARAMETER.match(header, at):
                name, quoted, plain = parameter.groups()
                value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
                parameters.setdefault(name.lower(), value)
                at = parameter.end()
            if not parameters and (blob := _TOKEN68.match(header, at)) and "=" in blob[0]:
                at = blob.end()
            found.append(Challenge(scheme[1].lower(), parameters))
    return found
