"""Signed documents and the public keys that verify them: what a signature states, which digest of which repository.

``cryptography`` is imported when the first key is read: an engine without trusted keys never loads it. Source: cosign's
SIGNATURE_SPEC.md (simple signing), the DSSE protocol (envelope, pre-authentication encoding), the in-toto Statement,
and Sigstore's bundle v0.3.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct, field

from moorage import errors
from moorage._lib.escapes import single_line
from moorage.host.files import read_regular
from moorage.oci.media_types import IN_TOTO_STATEMENT, SIGSTORE_BUNDLE

__all__ = (
    "SIGNATURE_NOTE",
    "Claim",
    "PublicKey",
    "Signature",
    "find_signer",
    "read_bundle",
    "read_claims",
    "read_public_key",
    "read_simple",
)

SIGNATURE_NOTE = "dev.cosignproject.cosign/signature"

_SIMPLE_KIND = "cosign container image signature"
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_SIGNATURE_LIMIT = 8192  # bytes of one signature; RSA's largest has 2048
_MAX_SIGNATURES = 16  # in one envelope; cosign writes one
_MAX_SUBJECTS = 64
_KEY_LIMIT = 64 * 1024  # bytes of a file with a key
_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 16384  # larger ones only take time

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

Shape = TypeVar("Shape")


class PublicKey:
    """One public key: ECDSA on P-256, P-384 or P-521, RSA, or Ed25519."""

    def __init__(self, verify: Callable[[bytes, bytes], None]) -> None:
        """``verify`` takes the signature and the bytes, and raises where one does not belong to the other."""
        self._verify = verify

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether a signature over these bytes was made with the private key of this one."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._verify(signature, data)
        except (InvalidSignature, ValueError):  # not even the encoding of a signature
            return False
        return True


def read_public_key(text: str) -> PublicKey:
    """The key in a PEM text, or in the file with this absolute path.

    Raises:
        errors.NotFound: there is no such file
        errors.Invalid: it is not a public key, of an unsupported kind, or too weak
    """
    if not text.startswith("/"):
        return _parse_key(text.encode(), "a trusted key of the policy")
    path = Path(text)
    try:
        raw = read_regular(path, _KEY_LIMIT + 1)
    except FileNotFoundError as error:
        raise errors.NotFound(f"cannot read trusted key {path}: there is no such file") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read trusted key {path}: {error.strerror}") from error
    if len(raw) > _KEY_LIMIT:
        raise errors.Invalid(f"cannot read trusted key {path}: it has more than {_KEY_LIMIT} bytes")
    return _parse_key(raw, f"trusted key {path}")


def _parse_key(raw: bytes, what: str) -> PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in raw:
        raise errors.Invalid(f"cannot use {what}: it is a private key; give the public one")
    if b"BEGIN CERTIFICATE" in raw:
        raise errors.Invalid(
            f"cannot use {what}: it is a certificate; give its public key (openssl x509 -pubkey -noout)"
        )
    if raw.count(b"-----BEGIN ") > 1:
        raise errors.Invalid(f"cannot use {what}: it has several keys; list each by itself")
    try:
        key = load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise errors.Invalid(f"cannot use {what}: it is not a PEM public key") from error
    match key:
        case ec.EllipticCurvePublicKey():
            return _elliptic(key, what)
        case rsa.RSAPublicKey():
            return _rsa(key, what)
        case ed25519.Ed25519PublicKey():
            return PublicKey(key.verify)
        case _:
            pass
    raise errors.Invalid(f"cannot use {what}: keys of this kind are not supported, only ECDSA, RSA and Ed25519")


def _elliptic(key: "ec.EllipticCurvePublicKey", what: str) -> PublicKey:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    # cosign hashes with SHA-256 whatever the curve is; its newer releases, with bundles, with the curve's own
    own: dict[str, hashes.HashAlgorithm] = {"secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
    if key.curve.name not in ("secp256r1", *own):
        raise errors.Invalid(
            f"cannot use {what}: the curve {key.curve.name} is not supported, only P-256, P-384, P-521"
        )

    def verify(signature: bytes, data: bytes) -> None:
        try:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            if key.curve.name not in own:
                raise
            key.verify(signature, data, ec.ECDSA(own[key.curve.name]))

    return PublicKey(verify)


def _rsa(key: "rsa.RSAPublicKey", what: str) -> PublicKey:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        raise errors.Invalid(
            f"cannot use {what}: an RSA key of {key.key_size} bits; {_MIN_RSA_BITS} to {_MAX_RSA_BITS} are supported"
        )
    return PublicKey(lambda signature, data: key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256()))


class Signature(Struct, frozen=True):
    """One document that may be signed by a trusted key: nothing in it may be used before that was verified."""

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
    """Simple signing as cosign stores it: the payload, and its signature in base64.

    Raises:
        errors.Invalid: the signature is not base64, or too large
    """
    return Signature(payload, payload, (_decode(signature, "its signature"),), is_statement=False)


def read_bundle(raw: bytes) -> Signature:
    """The envelope of a Sigstore bundle. Its entries of transparency logs and its certificates are not read.

    Raises:
        errors.Invalid: it is not a bundle, of another version, or without an envelope
    """
    bundle = _parse(raw, _Bundle, "it is not a Sigstore bundle")
    if bundle.media_type != SIGSTORE_BUNDLE:
        raise errors.Invalid(
            f"it is a bundle of type {single_line(bundle.media_type)[:100]}, and {SIGSTORE_BUNDLE} is supported"
        )
    envelope = bundle.envelope
    if envelope is None:
        raise errors.Invalid("it is a bundle without a DSSE envelope, which does not say what was signed")
    if envelope.payload_type != IN_TOTO_STATEMENT:
        raise errors.Invalid(
            f"it is an envelope around {single_line(envelope.payload_type)[:100]}, not {IN_TOTO_STATEMENT}"
        )
    if not 0 < len(envelope.signatures) <= _MAX_SIGNATURES:
        raise errors.Invalid(f"its envelope has {len(envelope.signatures)} signatures; 1 to {_MAX_SIGNATURES} can be")
    payload = _decode(envelope.payload, "its payload", limit=len(raw))
    kind = envelope.payload_type.encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    signatures = tuple(_decode(each.sig, "a signature of its envelope") for each in envelope.signatures)
    return Signature(payload, signed, signatures, is_statement=True)


def find_signer(signature: Signature, keys: Iterable[PublicKey]) -> PublicKey | None:
    """The key that made the signature; None if none of these did."""
    for key in keys:
        if any(key.has_signed(signature.signed, each) for each in signature.signatures):
            return key
    return None


def read_claims(signature: Signature) -> Sequence[Claim]:
    """What the signer states; called after ``find_signer`` has verified the signature.

    Raises:
        errors.Invalid: it signs something else
    """
    if signature.is_statement:
        return _claims_of_statement(signature.payload)
    critical = _parse(signature.payload, _Simple, "what was signed is not a simple signing document").critical
    if critical.type != _SIMPLE_KIND:
        raise errors.Invalid(f"what was signed is of type {single_line(critical.type)[:100]!r}, not {_SIMPLE_KIND!r}")
    return (Claim(critical.image.digest, critical.identity.reference),)


def _claims_of_statement(payload: bytes) -> Sequence[Claim]:
    statement = _parse(payload, _Statement, "what was signed is not an in-toto statement")
    if statement.kind not in _STATEMENTS:
        raise errors.Invalid(
            f"what was signed is of type {single_line(statement.kind)[:100]!r}, not an in-toto statement"
        )
    if statement.predicate_type != _PREDICATE:
        raise errors.Invalid(
            f"what was signed is an attestation of type {single_line(statement.predicate_type)[:100]!r}, "
            "not a signature"
        )
    if len(statement.subject) > _MAX_SUBJECTS:
        raise errors.Invalid(f"what was signed has over {_MAX_SUBJECTS} subjects")
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


def _parse(raw: bytes, shape: type[Shape], cause: str) -> Shape:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(cause) from error
