"""Which URL a registry is spoken to with, through which proxy, and which certificates count."""

import ssl
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from moorage import errors
from moorage.registry._retry import retry_after
from moorage.registry._trust import is_loopback, system_context
from moorage.registry.hosts import Endpoint, Hosts, Options, proxy_for

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


def options(insecure: tuple[str, ...] = (), mirrors: tuple[str, ...] = (), *directories: Path) -> Options:
    return Options(insecure, mirrors, directories, environ={})


def hosts_for(options: Options, **addresses: tuple[str, ...]) -> Hosts:
    """With names that have these addresses, and no others; underscores are dots."""
    known = {name.replace("_", "."): each for name, each in addresses.items()}

    async def lookup(host: str) -> tuple[str, ...]:
        if host not in known:
            raise OSError(f"no such name: {host}")
        return known[host]

    return Hosts(options, lookup=lookup)


async def schemes(host: str, given: Options | None = None) -> list[str]:
    (endpoint,) = await hosts_for(given or options()).endpoints(host, is_pull=True)
    assert endpoint.name == host
    return [url.scheme for url in endpoint.urls]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:5000", "127.0.0.1", "127.9.9.9:5000", "[::1]", "[::1]:5000"])
async def test_d06_loopback_may_be_spoken_to_in_plain_http(host: str) -> None:
    assert await schemes(host) == ["https", "http"]


@pytest.mark.parametrize(
    "host",
    ["registry.lan", "registry.lan:80", "10.0.0.1:5000", "[fe80::1]:5000", "localhost.lan", "128.0.0.1"],
)
async def test_d06_other_users_are_denied(host: str) -> None:
    assert await schemes(host) == ["https"]


@pytest.mark.parametrize(
    ("host", "entry", "is_marked"),
    [
        ("registry.lan", "registry.lan", True),
        ("registry.lan:5000", "Registry.LAN", True),
        ("registry.lan:5000", "registry.lan:5000", True),
        ("registry.lan:5001", "registry.lan:5000", False),
        ("registry.lan", "registry.lan:443", True),
        ("registry.lan:443", "registry.lan:443", True),
        ("a.registry.lan", "registry.lan", False),
        ("10.1.2.3:5000", "10.0.0.0/8", True),
        ("11.1.2.3:5000", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("[fd00::1]:5000", "fd00::/8", True),
        ("[fd00::1]:5000", "[fd00::1]:5000", True),
        ("[fd00::1]:5000", "[fd00::1]", True),
        ("registry.lan", "", False),
        ("registry.lan", "10.0.0.0/99", False),
    ],
)
async def test_d06_hosts_are_marked_insecure_by_name_or_network(host: str, entry: str, is_marked: bool) -> None:
    assert ("http" in await schemes(host, options((entry,)))) == is_marked


async def test_d06_docker_io_is_registry_1_and_has_mirrors_for_pulls_only() -> None:
    hosts = hosts_for(
        options(mirrors=("https://mirror.lan/", "mirror.lan:5000/sub", "http://localhost:1"), insecure=())
    )
    hub = Endpoint("docker.io", (URL("https://registry-1.docker.io"),))
    assert await hosts.endpoints("docker.io", is_pull=False) == [hub]
    *mirrors, last = await hosts.endpoints("docker.io", is_pull=True)
    assert last == hub
    assert [(each.name, str(each.urls[0]).rstrip("/"), each.is_mirror) for each in mirrors] == [
        ("mirror.lan", "https://mirror.lan", True),
        ("mirror.lan:5000", "https://mirror.lan:5000/sub", True),
        ("localhost:1", "http://localhost:1", True),
    ]
    assert len(await hosts.endpoints("quay.io", is_pull=True)) == 1


@pytest.mark.parametrize(
    "mirror",
    ["http://mirror.lan", "ftp://mirror.lan", "https://", "https://u:p@mirror.lan", "https://m/?x=1", "http://["],
)
async def test_d06_a_mirror_that_cannot_be_used_is_refused(mirror: str) -> None:
    with pytest.raises(errors.Invalid, match="cannot use the mirror"):
        await hosts_for(options(mirrors=(mirror,))).endpoints("docker.io", is_pull=True)


def verifies(context: ssl.SSLContext | Literal[False]) -> bool:
    """By what the machine trusts, and by nothing else: the one context that is never changed."""
    return context is system_context() and context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname


async def test_d06_which_registries_are_verified(unblocked: None, tmp_path: Path) -> None:
    hosts = hosts_for(options(("insecure.lan",)))
    assert verifies(await hosts.context(URL("https://registry.lan")))
    assert await hosts.context(URL("https://insecure.lan")) is False
    assert await hosts.context(URL("https://127.0.0.1:5000")) is False
    assert verifies(await hosts.context(URL("https://auth.lan"), referrer=URL("https://insecure.lan")))


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    here = tmp_path / "registry.lan:5000"
    here.mkdir()
    return here


async def refused(tmp_path: Path, words: str) -> None:
    hosts = hosts_for(options((), (), tmp_path))
    with pytest.raises(errors.Invalid, match=words):
        await hosts.context(URL("https://registry.lan:5000"))
    assert verifies(await hosts.context(URL("https://registry.lan:5001")))


async def test_d06_certificates_that_cannot_be_used_are_reported(certificates: Path, tmp_path: Path) -> None:
    (certificates / "a.crt").write_text("nonsense")
    await refused(tmp_path, r"cannot use the certificate .*a\.crt")


async def test_d06_the_cas_of_a_registry_count_for_those_it_refers_to(certificates: Path, tmp_path: Path) -> None:
    (certificates / "a.crt").write_text("nonsense, which tells that it is read")
    hosts = hosts_for(options((), (), tmp_path))
    with pytest.raises(errors.Invalid, match=r"a\.crt"):
        await hosts.context(URL("https://auth.lan"), referrer=URL("https://registry.lan:5000"))
    assert verifies(await hosts.context(URL("https://auth.lan")))


async def test_d06_a_certificate_without_its_key_is_reported(certificates: Path, tmp_path: Path) -> None:
    (certificates / "a.cert").write_text("nonsense")
    await refused(tmp_path, r"there is no a\.key beside it")
    (certificates / "a.key").write_text("nonsense")
    await refused(tmp_path, r"cannot use the certificate .*a\.cert with a\.key")


async def test_d06_a_key_without_its_certificate_is_reported(certificates: Path, tmp_path: Path) -> None:
    (certificates / "a.key").write_text("nonsense")
    await refused(tmp_path, r"there is no a\.cert beside it")


async def test_d06_a_ca_for_a_loopback_host_makes_it_one_that_is_verified(tmp_path: Path) -> None:
    (tmp_path / "localhost:5000").mkdir()
    (tmp_path / "localhost:5000" / "ca.crt").write_text("")
    given = options((), (), tmp_path)
    assert await schemes("localhost:5000", given) == ["https"]
    assert await schemes("localhost:5001", given) == ["https", "http"]


async def test_d06_no_name_leads_out_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "x.crt").write_text("nonsense")
    (tmp_path / "certs.d").mkdir()
    hosts = hosts_for(options((), (), tmp_path / "certs.d"))
    for url in (URL.build(scheme="https", host=".."), URL.build(scheme="https", host=".")):
        with pytest.raises(ValueError, match="not the URL of a server"):
            await hosts.context(url)


