"""Registries whose names decide how they are spoken to: by what they resolve to, and by certificates of private CAs."""

import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage import errors
from moorage.plugins import parse_reference
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from support.limits import limit
from support.registries import Authority, Pair, Served, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.anyio, pytest.mark.needs("docker-registry", "openssl", "unshare")]

HAS_BLOB = """
import anyio, json, sys
from pathlib import Path
from moorage import errors
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from moorage.plugins import parse_reference
from moorage.timeouts import Timeouts

host, insecure, certificates = json.loads(sys.argv[1])
options = Options(tuple(insecure), certificate_directories=tuple(map(Path, certificates)), environ={})

async def main():
    async with Registry(parse_reference(f"{host}/a/b:1"), options=options, timeouts=Timeouts(registry_connect=5)) as it:
        try:
            print(await it.has_blob("sha256:" + "0" * 64))
        except errors.MoorageError as error:
            print(error)

anyio.run(main, backend_options={"use_uvloop": True})
"""
"""Whether a registry says that it does not have a blob, or why nothing is heard of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Served]:
    with serve_registry(folder / "plain") as served:
        yield served


@pytest.fixture(scope="module")
def bare_authority(folder: Path) -> Authority:
    """A CA as it is made by hand: without key identifiers, in it and in what it issues."""
    made = Authority(folder / "ca", has_key_identifiers=False)
    command = ["openssl", "x509", "-noout", "-text", "-in", str(made.pair.certificate)]
    assert b"Key Identifier" not in subprocess.run(command, capture_output=True, check=True).stdout
    return made


@pytest.fixture(scope="module")
def server_pair(bare_authority: Authority) -> Pair:
    return bare_authority.issue("server", "DNS:registry.test,DNS:localhost,IP:127.0.0.1")


@pytest.fixture(scope="module")
def with_tls(folder: Path, server_pair: Pair) -> Iterator[Served]:
    tls = {"certificate": str(server_pair.certificate), "key": str(server_pair.key)}
    with serve_registry(folder / "tls", tls=tls) as served:
        yield served


def probe(
    folder: Path, names: str, host: str, insecure: tuple[str, ...] = (), certificates: tuple[str, ...] = ()
) -> str:
    """What the client says of a registry where /etc/hosts has these names, in a mount namespace of its own."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{names}\n")
    script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
    inner = [sys.executable, "-c", HAS_BLOB, json.dumps([host, insecure, certificates])]
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(hosts), *inner]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10"])
def test_case_213_a_name_of_loopback_is_spoken_to_in_plain_http(plain: Served, tmp_path: Path, address: str) -> None:
    served = f"registry:{plain.port}"
    answered = probe(tmp_path, f"{address} registry", served)
    assert answered == "False" if address == "127.0.0.1" else "cannot be reached" in answered


def test_case_213_localhost_may_have_addresses_where_nothing_listens(plain: Served, tmp_path: Path) -> None:
    assert probe(tmp_path, "127.77.77.77 localhost", f"localhost:{plain.port}") == "False"


def test_case_213_every_address_must_be_loopback(plain: Served, tmp_path: Path) -> None:
    two = "127.0.0.1 registry\n10.255.255.254 registry"
    assert "does not speak TLS" in probe(tmp_path, two, f"registry:{plain.port}")


def test_case_249_a_name_counts_by_the_networks_that_are_insecure(plain: Served, tmp_path: Path) -> None:
    served, name = f"registry.test:{plain.port}", "127.0.0.1 registry.test"
    other = "10.255.255.254 registry.test"
    assert probe(tmp_path, name, served) == "False"
    assert "registry.test" in probe(tmp_path, "", served)  # no such name
    networks = ("10.0.0.0/8",)
    assert probe(tmp_path, f"{name}\n{other}", served, networks) == "False"
    assert "does not speak TLS" in probe(tmp_path, f"{name}\n{other}", served, ("11.0.0.0/8",))


def test_case_249_a_name_in_an_insecure_network_needs_no_trusted_certificate(with_tls: Served, tmp_path: Path) -> None:
    served, name = f"registry.test:{with_tls.port}", "127.0.0.1 registry.test"
    assert probe(tmp_path, name, served) == "False"
    assert "cannot be trusted" in probe(tmp_path, f"{name}\n10.255.255.254 registry.test", served)


def test_case_213_a_name_with_a_ca_of_its_own_is_verified_whatever_it_resolves_to(
    with_tls: Served, plain: Served, bare_authority: Authority, tmp_path: Path
) -> None:
    for port in (with_tls.port, plain.port):
        (tmp_path / f"certs.d/registry.test:{port}").mkdir(parents=True)
        (tmp_path / f"certs.d/registry.test:{port}/ca.crt").write_bytes(bare_authority.pair.certificate.read_bytes())
    certificates, name = (str(tmp_path / "certs.d"),), "127.0.0.1 registry.test other.test"
    assert probe(tmp_path, name, f"registry.test:{with_tls.port}", (), certificates) == "False"
    assert "does not speak TLS" in probe(tmp_path, name, f"registry.test:{plain.port}", (), certificates)


def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this Python make contexts as Python 3.13 does, also where it is older."""
    make = ssl.create_default_context

    def make_strict(*arguments: object, **named: object) -> ssl.SSLContext:
        context = make(*arguments, **named)  # type: ignore[arg-type] # handed on as they came
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", make_strict)


async def test_case_227_a_private_ca_without_key_identifiers_is_accepted_as_curl_does(
    with_tls: Served, bare_authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict(monkeypatch)
    certificates = tmp_path / "certs.d" / with_tls.host
    certificates.mkdir(parents=True)
    (certificates / "ca.crt").write_bytes(bare_authority.pair.certificate.read_bytes())
    reference = parse_reference(f"{with_tls.host}/a/b:1")
    for authority_folder, is_trusted in ((tmp_path / "certs.d", True), (_strange(tmp_path, with_tls), False)):
        options = Options(certificate_directories=(authority_folder,), environ={})
        async with Registry(reference, options=options) as registry:
            if is_trusted:
                assert not await registry.has_blob("sha256:" + "0" * 64)
            else:
                with pytest.raises(errors.Unavailable, match="cannot be trusted"):
                    await registry.has_blob("sha256:" + "0" * 64)


def _strange(tmp_path: Path, served: Served) -> Path:
    """A directory with another CA for this registry."""
    here = tmp_path / "other.d" / served.host
    here.mkdir(parents=True)
    (here / "ca.crt").write_bytes(Authority(tmp_path / "other").pair.certificate.read_bytes())
    return tmp_path / "other.d"
