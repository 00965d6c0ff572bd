"""Packages that must be signed (issue 12): cosign's wire formats in Debian's registry, on every way onto a machine."""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moorage.plugins import parse_policy
from peers.test_docker_cli import clis, run
from support.engines import EngineProcess, Refused, config, engine, package
from support.layouts import Layout, layer_tar, tar_of
from support.limits import limit
from support.packages import IMAGE, OCI, Blob, Made, digest_of, index_of, layer, make, push, push_manifest
from support.registries import Served, serve_registry
from support.signatures import (
    ARTIFACT,
    BUNDLE,
    Document,
    Signer,
    bundle,
    payload,
    push_referrer,
    push_tag,
    signer,
    simple,
    statement,
    tag_of,
)

pytestmark = [pytest.mark.real, pytest.mark.needs("docker-registry", "skopeo", "openssl", "static-cc")]

KINDS = ["p256", "p384", "rsa", "ed25519"]
HERE = {"os": "linux", "architecture": "amd64"}


@dataclass(frozen=True)
class Setup:
    """An engine whose policy wants signatures below ``signed/`` of a registry, ``*`` apart."""

    house: EngineProcess
    registry: Served
    keys: dict[str, Signer]

    @property
    def host(self) -> str:
        return self.registry.host

    def name(self, path: str) -> str:
        return f"{self.host}/{path}"

    def push(self, path: str, tag: str = "1", text: str = "", **more: Any) -> str:
        """A package, another one for each text; its digest."""
        return push(self.host, path, tag, make(config(description=text or path), **more))

    def sign(self, path: str, digest: str, kind: str = "p256", name: str | None = None) -> None:
        """As cosign does by default."""
        named = self.name(path) if name is None else name
        push_tag(self.host, path, digest, [simple(self.keys[kind], payload(digest, named))])

    def layers_read(self, made: Made) -> bool:
        """Whether the last layer was requested from the registry, which no other package has."""
        text = self.registry.text()
        return f"/blobs/{made.layers[-1].digest}" in text


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    base = tmp_path_factory.mktemp("signatures")
    keys = {kind: signer(base / "keys" / kind, kind) for kind in KINDS}
    keys["other"] = signer(base / "keys" / "other")
    with serve_registry(base / "registry") as registry:
        trusted: dict[str, Any] = {f"{registry.host}/signed/*": [str(keys["p256"].public)]}
        for kind in KINDS:
            trusted[f"{registry.host}/kinds/{kind}"] = [keys[kind].pem]
        trusted[f"{registry.host}/both/*"] = [keys["rsa"].pem, str(keys["p256"].public)]
        trusted[f"{registry.host}/mirror/*"] = {"keys": [keys["p256"].pem], "signed_as": ["example.org/team/*"]}
        trusted[f"{registry.host}/signed/trial/*"] = {"unsigned": True}
        trusted[f"{registry.host}/none/*"] = []
        policy = {"trusted_keys": trusted, "network": ["*"], "mounts": ["*"]}
        (base / "engine").mkdir()
        with engine(base / "engine", policy=policy) as house:
            yield Setup(house, registry, keys)


@pytest.fixture(autouse=True)
def nothing_else(setup: Setup) -> Iterator[None]:
    yield
    for plugin in setup.house.plugins():
        setup.house.remove(plugin["Id"], force=True)


def names(setup: Setup) -> list[str]:
    return [each["Name"] for each in setup.house.plugins()]


def refused(call: Callable[[], Any]) -> str:
    """The message of a call that is refused with 403."""
    with pytest.raises(Refused) as refusal:
        call()
    assert refusal.value.status == 403, refusal.value
    return refusal.value.message


