"""Public keys of people who sign packages: read from PEM, and asked whether a signature is theirs.

``cryptography`` is imported here only, when the first key is read: an engine without trusted keys never loads it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from moorage import errors
from moorage._lib.regular_file import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("PublicKey", "read_public_key")

_KEY_LIMIT = 64 * 1024  # bytes of a file with a key
_LEAST_RSA_BITS = 2048
_MOST_RSA_BITS = 16384  # larger ones only take time


class PublicKey:
    """One public key: ECDSA on P-256, P-384 or P-521, RSA, or Ed25519."""

    def __init__(self, verify: "Callable[[bytes, bytes], None]") -> None:
        """``verify`` takes the signature and the bytes, and raises where one does not belong to the other."""
        self._verify = verify

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether a signature over these bytes was made with the private key of this one."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._verify(signature, data)
        except (InvalidSignature, ValueError):  # what is not even the encoding of a signature
            return False
        return True


def read_public_key(text: str) -> PublicKey:
    """The key in a PEM text, or in the file with this absolute path.

    Raises: Invalid for what is no public key, is of a kind that is not supported, or is too weak; NotFound for a
    missing file.
    """
    if not text.startswith("/"):
        return _parse(text.encode(), "a trusted key of the policy")
    path = Path(text)
    try:
        raw = read_regular(path, _KEY_LIMIT + 1)
    except FileNotFoundError as error:
        raise errors.NotFound(f"cannot read trusted key {path}: there is no such file") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read trusted key {path}: {error.strerror}") from error
    if len(raw) > _KEY_LIMIT:
        raise errors.Invalid(f"cannot read trusted key {path}: it has more than {_KEY_LIMIT} bytes")
    return _parse(raw, f"trusted key {path}")


def _parse(raw: bytes, what: str) -> PublicKey:
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

    if not _LEAST_RSA_BITS <= key.key_size <= _MOST_RSA_BITS:
        raise errors.Invalid(
            f"cannot use {what}: an RSA key of {key.key_size} bits; {_LEAST_RSA_BITS} to {_MOST_RSA_BITS} are supported"
        )
    return PublicKey(lambda signature, data: key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256()))


if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
