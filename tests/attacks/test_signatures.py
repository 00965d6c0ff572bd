"""A registry that wants an unsigned package installed where signatures are required, or the engine worn out by them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from support.engines import EngineProcess, Refused, config, engine
from support.fault_registry import Answer, FaultRegistry, always, claims, first, sends
from support.limits import limit
from support.packages import INDEX, OCI, Made, digest_of, layer, make
from support.registry_faults import fault_registry, offer, requests_for
from support.signatures import (
    ARTIFACT,
    BUNDLE,
    SIMPLE,
    Document,
    Signer,
    artifact,
    bundle,
    payload,
    signer,
    simple,
    statement,
    tag_of,
)

pytestmark = [pytest.mark.real, pytest.mark.needs("openssl", "static-cc")]

MOST_SIGNATURES, MOST_ARTIFACTS = 256, 64


@dataclass
class Setup:
    """An engine that requires signatures of everything, and a registry that does what a test says."""

    house: EngineProcess
    registry: FaultRegistry
    key: Signer
    other: Signer
    made: Made

    @property
    def name(self) -> str:
        return f"{self.registry.host}/t/p:latest"

    def answer(self, part: str, answer: Answer) -> None:
        self.registry.answers["GET", f"t/p/{part}"] = answer

    def blob(self, data: bytes) -> None:
        self.answer(f"blobs/{digest_of(data)}", sends(data))

    def sign(self, *documents: Document, digest: str = "", served: bool = True) -> None:
        """Serve these under cosign's tag."""
        raw = json.dumps(artifact(documents)).encode()
        self.answer(f"manifests/{tag_of(digest or self.made.digest)}.sig", sends(raw, OCI))
        for each in documents if served else ():
            self.blob(each.data)

    def good(self) -> Document:
        return simple(self.key, payload(self.made.digest, f"{self.registry.host}/t/p"))

    def refused(self, status: int = 403) -> str:
        """Nothing is installed, and no layer was read."""
        with pytest.raises(Refused) as refusal:
            self.house.install(self.name)
        assert refusal.value.status == status, refusal.value
        assert self.house.plugins() == []
        assert requests_for(self.registry, self.made.layers[-1].digest) == 0
        assert self.house.info()["Moorage"]["Problem"] == ""
        return refusal.value.message


@pytest.fixture(scope="module")
def all_of_it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    base = tmp_path_factory.mktemp("signatures")
    key, other = signer(base / "key"), signer(base / "other")
    made = make(config(), layer({"secret": b"x"}), media_type=OCI)
    with fault_registry() as registry:
        (base / "engine").mkdir()
        policy = {"trusted_keys": {"*": [key.pem]}, "network": ["*"]}
        times = {"signatures": limit(3.0), "registry_retry_first": 0.01, "registry_retry_limit": 0.02}
        with engine(base / "engine", policy=policy, timeouts=times) as house:
            yield Setup(house, registry, key, other, made)


@pytest.fixture
def setup(all_of_it: Setup) -> Iterator[Setup]:
    all_of_it.registry.answers.clear()
    all_of_it.registry.seen.clear()
    offer(all_of_it.registry, all_of_it.made)
    yield all_of_it
    for plugin in all_of_it.house.plugins():
        all_of_it.house.remove(plugin["Id"], force=True)


def test_what_is_attacked_here_is_installed_where_it_is_signed(setup: Setup) -> None:
    setup.sign(setup.good())
    setup.house.install(setup.name)
    assert requests_for(setup.registry, setup.made.layers[-1].digest) == 1


def test_a_package_is_refused_before_its_config_is_read(setup: Setup) -> None:
    assert "it is not signed" in setup.refused()
    assert requests_for(setup.registry, setup.made.config.digest) == 0


@pytest.mark.parametrize(
    "tamper",
    [
        lambda payload: payload.replace(b"sha256:", b"sha256:0"),
        lambda payload: payload + b" ",
        lambda payload: b"{}",
    ],
)
def test_a_payload_that_was_changed_after_it_was_signed_does_not_count(setup: Setup, tamper: Any) -> None:
    good = setup.good()
    setup.sign(Document(tamper(good.data), SIMPLE, good.signature))
    assert "signed by another key" in setup.refused()


def test_a_payload_with_another_digest_than_its_descriptor_does_not_count(setup: Setup) -> None:
    good = setup.good()
    setup.sign(good)
    setup.answer(f"blobs/{digest_of(good.data)}", sends(good.data.replace(b"cosign", b"COSIGN")))
    assert "digest" in setup.refused()