def moorage(setup: Setup, *words: str, input: bytes | None = None) -> tuple[int, str]:
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{setup.house.socket}", *words]
    done = subprocess.run(
        command, input=input, capture_output=True, timeout=limit(60), env=dict(os.environ), check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_signed_by_each_kind_of_key_is_installed(setup: Setup, kind: str) -> None:
    path = f"kinds/{kind}"
    made = make(config(description=kind), layer({"only": kind.encode()}))
    digest = push(setup.host, path, "1", made)
    text = refused(lambda: setup.house.install(setup.name(f"{path}:1")))
    assert f"cannot use {setup.name(path)}:1: it is not signed, and this host's policy requires a signature" in text
    assert digest in text
    assert not setup.layers_read(made)
    setup.sign(path, digest, kind)
    setup.house.install(setup.name(f"{path}:1"))
    assert names(setup) == [setup.name(f"{path}:1")]
    assert setup.layers_read(made)


@pytest.mark.parametrize("where", ["tag", "referrer", "bundle"])
def test_signatures_are_found_wherever_cosign_stores_them(setup: Setup, where: str) -> None:
    path, key = f"signed/{where}", setup.keys["p256"]
    digest = setup.push(path)
    document = simple(key, payload(digest, setup.name(path)))
    if where == "tag":
        push_tag(setup.host, path, digest, [document])
    elif where == "referrer":
        push_referrer(setup.host, path, digest, [document], ARTIFACT)
    else:
        push_referrer(setup.host, path, digest, [Document(bundle(key, statement(digest)), BUNDLE)], BUNDLE)
    setup.house.install(setup.name(f"{path}:1"))


def test_one_signature_by_a_trusted_key_is_enough_among_those_of_others(setup: Setup) -> None:
    path = "both/many"
    digest = setup.push(path)
    others = [simple(setup.keys["other"], payload(digest, setup.name(path))) for _ in range(3)]
    push_tag(setup.host, path, digest, [*others, simple(setup.keys["p256"], payload(digest, setup.name(path)))])
    setup.house.install(setup.name(f"{path}:1"))


@pytest.mark.parametrize("what", ["index", "manifest"])
def test_a_signature_over_the_index_or_over_the_manifest_counts(setup: Setup, what: str) -> None:
    path = f"signed/{what}"
    made = make(config(description=what), media_type=OCI)
    push(setup.host, path, "only", made)
    foreign = make(config(description="foreign"), media_type=OCI)
    push(setup.host, path, "foreign", foreign)
    entries = [(made, {"platform": HERE}), (foreign, {"platform": {**HERE, "architecture": "s390x"}})]
    raw = index_of(entries, "application/vnd.oci.image.index.v1+json")
    digest = push_manifest(setup.host, path, "1", raw, "application/vnd.oci.image.index.v1+json")
    setup.sign(path, foreign.digest)
    refused(lambda: setup.house.install(setup.name(f"{path}:1")))  # of another platform
    setup.sign(path, digest if what == "index" else made.digest)
    setup.house.install(setup.name(f"{path}:1"))
    assert setup.house.more(setup.name(f"{path}:1"))["Digest"] == made.digest


def test_a_repository_without_a_rule_or_exempt_needs_no_signature(setup: Setup) -> None:
    for path in ("free/a", "signed/trial/a"):
        setup.push(path)
        setup.house.install(setup.name(f"{path}:1"))
    assert len(names(setup)) == 2


def test_a_rule_without_keys_refuses_everything(setup: Setup) -> None:
    setup.sign("none/a", setup.push("none/a"))
    assert "one of 0 trusted keys" in refused(lambda: setup.house.install(setup.name("none/a:1")))


def test_every_way_from_a_registry_requires_the_signature(setup: Setup, tmp_path: Path) -> None:
    path, house = "signed/ways", setup.house
    reference = setup.name(f"{path}:1")
    first = setup.push(path, text="first")
    for call in (
        lambda: house.privileges(reference),
        lambda: house.install(reference, granted=[]),
        lambda: house.ensure(reference, "ways"),
    ):
        refused(call)
    desired = tmp_path / "plugins.yaml"
    desired.write_text(f"plugins:\n- reference: {reference}\n  name: ways\n  enabled: no\n  privileges: all\n")
    status, text = moorage(setup, "apply", "-f", str(desired))
    assert status == 1
    assert "it is not signed" in text
    for words in (
        ["install", "--disable", "--grant-all-permissions", "--alias", "ways", reference],
        ["install", "--disable", "--grant-all-permissions", "--ensure", "--alias", "ways", reference],
        ["privileges", reference],
    ):
        status, text = moorage(setup, *words)
        assert (status, names(setup)) == (1, []), text
        assert "it is not signed" in text
    setup.sign(path, first)
    status, text = moorage(setup, "apply", "-f", str(desired))
    assert (status, names(setup)) == (0, ["ways:latest"]), text
    second = setup.push(path, "2", text="second")
    newer = setup.name(f"{path}:2")
    for call in (
        lambda: house.upgrade("ways", newer, granted=[]),
        lambda: house.change("ways", newer),
    ):
        refused(call)
    assert "it is not signed" in moorage(setup, "upgrade", "--grant-all-permissions", "ways", newer)[1]
    desired.write_text(desired.read_text().replace(":1", ":2"))
    assert moorage(setup, "apply", "-f", str(desired))[0] == 1
    assert house.more("ways")["Digest"] == first
    setup.sign(path, second)
    house.upgrade("ways", newer)
    assert house.more("ways")["Digest"] == second


@pytest.mark.parametrize("cli", clis())
def test_the_docker_command_is_refused_with_the_same_words(setup: Setup, cli: str) -> None:
    path = f"signed/docker{clis().index(cli)}"
    reference, digest = setup.name(f"{path}:1"), setup.push(path)
    words = ["plugin", "install", "--disable", "--grant-all-permissions", reference]
    status, text = run(cli, setup.house.socket, words)
    assert (status, names(setup)) == (1, [])
    assert "it is not signed, and this host's policy requires a signature" in text
    setup.sign(path, digest)
    status, text = run(cli, setup.house.socket, words)
    assert status == 0, text


# replays, with what a real tool copies


def skopeo_copy(setup: Setup, source: str, target: str) -> None:
    done = subprocess.run(
        ["skopeo", "copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false",
         f"docker://{setup.name(source)}", f"docker://{setup.name(target)}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_signature_of_another_repository_does_not_count(setup: Setup) -> None:
    digest = setup.push("signed/good", media_type=OCI)
    setup.sign("signed/good", digest)
    skopeo_copy(setup, "signed/good:1", "signed/copy:1")
    skopeo_copy(setup, f"signed/good:{tag_of(digest)}.sig", f"signed/copy:{tag_of(digest)}.sig")
    text = refused(lambda: setup.house.install(setup.name("signed/copy:1")))
    assert f"a trusted key signed it as {setup.name('signed/good')}, not as {setup.name('signed/copy')}:1" in text
    setup.house.install(setup.name("signed/good:1"))


def test_a_mirror_may_have_the_signatures_of_its_originals(setup: Setup) -> None:
    digest = setup.push("mirror/a")
    setup.sign("mirror/a", digest, name="example.org/others/a")
    assert "signed it as example.org/others/a" in refused(lambda: setup.house.install(setup.name("mirror/a:1")))
    setup.sign("mirror/a", digest, name="example.org/team/a")
    setup.house.install(setup.name("mirror/a:1"))


def test_a_signature_of_another_version_does_not_count(setup: Setup) -> None:
    old, new = setup.push("signed/v", "1", "old"), setup.push("signed/v", "2", "new")
    document = simple(setup.keys["p256"], payload(old, setup.name("signed/v")))
    push_tag(setup.host, "signed/v", new, [document])
    text = refused(lambda: setup.house.install(setup.name("signed/v:2")))
    assert f"a trusted key signed {old}, which is another package" in text


@pytest.mark.parametrize(("named", "is_accepted"), [("", True), (":1", True), (":2", False), (":latest", False)])
def test_a_signature_that_names_a_tag_is_for_that_tag(setup: Setup, named: str, is_accepted: bool) -> None:
    path = f"signed/tag{len(named)}{named[-1:].strip('t')}"
    digest = setup.push(path)
    setup.sign(path, digest, name=f"{setup.name(path)}{named}")
    if not is_accepted:
        refused(lambda: setup.house.install(setup.name(f"{path}:1")))
        setup.house.install(setup.name(f"{path}@{digest}"))  # no tag is requested, so none can be wrong
    else:
        setup.house.install(setup.name(f"{path}:1"))


# what comes from elsewhere


def archive(
    digest_name: str, documents: Callable[[str], list[Document]], *, reference: str = "", mark: str = "tag"
) -> bytes:
    layout = Layout()
    target = layout.plugin(config(), [layer_tar({"actor": (b"x", 0o755)})])
    notes = {
        "annotations": {
            "io.containerd.image.name": digest_name,
            **({"moorage.reference": reference} if reference else {}),
        }
    }
    layout.entries.append({**target, **notes})
    made = documents(target["digest"])
    if made:
        entries = [{**layout.add(each.data, each.media_type), **each.descriptor} for each in made]
        manifest = layout.manifest(layout.add(b"{}", "application/vnd.oci.image.config.v1+json"), entries)
        marks: dict[str, dict[str, Any]] = {
            "tag": {"annotations": {"org.opencontainers.image.ref.name": f"{tag_of(target['digest'])}.sig"}},
            "cosign": {"annotations": {"kind": "dev.cosignproject.cosign/sigs"}},
            "artifact": {"artifactType": ARTIFACT},
        }
        layout.entries.append({**manifest, **marks[mark]})
    return layout.tar()


def load(setup: Setup, body: bytes, name: str = "") -> Any:
    return setup.house.request_json("POST", f"/moorage/v1/load?name={name}", body)


@pytest.mark.parametrize("mark", ["tag", "cosign", "artifact"])
def test_an_archive_is_loaded_with_its_signatures_only(setup: Setup, mark: str) -> None:
    name = setup.name("signed/load:1")
    text = refused(lambda: load(setup, archive(name, lambda _: [])))
    assert "it is not signed" in text
    by_other = archive(name, lambda digest: [simple(setup.keys["other"], payload(digest, name))], mark=mark)
    assert "signed by another key" in refused(lambda: load(setup, by_other))
    load(setup, archive(name, lambda digest: [simple(setup.keys["p256"], payload(digest, name))], mark=mark))
    assert names(setup) == [name]


def test_an_archive_cannot_claim_another_origin_or_another_name(setup: Setup) -> None:
    signed, free = setup.name("signed/load:1"), setup.name("free/load:1")
    for body, name in (
        (archive(signed, lambda _: [], reference=free), ""),
        (archive(free, lambda _: [], reference=signed), ""),
        (archive("alias:latest", lambda _: [], reference=signed), ""),
        (archive(free, lambda _: []), signed),
        (archive(signed, lambda _: []), "alias"),
    ):
        refused(lambda body=body, name=name: load(setup, body, name))  # type: ignore[misc]
    assert names(setup) == []
    load(setup, archive(free, lambda _: []))


def test_a_plugin_that_is_made_here_may_not_have_a_name_that_must_be_signed(setup: Setup, tmp_path: Path) -> None:
    name, house = setup.name("signed/made:1"), setup.house
    assert f"cannot create {name}: it would not be signed" in refused(lambda: house.create(name))
    push(setup.host, "free/image", "1", make(config_type=IMAGE))
    remote = setup.name("free/image:1")

    def create_from(name: str, remote: str) -> Any:
        return house.request("POST", f"/moorage/v1/create?name={name}&remote={remote}", package(config()))

    status, raw = create_from(name, remote)
    assert (status, b"it would not be signed" in raw) == (403, True), raw
    house.create(setup.name("free/made:1"))
    assert names(setup) == [setup.name("free/made:1")]


def test_an_image_that_must_be_signed_makes_no_plugin_without(setup: Setup) -> None:
    base = layer({"x": b"1"})
    diff_ids = [digest_of(gzip.decompress(base.data))]
    image = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    made = Made(Blob(json.dumps(image).encode(), IMAGE), (base,))
    digest = push(setup.host, "signed/image", "1", made)
    body = tar_of({"config.json": json.dumps(config()).encode()})

    def create() -> Any:
        remote = setup.name("signed/image:1")
        return setup.house._streamed(f"/moorage/v1/create?name=made&remote={remote}", body, {})

    assert "it is not signed" in refused(create)
    assert not setup.layers_read(made)
    setup.sign("signed/image", digest)
    create()
    assert names(setup) == ["made:latest"]


def test_an_engine_does_not_start_with_a_key_that_cannot_be_used(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"trusted_keys": {"*": [str(tmp_path / "none.pub")]}}))
    base = Path("/run") / f"mt-{tmp_path.name[-8:]}-{os.getpid()}"
    done = subprocess.run(
        ["env", f"MOORAGE_ROOT={tmp_path}/root", f"MOORAGE_EXEC_ROOT={base}",
         sys.executable, "-m", "moorage", "serve", "--grants", str(policy)],
        capture_output=True, text=True, timeout=limit(60), check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"cannot read trusted key {tmp_path}/none.pub: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
    if base.exists():
        base.rmdir()  # which it can only if nothing is in it


def test_the_commands_of_the_guide_work_as_they_stand(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    page = (Path(__file__).parents[2] / "docs/guide/packages.md").read_text()
    section = page.partition("## Packages that must be signed\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)
    commands = [line.strip() for block in blocks for line in block.splitlines() if line[4:8] in ("open", "moor")]
    assert [each.split()[:2] for each in commands] == [
        ["openssl", "genpkey"],
        ["openssl", "pkey"],
        ["moorage", "serve"],
        ["moorage", "install"],
    ]
    document = next(block for block in blocks if block.startswith("    {"))
    etc, base = tmp_path / "etc", tmp_path / "engine"
    for directory in (etc / "keys", base):
        directory.mkdir(parents=True)
    with serve_registry(tmp_path / "registry") as registry:
        usual = {"/etc/moorage": str(etc), "registry.lan": registry.host, "team.key": str(tmp_path / "team.key")}

        def here(text: str) -> str:
            for name, workspace in usual.items():
                text = text.replace(name, workspace)
            return text

        for command in commands[:2]:
            subprocess.run(shlex.split(here(command)), check=True, capture_output=True)
        digest = push(registry.host, "team/sshfs", "1.2", make(config()))
        path = etc / "policy.json"
        path.write_text(here(document))
        pair = Signer(tmp_path / "team.key", etc / "keys/team.pub")
        with engine(base, policy=json.loads(path.read_text())) as house:
            install = [sys.executable, "-m", *shlex.split(here(commands[3]))]
            environment = {**os.environ, "MOORAGE_HOST": f"unix://{house.socket}"}
            done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False, input="y\n")
            assert done.returncode == 1
            assert "it is not signed" in done.stderr
            push_tag(
                registry.host, "team/sshfs", digest, [simple(pair, payload(digest, f"{registry.host}/team/sshfs"))]
            )
            done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            house.remove(f"{registry.host}/team/sshfs:1.2", force=True)


@pytest.mark.parametrize("page", ["guide/packages.md", "reference/config.md"])
def test_the_policies_of_the_pages_are_read(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    begin = re.search(r"^( *)\{\n *\"trusted_keys\"", text, re.MULTILINE)
    assert begin is not None
    document = text[begin.start() : text.index(f"\n{begin[1]}}}", begin.end())] + "}"
    assert parse_policy(document.encode()).trusted_keys.rules
