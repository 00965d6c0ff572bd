"""Signatures of packages as cosign writes them, made with the openssl command and pushed to a registry."""

import base64
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.packages import INDEX, OCI, digest_of, push_blob, push_manifest

SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
NOTE = "dev.cosignproject.cosign/signature"
ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT = "application/vnd.in-toto+json"
SIGN = "https://sigstore.dev/cosign/sign/v1"
EMPTY = "application/vnd.oci.empty.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
KIND = "cosign container image signature"

ALGORITHMS = {
    "p256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "p384": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "p521": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"),
    "p224": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-224"),
    "rsa": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "weak-rsa": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"),
    "ed25519": ("-algorithm", "ED25519"),
    "x25519": ("-algorithm", "X25519"),
}


def openssl(*arguments: str | Path, input: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *arguments], input=input, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@dataclass(frozen=True)
class Signer:
    """A pair of keys, as files in a directory."""

    private: Path
    public: Path
    hash: str = "sha256"

    @property
    def pem(self) -> str:
        return self.public.read_text()

    def sign(self, data: bytes) -> bytes:
        """A signature as cosign makes it with such a key."""
        if "ED25519" in openssl("pkey", "-in", self.private, "-noout", "-text").decode().upper():
            file = self.private.with_suffix(".data")
            file.write_bytes(data)
            return openssl("pkeyutl", "-sign", "-rawin", "-inkey", self.private, "-in", file)
        return openssl("dgst", f"-{self.hash}", "-sign", self.private, input=data)


def signer(directory: Path, kind: str = "p256", *, hash: str = "sha256") -> Signer:
    """A new pair of keys."""
    directory.mkdir(parents=True, exist_ok=True)
    made = Signer(directory / f"{kind}.key", directory / f"{kind}.pub", hash)
    openssl("genpkey", *ALGORITHMS[kind], "-out", made.private)
    openssl("pkey", "-in", made.private, "-pubout", "-out", made.public)
    return made


def payload(digest: str, name: str = "", *, kind: str = KIND) -> bytes:
    """What cosign signs in simple signing."""
    critical = {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest}, "type": kind}
    return json.dumps({"critical": critical, "optional": None}, separators=(",", ":")).encode()


def statement(digest: str, predicate: str = SIGN, **subject: Any) -> bytes:
    """What newer releases of cosign sign."""
    algorithm, _, value = digest.partition(":")
    subjects = [{"digest": {algorithm: value}, **subject}]
    return json.dumps(
        {"_type": "https://in-toto.io/Statement/v1", "subject": subjects, "predicateType": predicate, "predicate": {}}
    ).encode()


def bundle(by: Signer, document: bytes, *, payload_type: str = STATEMENT, **fields: Any) -> bytes:
    """A Sigstore bundle with a DSSE envelope around a statement, made with a key."""
    kind = payload_type.encode()
    signature = by.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(document), document))
    envelope = {
        "payload": base64.b64encode(document).decode(),
        "payloadType": payload_type,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    material = {"publicKey": {"hint": "aGludA=="}, "tlogEntries": []}
    return json.dumps(
        {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope, **fields}
    ).encode()


@dataclass(frozen=True)
class Document:
    """A layer of a manifest of signatures."""

    data: bytes
    media_type: str = SIMPLE
    signature: str | None = None
    """In base64."""

    @property
    def descriptor(self) -> dict[str, Any]:
        notes = {"annotations": {NOTE: self.signature}} if self.signature is not None else {}
        return {"mediaType": self.media_type, "digest": digest_of(self.data), "size": len(self.data), **notes}


def simple(by: Signer, signed: bytes) -> Document:
    """A payload with a signature over it."""
    return Document(signed, SIMPLE, base64.b64encode(by.sign(signed)).decode())


def artifact(documents: Sequence[Document], subject: str = "", kind: str = "") -> dict[str, Any]:
    """A manifest of signatures; with ``subject`` one that refers to a package."""
    more: dict[str, Any] = {}
    if subject:
        more["subject"] = {"mediaType": OCI, "digest": subject, "size": 1}
    if kind == BUNDLE:
        more["artifactType"] = kind
    config_type = EMPTY if kind == BUNDLE else kind or IMAGE_CONFIG
    return {
        "schemaVersion": 2,
        "mediaType": OCI,
        "config": {"mediaType": config_type, "digest": digest_of(b"{}"), "size": 2},
        "layers": [each.descriptor for each in documents],
        **more,
    }


def tag_of(digest: str) -> str:
    return digest.replace(":", "-")


def push_tag(host: str, path: str, digest: str, documents: Sequence[Document]) -> None:
    """Store signatures under cosign's tag."""
    _push_artifact(host, path, f"{tag_of(digest)}.sig", artifact(documents), documents)


def push_referrer(host: str, path: str, digest: str, documents: Sequence[Document], kind: str) -> None:
    """Store signatures that refer to a package, under the tag that replaces the list of referrers."""
    push_referrers(host, path, digest, [(documents, kind)])


def push_referrers(host: str, path: str, digest: str, artifacts: Iterable[tuple[Sequence[Document], str]]) -> None:
    """As ``push_referrer``, several in one list."""
    entries = []
    for documents, kind in artifacts:
        made = artifact(documents, digest, kind)
        raw = json.dumps(made).encode()
        _push_artifact(host, path, digest_of(raw), made, documents)
        entries.append({"mediaType": OCI, "digest": digest_of(raw), "size": len(raw), "artifactType": kind})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    push_manifest(host, path, tag_of(digest), json.dumps(index).encode(), INDEX)


def _push_artifact(host: str, path: str, target: str, made: dict[str, Any], documents: Sequence[Document]) -> None:
    for data in {b"{}", *(each.data for each in documents)}:
        push_blob(host, path, data)
    push_manifest(host, path, target, json.dumps(made).encode(), OCI)
