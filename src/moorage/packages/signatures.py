"""Verifies that a package is signed by a key that this host trusts, with signatures from where the package is.

By key only, and offline except for the registry of the package: no transparency log, no certificate authority.
Everything that is read is bounded, and a document that is damaged or of another signer hides no other one.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import TypeVar

import anyio

from moorage import errors
from moorage._lib.escapes import single_line
from moorage._lib.threads import run_blocking
from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import check_digest, is_digest_of
from moorage.oci.index import parse_index
from moorage.oci.manifest import RawManifest, parse_layers
from moorage.oci.media_types import COSIGN_SIMPLE_SIGNING, SIGNATURE_ARTIFACTS, SIGSTORE_BUNDLE
from moorage.packages.signature_documents import (
    SIGNATURE_NOTE,
    Claim,
    PublicKey,
    Signature,
    find_signer,
    read_bundle,
    read_claims,
    read_public_key,
    read_simple,
)
from moorage.packages.source import Source
from moorage.plugins import Reference, TrustedKeys, TrustRule, parse_reference, repository_of
from moorage.timeouts import DEFAULT, PackageTimeouts

__all__ = ("SignatureVerifier", "signature_tag")

log = logging.getLogger(__name__)

_MAX_SIGNATURES = 256  # that are verified for one package; signing it daily adds one each time
_MAX_ARTIFACTS = 64  # manifests of signatures for one digest
_ARTIFACT_LIMIT = 1 << 20  # bytes of a manifest of signatures
_SIMPLE_LIMIT = 64 * 1024
_BUNDLE_LIMIT = 512 * 1024
_SHOWN = 3  # reasons in an error
_UNNAMED = ("", "_")  # in-toto's underscore is a subject without a name

Result = TypeVar("Result")


class SignatureVerifier:
    """Decides for one host whether packages are signed as its policy requires."""

    def __init__(self, trusted: TrustedKeys, timeouts: PackageTimeouts = DEFAULT) -> None:
        """Reads the key files of ``trusted`` (blocking).

        Raises:
            errors.NotFound: the file of a key is missing
            errors.Invalid: a key cannot be used
        """
        self._trusted = trusted
        self._timeouts = timeouts
        self._keys = {text: read_public_key(text) for rule in trusted.rules for text in rule.keys}

    def refuse_unsigned(self, name: str) -> None:
        """Check that plugins of this name need no signature: one that is created on this host cannot have one.

        Raises:
            errors.Denied: the policy requires one
            errors.Invalid: it is not a name
        """
        reference = parse_reference(name)
        if rule := self._rule(reference):
            raise errors.Denied(
                f"cannot create {reference.familiar}: it would not be signed, and {_requirement(rule)}; "
                "give it another name, or push and sign it, and install it from there"
            )

    async def verify(self, source: Source, reference: Reference, digests: Sequence[str]) -> None:
        """Return if a package needs no signature, or has one over any of ``digests`` by a trusted key.

        ``digests`` are those of the index that the reference refers to and of the manifest in it: each of them
        determines every byte of the package.

        Raises:
            errors.Denied: it has none, with the reasons why those that it has are not accepted
            errors.Unavailable: they cannot be read
        """
        rule = self._rule(reference)
        if rule is None:
            return
        search = _Search(
            source, reference, rule, [self._keys[text] for text in rule.keys], tuple(dict.fromkeys(digests))
        )
        try:
            with anyio.fail_after(self._timeouts.signatures):
                is_signed = await search.run()
        except TimeoutError as error:
            raise errors.Unavailable(
                f"cannot verify {reference.familiar}: no signature within {self._timeouts.signatures:g} s"
            ) from error
        if not is_signed:
            raise errors.Denied(f"cannot use {reference.familiar}: {search.explain()}")

    def _rule(self, reference: Reference) -> TrustRule | None:
        rule = self._trusted.find(reference)
        return None if rule is None or rule.is_exempt else rule


def signature_tag(digest: str) -> str:
    """The tag under which cosign stores the signatures of a manifest."""
    return f"{digest.replace(':', '-', 1)}.sig"


def _requirement(rule: TrustRule) -> str:
    return f"this host's policy requires a signature by one of {len(rule.keys)} trusted keys ({rule.pattern})"


class _Search:
    """For one signature that counts, among all that one package has."""

    def __init__(
        self,
        source: Source,
        reference: Reference,
        rule: TrustRule,
        keys: Sequence[PublicKey],
        digests: Sequence[str],
    ) -> None:
        self._source = source
        self._reference = reference
        self._rule = rule
        self._keys = keys
        self._digests = digests
        self._problems: dict[str, None] = {}
        self._seen = 0
        self._read: dict[str, bytes] = {}
        """The last document by its digest: several signatures over one payload name it once each."""

    async def run(self) -> bool:
        """Whether there is one. Raises: errors.Unavailable if the source cannot be read."""
        for digest in self._digests:
            async with aclosing(self._artifacts(digest)) as artifacts:
                async for artifact in artifacts:
                    if await self._has_signature(artifact):
                        return True
                    if self._seen >= _MAX_SIGNATURES:
                        self._problem(f"it has over {_MAX_SIGNATURES} signatures, and no more are checked")
                        return False
        return False

    def explain(self) -> str:
        """Why there is none."""
        requirement = _requirement(self._rule)
        if not self._seen and not self._problems:
            return f"it is not signed, and {requirement}; its digest is {self._digests[-1]}"
        reasons = [*self._problems][:_SHOWN]
        if more := len(self._problems) - len(reasons):
            reasons.append(f"and {more} more reasons")
        return f"{requirement}, and none of its signatures counts: {'; '.join(reasons)}"

    def _problem(self, text: str) -> None:
        self._problems.setdefault(text)

    # finding signatures

    async def _artifacts(self, digest: str) -> AsyncGenerator[RawManifest, None]:
        """The manifests with signatures of a digest: cosign's tag, then what refers to it, then the tag for that."""
        if (manifest := await self._manifest(signature_tag(digest))) is not None:
            yield manifest
        for entry in await self._referring(digest):
            if (manifest := await self._manifest(entry)) is not None:
                yield manifest

    async def _referring(self, digest: str) -> Sequence[str]:
        found: dict[str, None] = {}
        has_list = False
        for kind in SIGNATURE_ARTIFACTS:
            raw = await self._attempt(self._source.read_referrers(digest, kind), "the list of its referrers")
            has_list = has_list or raw is not None
            found.update(dict.fromkeys(self._entries(raw) if raw is not None else ()))
        if not has_list:
            listed = await self._manifest(digest.replace(":", "-", 1))
            found.update(dict.fromkeys(self._entries(listed.data) if listed is not None else ()))
        if len(found) > _MAX_ARTIFACTS:
            self._problem(f"over {_MAX_ARTIFACTS} signatures refer to it, and no more are checked")
        return [*found][:_MAX_ARTIFACTS]

    def _entries(self, raw: bytes) -> Sequence[str]:
        try:
            entries = parse_index(raw, "the list of its referrers")
            return [check_digest(each.digest) for each in entries if each.artifact_type in SIGNATURE_ARTIFACTS]
        except errors.Invalid:
            self._problem("the list of its referrers cannot be read")
            return ()

    async def _manifest(self, target: str) -> RawManifest | None:
        """What is under a tag or a digest; None where there is nothing, or nothing that can be read."""
        manifest = await self._attempt(self._source.find_manifest(target), target)
        if manifest is not None and len(manifest.data) > _ARTIFACT_LIMIT:
            self._problem(f"{target} has over {_ARTIFACT_LIMIT} bytes")
            return None
        return manifest

    async def _attempt(self, reading: Awaitable[Result], what: str) -> Result | None:
        """What was read; None if it is missing or invalid. Raises: errors.Unavailable."""
        try:
            return await reading
        except errors.NotFound:
            return None
        except errors.Unavailable as error:
            raise errors.Unavailable(f"cannot verify {self._reference.familiar}: {error}") from error
        except errors.MoorageError as error:
            log.info("cannot read %s of %s: %s", what, self._reference.familiar, error)
            self._problem(str(error))
            return None

    # reading signatures

    async def _has_signature(self, manifest: RawManifest) -> bool:
        """Whether one of the layers of a manifest is a valid signature of this package."""
        try:
            layers = parse_layers(manifest.data, manifest.digest)
        except errors.Invalid:
            self._problem(f"{manifest.digest} is not a manifest of signatures")
            return False
        for layer in layers:
            if layer.media_type not in (COSIGN_SIMPLE_SIGNING, SIGSTORE_BUNDLE):
                continue
            if self._seen >= _MAX_SIGNATURES:
                return False
            self._seen += 1
            if await self._counts(layer):
                return True
        return False

    async def _counts(self, layer: Descriptor) -> bool:
        try:
            raw = await self._document(layer)
            if raw is None:
                return False
            if layer.media_type == SIGSTORE_BUNDLE:
                signature = read_bundle(raw)
            else:
                signature = read_simple(raw, layer.annotations.get(SIGNATURE_NOTE, ""))
            if await run_blocking(lambda: find_signer(signature, self._keys)) is None:
                self._problem("it is signed by another key")
                return False
            return self._is_for_this(signature)
        except errors.Invalid as error:
            self._problem(str(error))
            return False

    async def _document(self, layer: Descriptor) -> bytes | None:
        limit = _BUNDLE_LIMIT if layer.media_type == SIGSTORE_BUNDLE else _SIMPLE_LIMIT
        digest = check_digest(layer.digest)
        if not 0 < layer.size_bytes <= limit:
            raise errors.Invalid(f"a signature of {layer.size_bytes} bytes is not read; {limit} are possible")
        if digest not in self._read:
            raw = await self._attempt(self._bytes(digest, layer.size_bytes), digest)
            if raw is None:
                self._problem(f"the signature {digest} is missing")
                return None
            self._read = {digest: raw}
        return self._read[digest]

    async def _bytes(self, digest: str, size_bytes: int) -> bytes:
        data = bytearray()
        async with aclosing(self._source.read_blob(digest, size_bytes)) as pieces:
            async for piece in pieces:
                data += piece
        if not is_digest_of(digest, bytes(data)):
            raise errors.Invalid(f"the signature {digest} has another digest")
        return bytes(data)

    def _is_for_this(self, signature: Signature) -> bool:
        """Whether what a trusted key signed is this package, from this repository. Raises: errors.Invalid."""
        for claim in read_claims(signature):
            if claim.digest not in self._digests:
                self._problem(f"a trusted key signed {single_line(claim.digest)[:100]}, which is another package")
            elif self._is_named(claim):
                return True
            else:
                self._problem(
                    f"a trusted key signed it as {single_line(claim.name)[:100]}, not as {self._reference.familiar}"
                )
        return False

    def _is_named(self, claim: Claim) -> bool:
        """Whether a signature names no repository, this one or one that the rule lists, and no other tag."""
        if claim.name in _UNNAMED:
            return True
        try:
            named = parse_reference(claim.name)
        except errors.Invalid:
            return False
        own, claimed = repository_of(self._reference), repository_of(named)
        if own != claimed:
            return self._rule.may_name(claimed)
        return (
            not (named.tag and self._reference.tag and not self._reference.digest) or named.tag == self._reference.tag
        )
