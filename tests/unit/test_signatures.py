"""Signatures without a registry: what keys verify, what documents say, which rule is for which repository."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moorage import errors
from moorage.packages.signature_documents import find_signer, read_bundle, read_claims, read_public_key, read_simple
from moorage.plugins import TrustedKeys, TrustRule, parse_policy, parse_reference
from support.signatures import Signer, bundle, openssl, payload, signer, statement

DIGEST = f"sha256:{'a' * 64}"
KINDS = ["p256", "p384", "p521", "rsa", "ed25519"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Signer]:
    directory, made = tmp_path_factory.mktemp("keys"), dict[str, Signer]()

    def get(kind: str) -> Signer:
        if kind not in made:
            made[kind] = signer(directory / kind, kind)
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_of_each_kind_verifies_what_openssl_signed(keys: Callable[[str], Signer], kind: str) -> None:
    pair = keys(kind)
    for text in (pair.pem, str(pair.public)):
        key = read_public_key(text)
        assert key.has_signed(b"data", pair.sign(b"data"))
        assert not key.has_signed(b"date", pair.sign(b"data"))
        assert not key.has_signed(b"data", b"")
        assert not key.has_signed(b"data", pair.sign(b"data")[:-1])


@pytest.mark.parametrize(("kind", "hash"), [("p384", "sha384"), ("p521", "sha512")])
def test_an_elliptic_key_verifies_with_the_hash_of_its_curve(tmp_path: Path, kind: str, hash: str) -> None:
    pair = signer(tmp_path, kind, hash=hash)
    assert read_public_key(pair.pem).has_signed(b"data", pair.sign(b"data"))


def test_a_p256_signature_with_a_weak_hash_does_not_count(tmp_path: Path) -> None:
    pair = signer(tmp_path, hash="sha1")
    assert not read_public_key(pair.pem).has_signed(b"data", pair.sign(b"data"))


@pytest.mark.parametrize(
    ("kind", "text"), [("weak-rsa", "1024 bits"), ("p224", "secp224r1"), ("x25519", "kind are not supported")]
)
def test_a_key_that_is_weak_or_of_another_kind_is_refused(tmp_path: Path, kind: str, text: str) -> None:
    with pytest.raises(errors.Invalid, match=text):
        read_public_key(signer(tmp_path, kind).pem)


def test_what_is_no_public_key_is_refused_by_what_it_is(keys: Callable[[str], Signer], tmp_path: Path) -> None:
    pair = keys("p256")
    with pytest.raises(errors.Invalid, match=r"p256\.key: it is a private key; give the public one"):
        read_public_key(str(pair.private))
    request = ("req", "-x509", "-key", pair.private, "-subj", "/CN=x")
    with pytest.raises(errors.Invalid, match="it is a certificate"):
        read_public_key(openssl(*request).decode())
    with pytest.raises(errors.Invalid, match="several keys"):
        read_public_key(pair.pem + pair.pem)
    with pytest.raises(errors.Invalid, match="not a PEM public key"):
        read_public_key("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(errors.NotFound, match="there is no such file"):
        read_public_key(str(tmp_path / "none.pub"))
    with pytest.raises(errors.Invalid, match="Is a directory"):
        read_public_key(str(tmp_path))
    with pytest.raises(errors.Invalid, match="it is not a file"):
        read_public_key("/dev/zero")
    (tmp_path / "large.pub").write_bytes(bytes(65537))
    with pytest.raises(errors.Invalid, match="more than 65536 bytes"):
        read_public_key(str(tmp_path / "large.pub"))


def test_claims_of_simple_signing_and_of_a_bundle(keys: Callable[[str], Signer]) -> None:
    pair = keys("p256")
    trusted = [read_public_key(pair.pem)]
    document = payload(DIGEST, "registry.lan/a/b")
    signed = read_simple(document, base64.b64encode(pair.sign(document)).decode())
    assert find_signer(signed, trusted) is trusted[0]
    assert [(each.digest, each.name) for each in read_claims(signed)] == [(DIGEST, "registry.lan/a/b")]
    signed = read_bundle(bundle(pair, statement(DIGEST)))
    assert find_signer(signed, trusted) is trusted[0]
    assert [(each.digest, each.name) for each in read_claims(signed)] == [(DIGEST, "")]
    assert find_signer(signed, [read_public_key(keys("rsa").pem)]) is None


def test_a_signature_over_the_payload_alone_does_not_count_in_an_envelope(keys: Callable[[str], Signer]) -> None:
    pair, document = keys("p256"), json.loads(bundle(keys("p256"), statement(DIGEST)))
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(pair.sign(statement(DIGEST))).decode()
    assert find_signer(read_bundle(json.dumps(document).encode()), [read_public_key(pair.pem)]) is None


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (payload(DIGEST, kind="atomic container signature"), "is of type 'atomic container signature'"),
        (b"{}", "not a simple signing document"),
        (b"[" * 100_000, "not a simple signing document"),
        (b"\xff\x00", "not a simple signing document"),
        (b'{"critical": {"image": {"docker-manifest-digest": 7}, "type": "x"}}', "not a simple signing document"),
        (b'{"critical": {"image": {"Docker-Manifest-Digest": "sha256:aa"}, "type": "x"}}', "not a simple signing"),
    ],
)
def test_what_a_trusted_key_signed_may_be_another_thing(document: bytes, text: str) -> None:
    with pytest.raises(errors.Invalid, match=text):
        read_claims(read_simple(document, "AAAA"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.2"}, "version=0.2"),
        ({"dsseEnvelope": None, "messageSignature": {"signature": "AAAA"}}, "without a DSSE envelope"),
        ({"dsseEnvelope": {"payload": "e30=", "payloadType": "text/plain", "signatures": []}}, "around text/plain"),
        (
            {"dsseEnvelope": {"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": []}},
            "has 0",
        ),
        ({"dsseEnvelope": 7}, "not a Sigstore bundle"),
    ],
)
def test_other_bundles_are_refused(keys: Callable[[str], Signer], change: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.Invalid, match=text):
        read_bundle(json.dumps({**json.loads(bundle(keys("p256"), statement(DIGEST))), **change}).encode())


def test_an_attestation_is_not_a_signature(keys: Callable[[str], Signer]) -> None:
    made = read_bundle(bundle(keys("p256"), statement(DIGEST, "https://slsa.dev/provenance/v1")))
    with pytest.raises(
        errors.Invalid, match=r"an attestation of type 'https://slsa.dev/provenance/v1', not a signature"
    ):
        read_claims(made)


@pytest.mark.parametrize("signature", ["", "!", "AAA", "A" * 100_000, "é"])
def test_a_damaged_signature_is_refused_or_verifies_nothing(keys: Callable[[str], Signer], signature: str) -> None:
    try:
        made = read_simple(payload(DIGEST), signature)
    except errors.Invalid:
        return
    assert find_signer(made, [read_public_key(keys(each).pem) for each in KINDS]) is None


# rules


def rules(section: object) -> TrustedKeys:
    return parse_policy(json.dumps({"trusted_keys": section}).encode()).trusted_keys


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("vieux/sshfs", ["vieux/sshfs", "docker.io/vieux/sshfs:1", "index.docker.io/vieux/sshfs"], ["vieux/sshfs2"]),
        ("sshfs", ["sshfs", "docker.io/library/sshfs"], ["vieux/sshfs"]),
        ("vieux/*", ["vieux/sshfs", "vieux/a/b"], ["other/sshfs", "quay.io/vieux/sshfs"]),
        ("vieux/", ["vieux/sshfs"], ["vieux2/sshfs"]),
        ("*", ["sshfs", "localhost:5000/a", "quay.io/a/b/c:1"], []),
        ("registry.lan/*", ["registry.lan/a", "REGISTRY.LAN/a/b", "registry.lan:443/a"], ["registry.lan:5000/a", "a"]),
        ("Registry.Lan:443/a/b", ["registry.lan/a/b"], ["registry.lan/a/bc", "registry.lan/a"]),
        ("*.lan/team/*", ["a.lan/team/x", "b.a.lan/team/x/y"], ["lan/team/x", "a.lan/teams/x"]),
        ("*/team/x", ["a.lan/team/x", "localhost:5000/team/x"], ["a.lan/team/xy"]),
        ("index.docker.io/vieux/*", ["vieux/sshfs"], ["sshfs"]),
    ],
)
def test_a_pattern_is_for_these_repositories(pattern: str, matching: list[str], others: list[str]) -> None:
    found = rules({pattern: []})
    assert [each for each in matching if found.find(parse_reference(each)) is None] == []
    assert [each for each in others if found.find(parse_reference(each)) is not None] == []


def test_the_most_specific_pattern_counts() -> None:
    found = rules({"*": [], "registry.lan/team/x": ["/c"], "registry.lan/*": ["/a"], "registry.lan/team/*": ["/b"]})
    chosen = {name: found.find(parse_reference(name)) for name in ("q.io/a", "registry.lan/a", "registry.lan/team/x")}
    assert {name: rule and rule.keys for name, rule in chosen.items()} == {
        "q.io/a": (),
        "registry.lan/a": ("/a",),
        "registry.lan/team/x": ("/c",),
    }


def test_a_rule_may_be_written_out() -> None:
    found = rules({"m.lan/*": {"keys": ["/k"], "signed_as": ["vieux/*"]}, "d.lan/*": {"unsigned": True}})
    assert found.rules == (
        TrustRule("m.lan/*", ("/k",), ("docker.io/vieux/*",)),
        TrustRule("d.lan/*", is_exempt=True),
    )


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (None, "trusted_keys: must be an object"),
        ([], "trusted_keys: must be an object"),
        ({"a": None}, "trusted_keys.a: must be a list of public keys"),
        ({"a": "/k"}, "must be a list of public keys"),
        ({"a": ["k.pub"]}, "k.pub is neither a PEM public key nor an absolute path"),
        ({"a": [7]}, "must be a text, not a number"),
        ({"a": {}}, "keys: is missing"),
        ({"a": {"key": ["/k"]}}, "did you mean keys"),
        ({"a": {"keys": ["/k"], "unsigned": True}}, "must not be true beside keys"),
        ({"registry.lan": []}, "names a registry and no repository; write registry.lan/\\*"),
        ({"a/b:1": []}, "without tag or digest"),
        ({f"a/b@{DIGEST}": []}, "without tag or digest"),
        ({"a*/b": []}, "is ambiguous"),
        ({"registry.lan/Team/*": []}, "has characters that no repository has"),
        ({"registry.lan/Team": []}, "repository name must be lowercase"),
        ({"*.*.*.*.*/x": []}, "more than 4 times"),
        ({"": []}, "trusted_keys"),
        ({"vieux/x": [], "docker.io/vieux/x": []}, "two patterns mean docker.io/vieux/x"),
    ],
)
def test_a_rule_that_might_match_nothing_is_refused(section: object, text: str) -> None:
    with pytest.raises(errors.Invalid, match=text):
        rules(section)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"trusted_keys": {}, "trusted_keys": {}}',
        b'{"trusted_keys": {"a": [], "a": ["/k"]}}',
        b'{"trusted_keys": {"a": {"keys": ["/k"], "keys": ["/l"]}}}',
        b'{"trusted_keys": {"*": []}, "Trusted_Keys": {}}',
        b'{"trusted_keys": {"*": []}, "trusted_keys": null}',
        b'{"trustedKeys": {"*": []}}',
    ],
)
def test_an_ambiguous_policy_is_refused(raw: bytes) -> None:
    with pytest.raises(errors.Invalid, match=r"trusted_?[kK]eys"):
        parse_policy(raw)
