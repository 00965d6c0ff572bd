"""The registry client against Debian's docker-registry: in plain http, with a log-in, with tokens, with TLS."""

import base64
import hashlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage import errors
from moorage.oci.manifest import RawManifest
from moorage.plugins import Reference, parse_reference
from moorage.registry.credentials import Credentials, CredentialsFor, credentials_for, decode_registry_auth
from moorage.registry.docker_config import DockerConfig
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from support.registries import PASSWORD, USER, Authority, Pair, Served, htpasswd, serve_proxy, serve_registry
from support.token_server import Tokens

pytestmark = [pytest.mark.real, pytest.mark.anyio, pytest.mark.needs("docker-registry", "openssl")]

SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"
OCI = "application/vnd.oci.image.manifest.v1+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.docker.plugin.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
CONFIG, LAYER = b'{"a": 1}\n', os.urandom(3_000_000)
NO_PROXY = Options(environ={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registries")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Served]:
    with serve_registry(folder / "plain") as served:
        yield served


@pytest.fixture(scope="module")
def with_login(folder: Path) -> Iterator[Served]:
    with serve_registry(folder / "login", auth=htpasswd(folder)) as served:
        yield served


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder / "ca")


@pytest.fixture(scope="module")
def server_pair(authority: Authority) -> Pair:
    return authority.issue("server", "DNS:registry.test,DNS:registry-1.docker.io,IP:127.0.0.1")


@pytest.fixture(scope="module")
def with_tls(folder: Path, server_pair: Pair) -> Iterator[Served]:
    tls = {"certificate": str(server_pair.certificate), "key": str(server_pair.key)}
    with serve_registry(folder / "tls", tls=tls) as served:
        yield served


@pytest.fixture(scope="module")
def with_client_tls(folder: Path, server_pair: Pair, authority: Authority) -> Iterator[Served]:
    tls = {
        "certificate": str(server_pair.certificate),
        "key": str(server_pair.key),
        "clientcas": [str(authority.pair.certificate)],
    }
    with serve_registry(folder / "client-tls", tls=tls) as served:
        yield served


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chunks_of(data: bytes) -> Callable[[], AsyncGenerator[bytes, None]]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    return chunks


def manifest_of(media_type: str = SCHEMA2) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(CONFIG), "size": len(CONFIG)},
        "layers": [{"mediaType": LAYER_TYPE, "digest": digest_of(LAYER), "size": len(LAYER)}],
    }
    return json.dumps(document).encode()


def index_of(media_type: str, entry: RawManifest) -> bytes:
    platform = {"architecture": "amd64", "os": "linux"}
    item = {
        "mediaType": entry.media_type, "digest": entry.digest, "size": len(entry.data), "platform": platform
    }  # fmt: skip
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": [item]}).encode()


async def push(reference: Reference, **how: Any) -> str:
    """A whole plugin under a tag; its digest."""
    async with Registry(reference, "push", **{"options": NO_PROXY, **how}) as registry:
        for data in (CONFIG, LAYER):
            await registry.push_blob(digest_of(data), len(data), chunks_of(data))
        return await registry.push_manifest(reference.tag or "", manifest_of(), SCHEMA2)


async def pull(reference: Reference, **how: Any) -> RawManifest:
    """A whole plugin, its layer compared with what was pushed."""
    async with Registry(reference, **{"options": NO_PROXY, **how}) as registry:
        manifest = await registry.resolve(reference)
        assert await read(registry.read_blob(digest_of(LAYER), len(LAYER))) == LAYER
        return manifest


