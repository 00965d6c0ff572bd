"""Row L01: why an entrypoint cannot run. The files are real, nothing is run."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from moorage.runs.entrypoint import explain_start_failure

pytestmark = pytest.mark.quick

TRUE = os.path.realpath("/bin/true")
MACHINE_AT, CLASS_AT = 18, 4


def spec(
    command: str, *, mounts: list[dict[str, Any]] | None = None, path: str = "/bin", cwd: str = "/"
) -> dict[str, Any]:
    return {"process": {"args": [command], "cwd": cwd, "env": [f"PATH={path}"]}, "mounts": mounts or []}


def bind(source: Path, destination: str) -> dict[str, Any]:
    return {"type": "bind", "source": str(source), "destination": destination, "options": ["rbind"]}


def put(path: Path, contents: bytes | str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    path.chmod(mode)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    put(root / "bin/sh", Path(TRUE).read_bytes())
    loader = Path(TRUE).read_bytes()
    begin = loader.index(b"/lib")
    put(root / loader[begin : loader.index(b"\0", begin)].decode().lstrip("/"))
    return root


def reason(root: Path, command: str, **more: Any) -> str:
    return explain_start_failure(spec(command, **more), str(root))


def test_what_can_run_is_not_explained(root: Path) -> None:
    put(root / "bin/script", "#! /bin/sh -x\n")
    assert [reason(root, name) for name in ("/bin/sh", "sh", "/bin/script", "bin/sh", "./bin/../bin/sh")] == [""] * 5


def test_a_command_without_a_slash_is_searched_in_path(root: Path) -> None:
    put(root / "opt/tool")
    (root / "first/tool").mkdir(parents=True)  # a directory of the name is passed over
    assert reason(root, "tool", path="/none:/first:/opt") == ""
    assert reason(root, "tool", path="/a:/b") == "there is no tool in the plugin's PATH (/a:/b)"
    put(root / "opt/tool", mode=0o644)
    assert reason(root, "tool", path="/opt") == "/opt/tool is not executable; make it so with chmod +x"


def test_a_relative_command_starts_at_the_working_directory(root: Path) -> None:
    put(root / "srv/run")
    assert reason(root, "./run", cwd="/srv") == ""
    assert reason(root, "./run", cwd="/") == "there is no /./run in the plugin's root file system"


def test_what_is_no_program_is_named(root: Path) -> None:
    put(root / "plain", mode=0o644)
    put(root / "text", "hello\n")
    put(root / "empty", "")
    put(root / "lone", "#!\n")
    put(root / "odd", "#!/no/such\x1b[1m x\n")
    os.mkfifo(root / "fifo")
    said = {name: reason(root, f"/{name}") for name in ("gone", "bin", "fifo", "plain", "text", "empty", "lone", "odd")}
    assert said == {
        "gone": "there is no /gone in the plugin's root file system",
        "bin": "/bin is a directory, not a program",
        "fifo": "/fifo is not a file that can be run",
        "plain": "/plain is not executable; make it so with chmod +x",
        "text": "/text is neither a program of this machine nor a script that starts with #!",
        "empty": "/empty is neither a program of this machine nor a script that starts with #!",
        "lone": "/lone is a script for nothing, which is not in the plugin",
        "odd": "/odd is a script for '/no/such\\x1b[1m', which is not in the plugin",
    }


def test_an_elf_file_that_cannot_run_here_is_named(root: Path) -> None:
    data = bytearray(Path(TRUE).read_bytes())
    other = bytearray(data)
    other[MACHINE_AT : MACHINE_AT + 2] = (22).to_bytes(2, "little")
    put(root / "foreign", bytes(other))
    assert reason(root, "/foreign").startswith("/foreign is a program for another CPU (IBM S/390; this machine is ")
    put(root / "cut", bytes(data[:100]))
    assert reason(root, "/cut") == "/cut is damaged: its program headers cannot be read"
    put(root / "other-loader", bytes(data).replace(b"/lib", b"/xib"))
    assert reason(root, "/other-loader").startswith("/other-loader needs the loader /xib")


def test_a_32_bit_program_of_the_same_kind_of_cpu_is_fine(root: Path) -> None:
    machine = int.from_bytes(Path(TRUE).read_bytes()[MACHINE_AT : MACHINE_AT + 2], "little")
    smaller = {62: 3, 183: 40}.get(machine)
    if smaller is None:
        pytest.skip("this CPU runs nothing else")
    data = bytearray(Path(TRUE).read_bytes())
    data[MACHINE_AT : MACHINE_AT + 2] = smaller.to_bytes(2, "little")
    put(root / "small", bytes(data))
    assert reason(root, "/small") == ""


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_to_an_elf_file_is_more_than_a_sentence(root: Path, seed: int) -> None:
    source = random.Random(seed)
    data = bytearray(Path(TRUE).read_bytes())
    for _ in range(source.randint(1, 8)):
        data[source.randrange(4, 900)] = source.choice([0, 1, 127, 128, 255])
    put(root / "p", bytes(data[: source.choice([len(data), source.randrange(4, len(data))])]))
    assert reason(root, "/p").isprintable()


def test_links_are_followed_as_from_inside(root: Path) -> None:
    put(root / "opt/real")
    (root / "absolute").symlink_to("/opt/real")
    (root / "opt/relative").symlink_to("../opt/./real")
    (root / "above").symlink_to("../../../../opt/real")  # the root is its own parent
    (root / "directory").symlink_to("opt")
    (root / "outside").symlink_to(TRUE)  # on the host it exists
    (root / "loop").symlink_to("loop")
    for name in ("/absolute", "/opt/relative", "/above", "/directory/relative"):
        assert reason(root, name) == ""
    for name in ("/outside", "/loop"):
        assert reason(root, name) == f"there is no {name} in the plugin's root file system"


def test_a_chain_of_links_ends_at_the_limit_of_the_kernel(root: Path) -> None:
    put(root / "l0")
    for number in range(1, 43):
        (root / f"l{number}").symlink_to(f"l{number - 1}")
    assert reason(root, "/l40") == ""
    assert reason(root, "/l41") != ""


def test_mounts_cover_what_is_below_them(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "tools/run")
    put(root / "mnt/covered")
    put(tmp_path / "one-file")
    mounts = [bind(tmp_path / "tools", "/mnt/"), bind(tmp_path / "one-file", "/file")]
    (root / "file").touch()
    (root / "link").symlink_to("mnt/run")
    for name in ("/mnt/run", "/link", "/file"):
        assert reason(root, name, mounts=mounts) == ""
    assert reason(root, "/mnt/covered", mounts=mounts) == "there is no /mnt/covered in the plugin's root file system"
    (root / "mnt2").mkdir()
    assert reason(root, "/mnt2/run", mounts=mounts) == "there is no /mnt2/run in the plugin's root file system"


def test_the_innermost_and_last_mount_counts(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "new/run")
    (tmp_path / "old").mkdir()
    (root / "mnt").mkdir()
    assert reason(root, "/mnt/run", mounts=[bind(tmp_path / "old", "/mnt"), bind(tmp_path / "new", "/mnt")]) == ""
    deep = [bind(tmp_path / "new", "/mnt/deep"), bind(tmp_path / "old", "/mnt")]
    (tmp_path / "old/deep").mkdir()
    assert reason(root, "/mnt/deep/run", mounts=deep) == ""


def test_nothing_is_said_of_what_only_exists_inside(root: Path) -> None:
    mounts = [{"type": "tmpfs", "source": "tmpfs", "destination": "/run"}]
    (root / "link").symlink_to("/run/made-later")
    put(root / "script", "#!/run/interpreter\n")
    for name in ("/run/made-later", "/link", "/script"):
        assert reason(root, name, mounts=mounts) == ""


def test_nothing_is_said_of_a_root_that_cannot_be_inspected() -> None:
    assert explain_start_failure(spec("/p"), "/proc/1/no-such") == "there is no /p in the plugin's root file system"
    assert (
        explain_start_failure({"process": {"args": ["/p"]}}, "/dev/null")
        == "there is no /p in the plugin's root file system"
    )
