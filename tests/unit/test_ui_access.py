"""Addresses, origins and tokens of the page: what is taken, and what is refused with a reason."""

from pathlib import Path

import pytest

from moorage import errors
from moorage.ui.access import Access, read_token
from moorage.ui.address import parse_listen, parse_origin


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8377", ("127.0.0.1", 8377)),
        (":0", ("127.0.0.1", 0)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("127.9.9.9:80", ("127.9.9.9", 80)),
    ],
)
def test_u22_an_address_of_this_machine_is_taken(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8377",
        "127.0.0.1",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "0.0.0.0:80",
        "192.0.2.1:80",
        f"127.0.0.1:{'9' * 5000}",
    ],
)
def test_u22_any_other_address_is_refused(text: str) -> None:
    with pytest.raises(errors.Invalid, match="cannot serve the page on"):
        parse_listen(text)


def test_u22_an_origin_is_https_and_a_host() -> None:
    assert parse_origin("https://Plugins.example.org") == "https://plugins.example.org"
    assert parse_origin("https://h:8443/") == "https://h:8443"
    for wrong in (
        "http://h",
        "https://",
        "h",
        "https://h/path",
        "https://u@h",
        "https://h?q",
        "https://[h",
        "https://h:x",
    ):
        with pytest.raises(errors.Invalid, match="cannot use origin"):
            parse_origin(wrong)


def test_u22_a_token_file_is_made_for_its_owner_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_token(path)
    assert (len(token) >= 43, read_token(path), path.stat().st_mode & 0o777) == (True, token, 0o600)
    assert read_token(None) != read_token(None)
    path.chmod(0o640)
    with pytest.raises(errors.Invalid, match="chmod 600"):
        read_token(path)
    for wrong in ("", "short", "x" * 19, "two words are no token at all", "\udcff" * 3):
        path.chmod(0o600)
        path.write_bytes(wrong.encode(errors="surrogateescape"))
        with pytest.raises(errors.Invalid, match="must have one token"):
            read_token(path)


@pytest.mark.parametrize("text", ["", "wrong", "x" * 100_000, "\udc80", "ü"])
def test_u22_a_wrong_token_is_no_token(text: str) -> None:
    access = Access("right-token-right-token", 80)
    assert not access.is_token(text)
    assert access.is_token("right-token-right-token")
