"""Which registry the address of a log-in means."""

import pytest

from moorage import errors
from moorage.registry.login import registry_of

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry.lan", "registry.lan"),
        ("registry.lan:5000", "registry.lan:5000"),
        ("http://registry.lan:5000/v2/", "registry.lan:5000"),
        ("https://registry.lan/a/b?c", "registry.lan"),
        ("localhost", "localhost"),
        ("localhost:5000", "localhost:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("registry", "registry"),
        ("registry/team", "registry"),
    ],
)
def test_case_244_an_address_means_a_host(address: str, host: str) -> None:
    assert registry_of(address) == host


@pytest.mark.parametrize(
    "address", ["me:secret@registry.lan", "ftp://registry.lan", "a b", "..", "-", "h:x", "[::1", "\x1b"]
)
def test_case_244_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(errors.Invalid, match="it is not the address of a registry"):
        registry_of(address)
