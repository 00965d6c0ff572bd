"""Targets: signatures of packages, as a registry has them, and the public keys that a policy names."""

import base64
import json
from collections.abc import Callable
from functools import cache
from random import Random

from fuzz.harness import CrashError, Target
from fuzz.mutation import mutate_bytes, mutate_json
from moorage import errors
from moorage.oci.media_types import SIGSTORE_BUNDLE
from moorage.packages.signature_documents import (
    PublicKey,
    Signature,
    find_signer,
    read_bundle,
    read_claims,
    read_public_key,
    read_simple,
)
from moorage.plugins import parse_policy

PEM = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfXtIHZ9xgDCfm6LZBPMytQVzJzfA
S9REqDaopXLTc0ogf06ORUTTE9Dfb3hAzsObR5WV90BaxmFZsJVyQfsp5A==
-----END PUBLIC KEY-----
"""
OTHER_PEM = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAD8i4BEDEkV1PojNZ8YHHYxV3Fq4UVZl86eQhdpAFIT4=
-----END PUBLIC KEY-----
"""


@cache
def _keys() -> tuple[PublicKey, ...]:
    return read_public_key(PEM), read_public_key(OTHER_PEM)


def read_signature(data: bytes) -> None:
    """A bundle, or a payload of simple signing with its signature in the first line; it is not signed."""
    first, _, rest = data.partition(b"\n")
    readers: tuple[Callable[[], Signature], ...] = (
        lambda: read_bundle(data),
        lambda: read_simple(rest, first.decode("utf-8", "replace")),
    )
    for read in readers:
        try:
            signature = read()
            if find_signer(signature, _keys()) is not None:
                raise CrashError("a signature that nobody made is genuine")
            for claim in read_claims(signature):
                str(claim).encode(errors="surrogatepass")
        except errors.Invalid as error:
            str(error).encode()


def read_key(data: bytes) -> None:
    """A public key, and what it says of a signature."""
    text = data.decode("utf-8", "replace")
    if not text.startswith("/"):  # else it is a file
        read_public_key(text).has_signed(b"data", b"0" * 64)


def read_trust(data: bytes) -> None:
    """A policy with trusted keys."""
    parse_policy(data)


_STATEMENT = json.dumps(
    {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "localhost:5000/a/b", "digest": {"sha256": "0" * 64}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }
).encode()
_ENVELOPE = {
    "payload": base64.b64encode(_STATEMENT).decode(),
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [{"sig": base64.b64encode(b"0" * 64).decode()}],
}
_BUNDLE = json.dumps({"mediaType": SIGSTORE_BUNDLE, "verificationMaterial": {}, "dsseEnvelope": _ENVELOPE}).encode()
_SIMPLE = (
    b"MDAw\n"
    + json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": "localhost:5000/a/b"},
                "image": {"docker-manifest-digest": "sha256:" + "0" * 64},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    ).encode()
)
_POLICY = json.dumps(
    {
        "network": ["host"],
        "trusted_keys": {
            "registry.lan/team/*": [PEM],
            "mirror.lan/*": {"keys": [PEM], "signed_as": ["registry.lan/team/*"]},
            "a/b": {"unsigned": True},
            "*": [],
        },
    }
).encode()
_BUNDLE_KEYS = ("mediaType", "dsseEnvelope", "messageSignature", "payload", "payloadType", "signatures", "sig")
_STATEMENT_KEYS = (
    "_type",
    "subject",
    "digest",
    "name",
    "predicateType",
    "sha256",
    "critical",
    "identity",
    "image",
    "type",
)


def _mutate_signature(data: bytes, random: Random) -> bytes:
    """Change what is signed inside its envelope, the envelope, or a payload and its signature."""
    if data.startswith(b"{"):
        try:
            document = json.loads(data)
            if random.random() < 0.5:
                inner = mutate_json(base64.b64decode(document["dsseEnvelope"]["payload"]), random, _STATEMENT_KEYS)
                document["dsseEnvelope"]["payload"] = base64.b64encode(inner).decode()
                return json.dumps(document).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        return mutate_json(data, random, _BUNDLE_KEYS)
    first, newline, rest = data.partition(b"\n")
    if random.random() < 0.3:
        return mutate_bytes(first, random) + newline + rest
    return first + newline + mutate_json(rest, random, _STATEMENT_KEYS)


def _mutate_trust(data: bytes, random: Random) -> bytes:
    return mutate_json(
        data, random, ("trusted_keys", "keys", "signed_as", "unsigned", "*", "a/*", "docker.io/a/b", "HOST/a/")
    )


TARGETS = (
    Target(
        "signature", "signatures of packages", read_signature, (_BUNDLE, _SIMPLE), _mutate_signature, executions=800
    ),
    Target("key", "public keys in PEM", read_key, (PEM.encode(), OTHER_PEM.encode()), executions=800),
    Target(
        "trust",
        "trusted keys of a policy",
        read_trust,
        (_POLICY,),
        _mutate_trust,
        (errors.Invalid, errors.NotFound),
        executions=500,
    ),
)