async def read(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def uploads_left(served: Served, name: str) -> list[Path]:
    """The uploads to a repository that were begun and not ended."""
    return list((served.log.parent / "data").rglob(f"{name}/_uploads/*/startedat"))


def me(host: str, password: str = PASSWORD) -> CredentialsFor:
    return credentials_for(host, Credentials(USER, password))


# manifests and blobs


@pytest.mark.parametrize(("media_type", "index_type"), [(SCHEMA2, LIST), (OCI, INDEX)])
async def test_d03_what_is_pushed_is_what_is_resolved(plain: Served, media_type: str, index_type: str) -> None:
    here = parse_reference(f"{plain.host}/some/{'oci' if media_type == OCI else 'docker'}:1")
    await push(here)
    async with Registry(here, "push", options=NO_PROXY) as registry:
        data = manifest_of(media_type)
        digest = await registry.push_manifest("1", data, media_type)
        manifest = RawManifest(data, media_type, digest_of(data))
        assert digest == manifest.digest
        await registry.push_manifest("index", index := index_of(index_type, manifest), index_type)
    async with Registry(here, options=NO_PROXY) as registry:
        assert await registry.resolve(here) == manifest
        assert await registry.resolve(parse_reference(f"{here.name}:other@{digest}")) == manifest
        assert await registry.resolve(parse_reference(f"{here.name}:index")) == RawManifest(
            index, index_type, digest_of(index)
        )
        assert await registry.read_manifest(digest) == manifest


async def test_d03_a_blob_is_read_from_anywhere(plain: Served) -> None:
    here = parse_reference(f"{plain.host}/a/blob:1")
    await push(here)
    async with Registry(here, options=NO_PROXY) as registry:
        for offset in (0, 1, len(LAYER) - 1, len(LAYER)):
            assert await read(registry.read_blob(digest_of(LAYER), len(LAYER), offset)) == LAYER[offset:]
        assert await registry.has_blob(digest_of(LAYER))
        assert not await registry.has_blob(digest_of(b"other"))


async def test_d03_what_is_not_there_is_not_found(plain: Served) -> None:
    here = parse_reference(f"{plain.host}/a/missing:1")
    async with Registry(here, options=NO_PROXY) as registry:
        with pytest.raises(errors.NotFound, match=f"manifest 1 in {plain.host}/a/missing: .* 404 .*: manifest unknown"):
            await registry.resolve(here)
        with pytest.raises(errors.NotFound, match=f"read sha256:.* in {plain.host}/a/missing: .* 404"):
            await read(registry.read_blob(digest_of(b"other"), 5))
        with pytest.raises(errors.Invalid, match="from the repository"):
            await registry.resolve(parse_reference(f"{plain.host}/a/other"))


async def test_d03_a_size_that_is_not_the_promised_one_is_refused(plain: Served) -> None:
    here = parse_reference(f"{plain.host}/a/size:1")
    await push(here)
    async with Registry(here, options=NO_PROXY) as registry:
        for size_bytes, offset in ((len(LAYER) - 1, 0), (len(LAYER) + 1, 0), (len(LAYER) - 1, 5)):
            with pytest.raises(
                errors.InvalidResponse, match=f"it has {len(LAYER)} bytes where {size_bytes} were promised"
            ):
                await read(registry.read_blob(digest_of(LAYER), size_bytes, offset))
        with pytest.raises(errors.Invalid, match="416"):
            await read(registry.read_blob(digest_of(LAYER), len(LAYER) + 10, len(LAYER) + 5))


async def test_d04_a_blob_of_another_repository_is_mounted(plain: Served) -> None:
    there, here = (parse_reference(f"{plain.host}/a/{name}:1") for name in ("source", "target"))
    await push(there)
    async with Registry(here, "push", options=NO_PROXY) as registry:
        assert not await registry.mount_blob(digest_of(LAYER), "a/nowhere")
        assert not await registry.has_blob(digest_of(LAYER))
        assert await registry.mount_blob(digest_of(LAYER), there.path)
        assert await registry.has_blob(digest_of(LAYER))
    assert uploads_left(plain, "target") == []


async def test_d04_a_source_that_is_no_such_blob_is_refused(plain: Served) -> None:
    here = parse_reference(f"{plain.host}/a/bad:1")
    async with Registry(here, "push", options=NO_PROXY) as registry:
        for size_bytes, words in ((10, "has more than 10 bytes"), (len(LAYER) + 1, "ends 1 bytes early")):
            with pytest.raises(errors.Invalid, match=words):
                await registry.push_blob(digest_of(LAYER), size_bytes, chunks_of(LAYER))
        with pytest.raises(errors.Invalid, match="digest"):
            await registry.push_blob(digest_of(b"other"), len(LAYER), chunks_of(LAYER))
        with pytest.raises(errors.Invalid, match="400"):
            await registry.push_manifest("1", manifest_of(), SCHEMA2)
        await registry.push_blob(digest_of(b""), 0, chunks_of(b""))
        assert await registry.has_blob(digest_of(b""))


async def test_d04_a_source_that_fails_fails_as_itself(plain: Served) -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield LAYER[:1000]
        raise errors.Conflict("the disk is gone")

    async with Registry(parse_reference(f"{plain.host}/a/b"), "push", options=NO_PROXY) as registry:
        with pytest.raises(errors.Conflict, match="the disk is gone"):
            await registry.push_blob(digest_of(LAYER), len(LAYER), chunks)


# log-in


async def test_d05_a_login_is_needed_and_does(with_login: Served) -> None:
    here = parse_reference(f"{with_login.host}/a/b:1")
    for credentials, words in ((None, "no credentials were given"), (me(here.host, "wrong"), "with the credentials")):
        with pytest.raises(errors.Unauthorized, match=f"{here.host} answers 401 .*: authentication required.*{words}"):
            await pull(here, credentials=credentials)
        with pytest.raises(errors.Unauthorized, match="authentication required"):
            await push(here, credentials=credentials)
    digest = await push(here, credentials=me(here.host))
    assert (await pull(here, credentials=me(here.host))).digest == digest
    header = base64.urlsafe_b64encode(json.dumps({"username": USER, "password": PASSWORD}).encode()).decode()
    given = credentials_for(here.host, decode_registry_auth(header))
    assert (await pull(here, credentials=given)).digest == digest


async def test_d05_the_login_of_dockers_config_does(
    with_login: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = parse_reference(f"{with_login.host}/a/config:1")
    await push(here, credentials=me(here.host))
    config = tmp_path / "config.json"
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    config.write_text(json.dumps({"auths": {here.host: {"auth": auth}}}))
    await pull(here, credentials=DockerConfig(config))
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        f'#!/bin/sh\nread -r server\n[ "$1 $server" = "get {here.host}" ] || exit 9\n'
        f"""printf '{{"ServerURL": "%s", "Username": "{USER}", "Secret": "{PASSWORD}"}}' "$server"\n"""
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for document in ({"credsStore": "test"}, {"credHelpers": {here.host: "test"}, "credsStore": "other"}):
        config.write_text(json.dumps(document))
        await pull(here, credentials=DockerConfig(config))


@pytest.mark.parametrize("knows_plugins", [True, False])
async def test_d05_tokens_for_both_classes_open_a_registry(
    tmp_path: Path, authority: Authority, knows_plugins: bool
) -> None:
    tokens = Tokens(authority, knows_plugins=knows_plugins)
    async with tokens.serve() as realm:
        with serve_registry(tmp_path / "r", auth=tokens.section(realm)) as served:
            here = parse_reference(f"{served.host}/a/b:1")
            await push(here, credentials=me(here.host))
            count = len(tokens.scopes)
            assert count == (1 if knows_plugins else 2)
            both = ["repository(plugin):a/b:pull,push", "repository:a/b:pull,push"]
            assert tokens.scopes == [both, both[1:]][:count]
            await pull(here)
            with pytest.raises(errors.Unauthorized, match="no credentials were given"):
                await push(here)
            identity = credentials_for(here.host, Credentials(identity_token="refresh"))
            await push(parse_reference(f"{served.host}/a/c:1"), credentials=identity)
            assert tokens.forms[-1]["grant_type"] == "refresh_token"
            async with Registry(parse_reference(f"{served.host}/a/d"), "push", credentials=me(here.host)) as registry:
                assert await registry.mount_blob(digest_of(LAYER), "a/b")


# hosts


def certificates(folder: Path, host: str, authority: Authority | None, client: Pair | None = None) -> Options:
    """A directory like certs.d for one host."""
    here = folder / "certs.d" / host
    here.mkdir(parents=True)
    if authority:
        (here / "ca.crt").write_bytes(authority.pair.certificate.read_bytes())
    if client:
        (here / "client.cert").write_bytes(client.certificate.read_bytes())
        (here / "client.key").write_bytes(client.key.read_bytes())
    return Options(certificate_directories=(folder / "certs.d",), environ={})


async def test_d06_loopback_is_spoken_to_in_tls_where_it_speaks_it(with_tls: Served, tmp_path: Path) -> None:
    here = parse_reference(f"{with_tls.host}/a/b:1")
    await push(here)
    await pull(here)
    assert "HTTP request to an HTTPS server" not in with_tls.text()


async def test_d06_a_ca_of_certs_d_is_checked_also_on_loopback(
    with_tls: Served, plain: Served, tmp_path: Path, authority: Authority
) -> None:
    await push(
        parse_reference(f"{with_tls.host}/a/b:1"), options=certificates(tmp_path / "1", with_tls.host, authority)
    )
    other = certificates(tmp_path / "2", with_tls.host, Authority(tmp_path / "ca"))
    with pytest.raises(errors.Unavailable, match=f"the certificate of {with_tls.host} cannot be trusted"):
        await pull(parse_reference(f"{with_tls.host}/a/b:1"), options=other)
    here = certificates(tmp_path / "3", plain.host, authority)
    with pytest.raises(errors.Unavailable, match=f"{plain.host} does not speak TLS"):
        await pull(parse_reference(f"{plain.host}/a/b:1"), options=here)


async def test_d06_a_client_certificate_of_certs_d_is_shown(
    with_client_tls: Served, tmp_path: Path, authority: Authority
) -> None:
    here = parse_reference(f"{with_client_tls.host}/a/b:1")
    pair = authority.issue("client", "DNS:me")
    await push(here, options=certificates(tmp_path / "1", here.host, authority, pair))
    await push(here, options=certificates(tmp_path / "2", here.host, None, pair))
    with pytest.raises(errors.Unavailable, match="refuses TLS with us"):
        await pull(here, options=certificates(tmp_path / "3", here.host, authority))
    with pytest.raises(errors.Unavailable, match="refuses TLS with us"):
        await pull(here)


async def test_d06_a_host_elsewhere_is_verified_through_the_proxy_of_the_environment(
    with_tls: Served, tmp_path: Path, authority: Authority
) -> None:
    here = parse_reference("registry.test/a/b:1")
    async with serve_proxy(with_tls.port) as proxy:
        environ = {"HTTPS_PROXY": proxy.url, "no_proxy": "other.test"}
        with pytest.raises(errors.Unavailable, match=r"registry\.test:443 .through the proxy .* cannot be trusted"):
            await push(here, options=Options(environ=environ))
        trusting = certificates(tmp_path, "registry.test", authority)
        options = Options(certificate_directories=trusting.certificate_directories, environ=environ)
        await push(here, options=options)
        assert set(proxy.lines) == {"CONNECT registry.test:443 HTTP/1.1"}
        await pull(here, options=Options(insecure=("registry.test",), environ=environ))
        exempt = Options(environ={**environ, "no_proxy": "test"})
        with pytest.raises(errors.Unavailable, match=r"registry\.test:443 cannot be reached"):
            await pull(here, options=exempt)


async def test_d06_case_029_plain_http_is_spoken_to_loopback_and_hosts_marked_insecure_only(plain: Served) -> None:
    here = parse_reference(f"registry.test:{plain.port}/a/plain:1")
    async with serve_proxy(plain.port) as proxy:
        environ = {"https_proxy": proxy.url, "http_proxy": proxy.url}
        with pytest.raises(errors.Unavailable, match=r"registry\.test:[0-9]+ .* does not speak TLS"):
            await push(here, options=Options(environ=environ))
        assert {line.split()[0] for line in proxy.lines} == {"CONNECT"}
        proxy.lines.clear()
        await push(here, options=Options(insecure=(here.host,), environ=environ))
        first, *others = proxy.lines
        assert first.startswith("CONNECT")
        assert {line.split()[0] for line in others} <= {"POST", "PUT"}


async def test_d06_mirrors_go_before_docker_io_for_pulls_only(
    plain: Served, with_login: Served, with_tls: Served, tmp_path: Path, authority: Authority
) -> None:
    trusting = certificates(tmp_path, "registry-1.docker.io", authority)
    here = parse_reference("vieux/sshfs:1")
    async with serve_proxy(with_tls.port) as proxy:
        options = Options(
            mirrors=("http://127.0.0.1:1", f"http://{with_login.host}", f"http://{plain.host}/"),
            certificate_directories=trusting.certificate_directories,
            environ={"https_proxy": proxy.url},
        )
        digest = await push(here, options=options)
        assert set(proxy.lines) == {"CONNECT registry-1.docker.io:443 HTTP/1.1"}
        assert "sshfs" not in with_login.text() + plain.text()
        assert (await pull(here, options=options, credentials=me("docker.io"))).digest == digest
        assert "sshfs" in with_login.text()
        assert "sshfs" in plain.text()
        proxy.lines.clear()
        await push(parse_reference(f"{plain.host}/vieux/sshfs:1"))
        assert (await pull(here, options=options)).digest == digest
        assert proxy.lines == []