def test_a_signature_by_another_key_that_includes_its_own_key_does_not_count(setup: Setup) -> None:
    document = simple(setup.other, payload(setup.made.digest, f"{setup.registry.host}/t/p"))
    made = artifact([document])
    notes = {"dev.sigstore.cosign/certificate": setup.other.pem, "dev.cosignproject.cosign/pub": setup.other.pem}
    made["layers"][0]["annotations"] |= notes
    setup.answer(f"manifests/{tag_of(setup.made.digest)}.sig", sends(json.dumps(made).encode(), OCI))
    setup.blob(document.data)
    assert "signed by another key" in setup.refused()


def test_a_genuine_signature_over_another_kind_of_document_does_not_count(setup: Setup) -> None:
    digest = setup.made.digest
    setup.sign(
        simple(setup.key, payload(digest, kind="atomic container signature")),
        simple(setup.key, statement(digest)),
        Document(bundle(setup.key, statement(digest, "https://slsa.dev/provenance/v1")), BUNDLE),
        Document(bundle(setup.key, payload(digest), payload_type=SIMPLE), BUNDLE),
    )
    setup.refused()


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 200_000,
        b'{"schemaVersion": 2, "layers": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"schemaVersion": 2, "layers": [{"digest": "sha256:zz", "size": -1}]}',
        b'{"schemaVersion": 2, "layers": [{"digest": "../../etc/passwd", "size": 5, "mediaType": "%s"}]}'
        % SIMPLE.encode(),
        b'{"schemaVersion": 2, "layers": {"a": 1}}',
        b'{"schemaVersion": 2}',
        b"\xff\xfe",
        b"",
    ],
)
@pytest.mark.parametrize("where", ["tag", "referrers", "fallback"])
def test_damaged_documents_refuse_the_package_and_hide_no_good_one(setup: Setup, raw: bytes, where: str) -> None:
    digest = setup.made.digest
    tag = f"manifests/{tag_of(digest)}"
    part, kind = {"tag": (f"{tag}.sig", OCI), "referrers": (f"referrers/{digest}", INDEX), "fallback": (tag, INDEX)}[
        where
    ]
    setup.answer(part, sends(raw, kind))
    setup.refused()
    if where == "tag":  # a good one that refers to it
        _refer(setup, [Document(bundle(setup.key, statement(digest)), BUNDLE)])
    else:
        setup.sign(setup.good())
    setup.house.install(setup.name)


def _refer(setup: Setup, documents: list[Document], kind: str = BUNDLE) -> None:
    """Serve the list of referrers that the distribution specification has."""
    raw = json.dumps(artifact(documents, setup.made.digest, kind)).encode()
    entry = {"mediaType": OCI, "digest": digest_of(raw), "size": len(raw), "artifactType": kind}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    setup.answer(f"referrers/{setup.made.digest}", sends(index, INDEX))
    setup.answer(f"manifests/{digest_of(raw)}", sends(raw, OCI))
    for each in documents:
        setup.blob(each.data)


@pytest.mark.parametrize("kind", [ARTIFACT, BUNDLE])
def test_the_list_of_referrers_is_read_where_a_registry_has_it(setup: Setup, kind: str) -> None:
    document = setup.good() if kind == ARTIFACT else Document(bundle(setup.key, statement(setup.made.digest)), BUNDLE)
    _refer(setup, [document], kind)
    setup.house.install(setup.name)


@pytest.mark.parametrize("size", [0, -1, 1 << 20, 1 << 40, 1 << 63])
def test_a_signature_of_an_impossible_size_is_not_read(setup: Setup, size: int) -> None:
    good = setup.good()
    made = artifact([good])
    made["layers"][0]["size"] = size
    setup.answer(f"manifests/{tag_of(setup.made.digest)}.sig", sends(json.dumps(made).encode(), OCI))
    setup.blob(good.data)
    setup.refused()
    assert requests_for(setup.registry, digest_of(good.data)) == 0


def test_a_signature_that_sends_more_than_it_says_is_cut_off(setup: Setup) -> None:
    good = setup.good()
    setup.sign(good)
    setup.answer(f"blobs/{digest_of(good.data)}", claims(None, good.data + bytes(1 << 20)))
    setup.refused()