# proxies


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("https://a.lan", {}, None),
        ("https://a.lan", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://a.lan", {"https_proxy": "http://small:1", "HTTPS_PROXY": "http://large:1"}, "http://small:1"),
        ("https://a.lan", {"HTTPS_PROXY": "p:3128"}, "http://p:3128"),
        ("https://a.lan", {"HTTPS_PROXY": "http://me:pw@p:3128"}, "http://me:pw@p:3128"),
        ("https://a.lan", {"HTTP_PROXY": "http://p:3128"}, None),
        ("http://a.lan", {"HTTP_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://localhost:5000", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("https://127.0.0.2", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("https://[::1]", {"HTTPS_PROXY": "http://p:3128"}, None),
    ],
)
def test_d06_the_proxy_is_the_environments(url: str, environ: dict[str, str], expected: str | None) -> None:
    assert proxy_for(URL(url), environ) == (URL(expected) if expected else None)


@pytest.mark.parametrize(
    ("url", "exempt", "is_exempt"),
    [
        ("https://a.lan", "*", True),
        ("https://a.lan", "a.lan", True),
        ("https://a.lan", "x, LAN", True),
        ("https://a.lan", ".lan", True),
        ("https://a.lan", "*.lan", True),
        ("https://lan", "lan", True),
        ("https://alan", "lan", False),
        ("https://a.lan:5000", "a.lan:5000", True),
        ("https://a.lan:5000", "lan:5001", False),
        ("https://a.lan", "a.lan:443", True),
        ("https://10.1.2.3", "10.0.0.0/8", True),
        ("https://11.1.2.3", "10.0.0.0/8", False),
        ("https://10.1.2.3", "10.1.2.3", True),
        ("https://[fd00::1]", "fd00::/8", True),
        ("https://a.lan", ",, ,", False),
    ],
)
def test_d06_no_proxy_exempts_names_addresses_and_networks(url: str, exempt: str, is_exempt: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        found = proxy_for(URL(url), {"HTTPS_PROXY": "http://p:1", name: exempt})
        assert (found is None) == is_exempt


@pytest.mark.parametrize("proxy", ["socks5://p:1", "http://", "http://["])
def test_d06_an_invalid_proxy_is_reported(proxy: str) -> None:
    with pytest.raises(errors.Invalid, match="cannot use the proxy in HTTPS_PROXY"):
        proxy_for(URL("https://a.lan"), {"HTTPS_PROXY": proxy})


@given(st.text(), st.text())
def test_d06_no_environment_makes_it_fail_otherwise(proxy: str, exempt: str) -> None:
    try:
        proxy_for(URL("https://a.lan"), {"HTTPS_PROXY": proxy, "NO_PROXY": exempt})
    except errors.Invalid:
        pass


def test_d06_what_is_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "LocalHost", "127.0.0.1", "127.255.255.254", "::1")))
    assert not any(map(is_loopback, ("", "localhost.lan", "127.0.0.1.lan", "10.0.0.1", "::2", "0.0.0.0", "127.1")))


# Retry-After


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", 0),
        ("0", 0),
        (" 7 ", 7),
        ("99999999999999", 999999999),
        ("-1", 0),
        ("1.5", 0),
        ("soon", 0),
        ("Thu, 01 Jan 1970 00:20:00 GMT", 200),
        ("Thu, 01 Jan 1970 00:10:00 GMT", 0),
        ("Thu, 99 Jan 1970 00:10:00 GMT", 0),
        ("٣", 0),
    ],
)
def test_d05_a_pause_is_read_as_seconds_or_as_a_date(value: str, expected: float) -> None:
    assert retry_after(value, now=1000.0) == expected


@given(st.text())
def test_d05_no_pause_makes_it_fail(value: str) -> None:
    assert retry_after(value, now=0.0) >= 0
