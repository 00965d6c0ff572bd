"""Origins of URLs, and which names are insecure by what they resolve to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from moorage.plugins import parse_reference
from moorage.registry._connections import transport_error
from moorage.registry.hosts import Hosts, Options
from moorage.registry.origin import Origin, is_same_host, is_same_reference, resolve_location, split_host

pytestmark = [pytest.mark.quick, pytest.mark.anyio]

BASE = URL("http://127.0.0.1:5000/v2/a/blobs/uploads/")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("https://registry.lan/a", "https://REGISTRY.lan:443/b?c"),
        ("http://registry.lan", "HTTP://registry.lan:80"),
        ("https://registry.lan", "https://registry.lan./"),
        ("https://[::1]:5000", "https://[0:0:0::0001]:5000"),
        ("https://me:secret@registry.lan", "https://registry.lan"),
    ],
)
def test_case_209_urls_of_one_server_have_one_origin(first: str, second: str) -> None:
    assert Origin.of(URL(first, encoded=True)) == Origin.of(URL(second, encoded=True))


@pytest.mark.parametrize(
    "other",
    [
        "http://registry.lan",
        "https://registry.lan:444",
        "https://registry.lan.evil.test",
        "https://a.registry.lan",
        "https://registry.lan:80",
    ],
)
def test_case_209_another_scheme_host_or_port_is_another_origin(other: str) -> None:
    assert Origin.of(URL("https://registry.lan")) != Origin.of(URL(other))


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/v2/x?_state=a%2Bb%3D", "http://127.0.0.1:5000/v2/x?_state=a%2Bb%3D"),
        ("?again=1", "http://127.0.0.1:5000/v2/a/blobs/uploads/?again=1"),
        ("HTTPS://Registry.LAN:443/%2f?X=%2B", "https://registry.lan/%2f?X=%2B"),
        ("http://u:p@[0::1]:5000/x#part", "http://[::1]:5000/x"),
        ("/a b/\u00e9", "http://127.0.0.1:5000/a%20b/%C3%A9"),
        ("/x\udcc3\udca9", "http://127.0.0.1:5000/x%C3%A9"),
    ],
)
def test_case_209_a_location_keeps_path_and_query_byte_for_byte(location: str, expected: str) -> None:
    assert str(resolve_location(BASE, location)) == expected


@given(st.text(max_size=60))
def test_case_209_any_text_is_a_location_of_a_server_or_a_value_error(text: str) -> None:
    for location in (text, f"http://{text}/", f"http://h{text}", f"//{text}"):
        try:
            url = resolve_location(BASE, location)
        except ValueError:
            continue
        assert url.scheme in ("http", "https")
        assert Origin.of(url).host
        assert url.user is None
        assert str(url).isascii()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("Registry.LAN", "registry.lan", None),
        ("registry.lan:5000", "registry.lan", 5000),
        ("[::1]:5000", "::1", 5000),
        ("[::1]", "::1", None),
        ("0::1", "::1", None),
        ("", "", None),
    ],
)
def test_case_209_hosts_as_users_write_them(text: str, host: str, port: int | None) -> None:
    assert split_host(text) == (host, port)


def test_case_209_docker_io_has_two_names() -> None:
    assert is_same_host("index.docker.io", "docker.io")
    assert not is_same_host("docker.io:5000", "docker.io")


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("Registry.LAN/a/b:1", "registry.lan:443/a/b:1", True),
        ("index.docker.io/a/b:1", "a/b:1", True),
        ("registry.lan/a/b:1", "registry.lan/a/b:2", False),
        ("registry.lan/a/b:1", "registry.lan:5000/a/b:1", False),
        ("registry.lan/a/b:1", "registry.lan/a/c:1", False),
    ],
)
def test_case_209_references_mean_one_package_however_the_host_is_written(
    first: str, second: str, is_same: bool
) -> None:
    assert is_same_reference(parse_reference(first), parse_reference(second)) == is_same


# names that are insecure by their addresses


class Names:
    """Names with addresses; which were looked up is noted."""

    def __init__(self, **addresses: tuple[str, ...]) -> None:
        self._addresses = {name.replace("_", "."): each for name, each in addresses.items()}
        self.requested: list[str] = []

    async def __call__(self, host: str) -> tuple[str, ...]:
        self.requested.append(host)
        if host not in self._addresses:
            raise OSError("no such name")
        return self._addresses[host]


def hosts(names: Names, *insecure: str, environ: dict[str, str] | None = None) -> Hosts:
    return Hosts(Options(insecure, environ=environ or {}), lookup=names)


@pytest.mark.parametrize(
    ("addresses", "insecure", "expected"),
    [
        (("127.0.0.1",), (), True),
        (("127.9.9.9", "::1"), (), True),
        (("::ffff:127.0.0.1",), (), True),
        (("127.0.0.1", "10.0.0.1"), (), False),
        (("10.0.0.1",), ("10.0.0.0/8",), True),
        (("10.0.0.1", "127.0.0.1"), ("10.0.0.0/8",), True),
        (("10.0.0.1", "11.0.0.1"), ("10.0.0.0/8",), False),
        (("10.0.0.1",), ("10.0.0.1",), True),
        (("10.0.0.1",), ("https://registry.lan:5000/",), True),
        (("10.0.0.1",), ("http://registry.lan",), True),
        (("10.0.0.1",), ("http://other.lan",), False),
        (("10.0.0.1",), ("10.0.0.0/8:5000",), True),
        (("10.0.0.1",), ("10.0.0.0/8:5001",), False),
        (("fd00::5",), ("fd00::/8",), True),
        (("10.0.0.1",), ("0.0.0.0/0",), True),
        ((), ("0.0.0.0/0",), False),
    ],
)
async def test_case_249_every_address_of_a_name_must_be_in_an_insecure_network(
    addresses: tuple[str, ...], insecure: tuple[str, ...], expected: bool
) -> None:
    decided = hosts(Names(registry_lan=addresses), *insecure)
    assert await decided.is_insecure(URL("https://Registry.LAN:5000")) == expected
    by_name = any("registry.lan" in each for each in insecure)
    assert dict(decided.pinned) == ({"registry.lan": addresses} if expected and not by_name else {})


async def test_case_213_a_name_is_resolved_once_and_only_where_that_decides() -> None:
    names = Names(registry_lan=("127.0.0.1",))
    decided = hosts(names, "named.lan")
    for _ in range(3):
        assert await decided.is_insecure(URL("https://registry.lan:5000"))
        assert await decided.is_insecure(URL("https://named.lan"))
        assert await decided.is_insecure(URL("https://localhost:5000"))
        assert not await decided.is_insecure(URL("https://registry-1.docker.io"))
        assert not await decided.is_insecure(URL("https://10.0.0.1"))
    assert names.requested == ["registry.lan"]
    assert not await hosts(names).is_insecure(URL("https://nowhere.lan"))


async def test_case_213_a_name_behind_a_proxy_is_not_resolved() -> None:
    names = Names(registry_lan=("127.0.0.1",))
    assert not await hosts(names, environ={"HTTPS_PROXY": "http://p:1"}).is_insecure(URL("https://registry.lan"))
    assert names.requested == []


async def test_case_213_what_a_secure_registry_refers_to_is_not_insecure_by_its_address() -> None:
    names = Names(auth_lan=("127.0.0.1",), lab_lan=("127.0.0.1",))
    decided = hosts(names)
    auth, secure, lab = URL("http://auth.lan"), URL("https://secure.lan"), URL("https://lab.lan")
    assert not await decided.is_insecure(auth, referrer=secure)
    assert await decided.is_insecure(auth, referrer=lab)


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        (None, "[::1]:5000 does not answer in time"),
        (URL("http://[fd00::1]:3128"), "[::1]:5000 (through the proxy [fd00::1]:3128) does not answer in time"),
    ],
)
def test_case_209_errors_write_an_ipv6_address_in_brackets(proxy: URL | None, words: str) -> None:
    assert str(transport_error(TimeoutError(), URL("https://[::1]:5000/v2/"), proxy)) == words