@pytest.mark.parametrize("part", ["manifests/{}.sig", "referrers/{}"])
def test_a_huge_document_is_not_read_to_its_end(setup: Setup, part: str) -> None:
    digest = setup.made.digest
    target = part.format(tag_of(digest) if "sig" in part else digest)
    setup.answer(target, sends(b'{"layers": []' + b" " * (8 << 20) + b"}", OCI if "sig" in part else INDEX))
    assert "bytes" in setup.refused()


def test_of_very_many_signatures_a_bounded_number_is_checked(setup: Setup) -> None:
    document = simple(setup.other, payload(setup.made.digest))
    many = [
        Document(document.data + b" " * number, SIMPLE, document.signature) for number in range(2 * MOST_SIGNATURES)
    ]
    setup.sign(*many, setup.good())
    assert f"over {MOST_SIGNATURES} signatures" in setup.refused()
    assert requests_for(setup.registry, "/blobs/") == MOST_SIGNATURES
    setup.registry.seen.clear()
    setup.sign(*many[: MOST_SIGNATURES - 1], setup.good())
    setup.house.install(setup.name)


def test_of_very_many_referrers_a_bounded_number_is_read(setup: Setup) -> None:
    entries = [
        {"mediaType": OCI, "digest": digest_of(b"%d" % number), "size": 9, "artifactType": BUNDLE}
        for number in range(5000)
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    setup.answer(f"referrers/{setup.made.digest}", sends(index, INDEX))
    assert f"over {MOST_ARTIFACTS} signatures refer to it" in setup.refused()
    assert requests_for(setup.registry, "/manifests/") <= MOST_ARTIFACTS + 3


def test_signatures_that_trickle_end_the_operation(setup: Setup) -> None:
    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": OCI})
        await response.prepare(request)
        while True:
            await response.write(b" " * 2048)
            await anyio.sleep(0.5)

    setup.answer(f"manifests/{tag_of(setup.made.digest)}.sig", trickle)
    assert f"no signature within {limit(3.0):g} s" in setup.refused(503)


@pytest.mark.parametrize(
    ("status", "expected"), [(401, 403), (403, 403), (400, 403), (404, 403), (500, 503), (429, 503)]
)
def test_a_registry_that_does_not_give_its_signatures_gets_nothing_installed(
    setup: Setup, status: int, expected: int
) -> None:
    setup.answer(f"manifests/{tag_of(setup.made.digest)}.sig", always(status, "no"))
    setup.refused(expected)


def test_what_was_verified_is_what_is_installed_whatever_the_tag_means_next(setup: Setup) -> None:
    setup.sign(setup.good())
    evil = make(config(description="evil"), layer({"evil": b"x"}), media_type=OCI)
    offer(setup.registry, evil, tag="evil")
    both = first(sends(setup.made.manifest, OCI), sends(evil.manifest, OCI))
    setup.answer("manifests/latest", both)
    setup.house.install(setup.name)
    assert setup.house.more(setup.name)["Digest"] == setup.made.digest
    setup.house.remove(setup.name)
    setup.registry.seen.clear()
    setup.refused()


def test_an_unsigned_index_with_a_signed_entry_for_another_platform_is_refused(setup: Setup) -> None:
    setup.sign(setup.good())
    evil = make(config(description="evil"), layer({"evil": b"x"}), media_type=OCI)
    offer(setup.registry, evil, tag="evil")
    entries = [
        {"mediaType": OCI, "digest": each.digest, "size": len(each.manifest),
         "platform": {"os": "linux", "architecture": architecture}}
        for each, architecture in ((setup.made, "s390x"), (evil, "amd64"))
    ]  # fmt: skip
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    setup.answer("manifests/latest", sends(index, INDEX))
    setup.refused()
    assert requests_for(setup.registry, evil.layers[-1].digest) == 0


def test_the_reasons_in_an_error_are_few_and_have_no_control_characters(setup: Setup) -> None:
    names = [f"\u001b[2J{number}" for number in range(20)]
    setup.sign(*(simple(setup.key, payload(setup.made.digest, name)) for name in names))
    text = setup.refused()
    assert "more reasons" in text
    assert text.isprintable()
    assert len(text) < 2000


def test_the_engine_has_its_memory_back(setup: Setup) -> None:
    child = setup.house.child
    assert child is not None

    def memory() -> int:
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    document = simple(setup.other, payload(setup.made.digest))
    setup.sign(*(Document(document.data + b" " * number, SIMPLE, document.signature) for number in range(4000)))
    setup.refused()
    before = memory()
    for _ in range(5):
        setup.refused()
    assert memory() - before < 30 * 1024  # KiB; one manifest of these is 1.2 MB
