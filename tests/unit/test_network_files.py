"""Case 240: the copies of /etc/hosts and /etc/resolv.conf are always the same files, and what the originals are."""

import os
from pathlib import Path

import pytest

from moorage import errors
from moorage.runs.network_files import NetworkFiles


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    return tmp_path / "etc"


def replace(path: Path, text: str) -> None:
    """As resolvconf and NetworkManager do."""
    path.with_name("new").write_text(text)
    path.with_name("new").rename(path)


def test_case_240_a_replaced_file_is_rewritten_as_the_same_inode(etc: Path, tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path / "run/network", etc)
    assert not files.exist()
    assert files.refresh() == []
    assert files.exist()
    with open(files.resolv_conf) as before:  # as a bind has it
        for text in ("nameserver 192.0.2.2\nsearch example.org\n", "nameserver 192.0.2.3\n", ""):
            replace(etc / "resolv.conf", text)
            assert files.refresh() == []
            before.seek(0)
            assert before.read() == text
        assert os.path.samestat(os.fstat(before.fileno()), os.stat(files.resolv_conf))
    assert Path(files.hosts).read_text() == "127.0.0.1 localhost\n"


def test_case_240_a_missing_file_is_noted_and_seen_when_it_comes(etc: Path, tmp_path: Path) -> None:
    (etc / "resolv.conf").unlink()
    (etc / "hosts").unlink()
    (etc / "hosts").symlink_to("nowhere")
    files = NetworkFiles(tmp_path / "network", etc)
    first, second = files.refresh()
    assert first.startswith(f"there is no {etc}/hosts on this host")
    assert second.startswith(f"there is no {etc}/resolv.conf on this host")
    assert Path(files.resolv_conf).read_bytes() == b""
    (etc / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    (etc / "nowhere").write_text("::1 localhost\n")
    assert files.refresh() == []
    assert Path(files.resolv_conf).read_text() == "nameserver 192.0.2.1\n"
    assert Path(files.hosts).read_text() == "::1 localhost\n"


@pytest.mark.parametrize("what", ["fifo", "directory", "huge"])
def test_case_240_what_is_no_usable_file_leaves_the_last_content(etc: Path, tmp_path: Path, what: str) -> None:
    files = NetworkFiles(tmp_path / "network", etc)
    files.refresh()
    (etc / "resolv.conf").unlink()
    if what == "fifo":
        os.mkfifo(etc / "resolv.conf")
    elif what == "directory":
        (etc / "resolv.conf").mkdir()
    else:
        (etc / "resolv.conf").write_bytes(bytes(2 << 20))
    (problem,) = files.refresh()
    assert str(etc / "resolv.conf") in problem
    assert Path(files.resolv_conf).read_text() == "nameserver 192.0.2.1\n"


def test_case_240_any_user_may_read_them_whatever_the_umask_is(etc: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files = NetworkFiles(tmp_path / "network", etc)
        files.refresh()
    finally:
        os.umask(before)
    assert os.stat(files.hosts).st_mode & 0o777 == 0o644
    assert os.stat(tmp_path / "network").st_mode & 0o777 == 0o755


def test_case_240_a_link_instead_of_a_copy_is_not_followed(etc: Path, tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path / "network", etc)
    files.refresh()
    Path(files.hosts).unlink()
    Path(files.hosts).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.Unavailable, match="cannot write"):
        files.refresh()
    assert not (tmp_path / "elsewhere").exists()


def test_case_240_removing_them_may_be_repeated(etc: Path, tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path / "network", etc)
    files.refresh()
    files.remove()
    files.remove()
    assert not (tmp_path / "network").exists()
