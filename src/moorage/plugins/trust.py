"""Which keys must have signed a package, by repository: the section ``trusted_keys`` of a host's policy. Pure.

Keys are texts here, PEM or the path of a file; ``packages.signatures`` reads them.
"""

import re
from collections.abc import Sequence

from msgspec import Struct

from moorage import errors
from moorage._lib.escapes import quote
from moorage.oci.reference import DEFAULT_HOST, Reference, parse_reference
from moorage.plugins._reader import Fields, JsonObject, Notes

__all__ = ("TrustRule", "TrustedKeys", "parse_trusted_keys", "repository_of")

_ANY = "*"
_FIELDS = ("keys", "signed_as", "unsigned")
_GLOB = re.compile(r"[a-z0-9._/*:\[\]-]+")
_MOST_STARS = 4  # a pattern with many of them would be slow to match


class TrustRule(Struct, frozen=True):
    """What is required of packages from the repositories that match a pattern."""

    pattern: str
    """Registry and repository in full; ``*`` stands for any characters, slashes included."""
    keys: tuple[str, ...] = ()
    """PEM texts, or absolute paths of files with one. One signature by one of them is enough; none: all are refused."""
    signed_as: tuple[str, ...] = ()
    """Patterns of repositories that a signature may name besides the one that is read: the originals of a mirror."""
    is_exempt: bool = False
    """Whether packages need no signature here, although a less specific pattern requires one."""

    def matches(self, repository: str) -> bool:
        """Whether the rule is for a repository, given in full."""
        return _matches(self.pattern, repository)

    def may_name(self, repository: str) -> bool:
        """Whether ``signed_as`` has a repository, given in full."""
        return any(_matches(pattern, repository) for pattern in self.signed_as)


class TrustedKeys(Struct, frozen=True):
    """The rules of a host. A repository without a rule needs no signature.

    ``rules`` are in the order of the policy file.
    """

    rules: tuple[TrustRule, ...] = ()

    def find(self, reference: Reference) -> TrustRule | None:
        """The rule for a repository: of those that match, the one whose pattern has the most characters."""
        name = repository_of(reference)
        found = [rule for rule in self.rules if rule.matches(name)]
        return max(found, key=lambda rule: (_ANY not in rule.pattern, len(rule.pattern), rule.pattern), default=None)


def repository_of(reference: Reference) -> str:
    """Registry and repository, as patterns are compared with it: hosts have no letter case and may name port 443."""
    return f"{reference.host.lower().removesuffix(':443')}/{reference.path}"


def parse_trusted_keys(policy: object) -> TrustedKeys:
    """The section of a policy that was decoded as JSON.

    Raises: Invalid for anything that is not understood: a rule that matches nothing by mistake would let all pass.
    """
    fields = policy if isinstance(policy, JsonObject) else JsonObject()
    sections = [value for key, value in fields.items() if key.casefold() == "trusted_keys"]
    if not sections:
        return TrustedKeys()
    notes = Notes("the policy")
    section = sections[0]
    if len(sections) > 1 or "trusted_keys" in map(str.casefold, fields.repeated):
        notes.wrong("trusted_keys", "given more than once")
    elif not isinstance(section, JsonObject):
        notes.wrong("trusted_keys", "must be an object: a pattern of repositories, and a list of public keys")
    else:
        for pattern in section.repeated:
            notes.wrong(f"trusted_keys.{quote(pattern)}", "given more than once")
        rules = [_read_rule(pattern, value, notes) for pattern, value in section.items()]
        _refuse_equal(rules, notes)
        _finish(notes)
        return TrustedKeys(tuple(rules))
    _finish(notes)
    return TrustedKeys()


def _finish(notes: Notes) -> None:
    """Raises: Invalid for errors, and for warnings too."""
    for warning in notes.finish():
        raise errors.Invalid(f"cannot read the policy: {warning}")


def _refuse_equal(rules: Sequence[TrustRule], notes: Notes) -> None:
    patterns = [rule.pattern for rule in rules]
    for pattern in {each for each in patterns if patterns.count(each) > 1 and each}:
        notes.wrong("trusted_keys", f"two patterns mean {quote(pattern)}")


def _read_rule(pattern: str, value: object, notes: Notes) -> TrustRule:
    path = f"trusted_keys.{quote(pattern)}"
    full = _read_pattern(pattern, path, notes)
    if isinstance(value, list):
        return TrustRule(full, _read_keys(Fields({"keys": value}, path, _FIELDS, notes)))
    if not isinstance(value, JsonObject):
        notes.wrong(path, "must be a list of public keys, or an object with keys")
        return TrustRule(full)
    for key in value.repeated:
        notes.wrong(path, f"{quote(key)} is given more than once")
    fields = Fields(value, path, _FIELDS, notes)
    keys, is_exempt = _read_keys(fields), fields.flag("unsigned")
    if is_exempt and keys:
        fields.wrong("unsigned", "must not be true beside keys")
    if not is_exempt and not fields.has("keys"):
        fields.wrong("keys", "is missing")
    originals = tuple(_read_pattern(each, f"{path}.signed_as", notes) for each in fields.texts("signed_as"))
    return TrustRule(full, keys, originals, is_exempt)


def _read_keys(fields: Fields) -> tuple[str, ...]:
    keys = fields.texts("keys")
    for key in keys:
        if not key.lstrip().startswith("-----BEGIN ") and not key.startswith("/"):
            fields.wrong("keys", f"{quote(key)} is neither a PEM public key nor an absolute path")
    return keys


def _read_pattern(text: str, path: str, notes: Notes) -> str:
    """A pattern in full. Wrong ones are noted."""
    try:
        return _full_pattern(text)
    except errors.Invalid as error:
        notes.wrong(path, str(error))
        return ""


def _full_pattern(text: str) -> str:
    if text == _ANY:
        return text
    first, slash, rest = text.partition("/")
    if not slash and (first == "localhost" or any(each in first for each in ".:")):
        raise errors.Invalid(f"names a registry and no repository; write {quote(first)}/*")
    if "@" in text or ":" in rest.rpartition("/")[2] or (not slash and ":" in first):
        raise errors.Invalid("must be a repository, without tag or digest")
    if text.endswith("/"):
        text = f"{text}{_ANY}"
    if _ANY not in text:
        return repository_of(parse_reference(text))
    if text.count(_ANY) > _MOST_STARS:
        raise errors.Invalid(f"has more than {_MOST_STARS} times a *")
    return _full_glob(text)


def _full_glob(text: str) -> str:
    first, slash, rest = text.partition("/")
    if not slash:
        full = f"{DEFAULT_HOST}/library/{text}"
    elif first == "localhost" or first == _ANY or any(each in first for each in ".:"):
        host = first.lower().removesuffix(":443")
        full = f"{DEFAULT_HOST if host == f'index.{DEFAULT_HOST}' else host}/{rest}"
    elif _ANY in first:
        raise errors.Invalid("is ambiguous: write the registry, or */ for every registry, before it")
    else:
        full = f"{DEFAULT_HOST}/{text}"
    if not _GLOB.fullmatch(full):
        raise errors.Invalid("has characters that no repository has")
    return full


def _matches(pattern: str, repository: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split(_ANY))), repository) is not None
