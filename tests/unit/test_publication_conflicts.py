"""Names that another program serves, and dead sockets."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from moorage import errors
from moorage.engine.consumers.conflicts import check_free, remove_dead_sockets

pytestmark = pytest.mark.quick


@pytest.fixture
def base() -> Iterator[Path]:
    with TemporaryDirectory(prefix="mt-") as made:
        for each in ("sockets/a", "etc/a"):
            Path(made, each).mkdir(parents=True)
        yield Path(made)


def check(base: Path, name: str, own: tuple[str, ...] = ()) -> None:
    check_free("p:1", (name,), base / "sockets", own, (base / "etc", base / "missing"))


def bind(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    return made


@pytest.mark.parametrize("path", ["sockets/n.sock", "sockets/a/n.sock"])
def test_p02_a_live_socket_is_refused_with_the_pid_of_its_owner(base: Path, path: str) -> None:
    name = path.removeprefix("sockets/").removesuffix(".sock")
    with bind(base / path) as server:
        server.listen()
        with pytest.raises(errors.Conflict, match=rf"as {name}: another program, pid {os.getpid()} \(python"):
            check(base, name)
        check(base, name, own=(str(base / path),))
    check(base, name)
    assert (base / path).exists(), "a dead one is replaced when it is published, not before"


def test_p02_dockers_other_path_of_a_name_counts(base: Path) -> None:
    with bind(base / "sockets/a/a.sock") as server:
        server.listen()
        with pytest.raises(errors.Conflict, match=r"listens on .*/a/a\.sock"):
            check(base, "a")


@pytest.mark.parametrize("path", ["sockets/n.spec", "sockets/n.json", "etc/n.spec", "etc/a/a.json"])
def test_p02_a_file_that_names_a_plugin_is_refused(base: Path, path: str) -> None:
    (base / path).write_text("tcp://127.0.0.1:1")
    with pytest.raises(errors.Conflict, match=f"{path} says where"):
        check(base, "a" if path.startswith("etc/a") else "n")


def test_p02_what_is_no_socket_is_never_replaced(base: Path) -> None:
    (base / "sockets/n.sock").mkdir()
    (base / "sockets/f.sock").write_text("")
    (base / "sockets/l.sock").symlink_to(base / "etc")
    for name in "nfl":
        with pytest.raises(errors.Conflict, match="exists and is no socket"):
            check(base, name)
    assert remove_dead_sockets([str(base / f"sockets/{name}.sock") for name in "nfl"], base) == []
    assert len(os.listdir(base / "sockets")) == 4


def test_p03_dead_sockets_are_removed_and_live_ones_stay(base: Path) -> None:
    bind(base / "sockets/dead.sock").close()
    paths = [str(base / f"sockets/{name}.sock") for name in ("dead", "live", "missing")]
    with bind(base / "sockets/live.sock") as server:
        server.listen()
        assert remove_dead_sockets(paths, base) == paths[:1]
        assert (base / "sockets/live.sock").exists()
    (base / "sockets/vieux").mkdir()
    bind(base / "sockets/vieux/sshfs.sock").close()
    remove_dead_sockets([str(base / "sockets/vieux/sshfs.sock")], base / "sockets")
    assert not (base / "sockets/vieux").exists(), "case 306"
