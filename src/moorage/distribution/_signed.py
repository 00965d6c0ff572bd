"""What a signature says once it is known to be genuine: which digest, of which repository. Pure.

Source: cosign's SIGNATURE_SPEC.md (simple signing), the DSSE protocol (envelope, pre-authentication encoding), the
in-toto Statement, and Sigstore's bundle v0.3.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from moorage import errors
from moorage.distribution._keys import PublicKey
from moorage.distribution._status import clean

__all__ = (
    "BUNDLE_TYPE",
    "SIGNATURE_NOTE",
    "SIMPLE_TYPE",
    "Claim",
    "Signature",
    "find_signer",
    "read_bundle",
    "read_claims",
    "read_simple",
)

SIMPLE_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_NOTE = "dev.cosignproject.cosign/signature"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"

_SIMPLE_KIND = "cosign container image signature"
_STATEMENT_TYPE = "application/vnd.in-toto+json"
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_SIGNATURE_LIMIT = 8192  # bytes of one signature; RSA's largest has 2048
_MOST_SIGNATURES = 16  # in one envelope; cosign writes one
_MOST_SUBJECTS = 64

Shape = TypeVar("Shape")


class Signature(Struct, frozen=True):
    """One document that may be signed by a trusted key: nothing in it may be believed before that was checked."""

    payload: bytes
    """What it says."""
    signed: bytes
    """The bytes that were signed."""
    signatures: tuple[bytes, ...]
    is_statement: bool
    """Whether the payload is an in-toto statement; otherwise it is simple signing."""


class Claim(Struct, frozen=True):
    """What the signer says: this digest, of this repository (empty: wherever it is)."""

    digest: str
    name: str


class _Identity(Struct):
    reference: str = field(name="docker-reference", default="")


class _Image(Struct):
    digest: str = field(name="docker-manifest-digest")


class _Critical(Struct):
    image: _Image
    type: str
    identity: _Identity = field(default_factory=_Identity)


class _Simple(Struct):
    critical: _Critical


class _Subject(Struct):
    digest: dict[str, str]
    name: str = ""


class _Statement(Struct):
    kind: str = field(name="_type")
    subject: list[_Subject]
    predicate_type: str = field(name="predicateType")


class _EnvelopeSignature(Struct):
    sig: str


class _Envelope(Struct):
    payload: str
    payload_type: str = field(name="payloadType")
    signatures: list[_EnvelopeSignature]


class _Bundle(Struct):
    media_type: str = field(name="mediaType")
    envelope: _Envelope | None = field(name="dsseEnvelope", default=None)


def read_simple(payload: bytes, signature: str) -> Signature:
    """Simple signing as cosign stores it: the payload, and its signature in base64. Raises: Invalid."""
    return Signature(payload, payload, (_decode(signature, "its signature"),), is_statement=False)


def read_bundle(raw: bytes) -> Signature:
    """The envelope of a Sigstore bundle. What it has of transparency logs and certificates is not read.

    Raises: Invalid for what is no bundle, is of another version, or has no envelope.
    """
    bundle = _parse(raw, _Bundle, "it is not a Sigstore bundle")
    if bundle.media_type != BUNDLE_TYPE:
        raise errors.Invalid(f"it is a bundle of type {clean(bundle.media_type)[:100]}, and {BUNDLE_TYPE} is supported")
    envelope = bundle.envelope
    if envelope is None:
        raise errors.Invalid("it is a bundle without a DSSE envelope, which does not say what was signed")
    if envelope.payload_type != _STATEMENT_TYPE:
        raise errors.Invalid(f"it is an envelope around {clean(envelope.payload_type)[:100]}, not {_STATEMENT_TYPE}")
    if not 0 < len(envelope.signatures) <= _MOST_SIGNATURES:
        raise errors.Invalid(f"its envelope has {len(envelope.signatures)} signatures; 1 to {_MOST_SIGNATURES} can be")
    payload = _decode(envelope.payload, "its payload", limit=len(raw))
    kind = envelope.payload_type.encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    signatures = tuple(_decode(each.sig, "a signature of its envelope") for each in envelope.signatures)
    return Signature(payload, signed, signatures, is_statement=True)


def find_signer(signature: Signature, keys: Iterable[PublicKey]) -> PublicKey | None:
    """The key that made it; None where it is none of these."""
    for key in keys:
        if any(key.has_signed(signature.signed, each) for each in signature.signatures):
            return key
    return None


def read_claims(signature: Signature) -> Sequence[Claim]:
    """What the signer says, read after ``find_signer`` has found who. Raises: Invalid where it signs something else."""
    if signature.is_statement:
        return _claims_of_statement(signature.payload)
    critical = _parse(signature.payload, _Simple, "what was signed is not a simple signing document").critical
    if critical.type != _SIMPLE_KIND:
        raise errors.Invalid(f"what was signed is of type {clean(critical.type)[:100]!r}, not {_SIMPLE_KIND!r}")
    return (Claim(critical.image.digest, critical.identity.reference),)


def _claims_of_statement(payload: bytes) -> Sequence[Claim]:
    statement = _parse(payload, _Statement, "what was signed is not an in-toto statement")
    if statement.kind not in _STATEMENTS:
        raise errors.Invalid(f"what was signed is of type {clean(statement.kind)[:100]!r}, not an in-toto statement")
    if statement.predicate_type != _PREDICATE:
        raise errors.Invalid(
            f"what was signed is an attestation of type {clean(statement.predicate_type)[:100]!r}, not a signature"
        )
    if len(statement.subject) > _MOST_SUBJECTS:
        raise errors.Invalid(f"what was signed has over {_MOST_SUBJECTS} subjects")
    return [
        Claim(f"{algorithm}:{value}", subject.name)
        for subject in statement.subject
        for algorithm, value in subject.digest.items()
    ]


def _decode(text: str, what: str, *, limit: int = _SIGNATURE_LIMIT) -> bytes:
    if len(text) > 2 * limit:
        raise errors.Invalid(f"{what} has over {limit} bytes")
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (ValueError, binascii.Error) as error:
        raise errors.Invalid(f"{what} is not base64") from error


def _parse(raw: bytes, shape: type[Shape], why: str) -> Shape:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(why) from error
