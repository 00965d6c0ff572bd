"""kill -9 of a volume driver on the kit at every line of its code, and every system call of its writes.

The driver's table runs in a forked child that is killed just before line k of it, for every k of a Mount and of an
Unmount; then another process reads the file. Mounts are files here, which is what attach and detach leave.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from moorage.kit import MountTable, StoredVolume

KIT = str(Path(sys.modules["moorage"].__file__ or "").parent / "kit")


def table(directory: Path) -> MountTable:
    """A driver whose mounts are files."""

    def attach(volume: StoredVolume) -> str:
        (directory / f"mounted-{volume.name}").touch()
        return f"/mnt/{volume.name}"

    def detach(volume: StoredVolume, _lazy: bool) -> None:
        (directory / f"mounted-{volume.name}").unlink(missing_ok=True)

    made = MountTable(directory / "volumes.json", attach, detach)
    made.recover()
    return made


def killed_at(line: int, directory: Path, operate: Callable[[MountTable], None]) -> bool:
    """Whether a child that does this was killed at this line of the kit's code or of this file's; else it is done."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            made = table(directory)
            left = line

            def trace(frame: FrameType, event: str, _: Any) -> Any:
                nonlocal left
                if not frame.f_code.co_filename.startswith((KIT, __file__)):
                    return None
                if event == "line":
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            operate(made)
            sys.settrace(None)
            status = 0
        finally:
            os._exit(status)
    _, result = os.waitpid(pid, 0)
    if os.WIFSIGNALED(result):
        assert os.WTERMSIG(result) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(result) == 0
    return False


def is_attached(directory: Path) -> bool:
    return (directory / "mounted-a").exists()


def each_line(tmp_path: Path, prepare: Callable[[MountTable], None], operate: Callable[[MountTable], None]) -> int:
    """Kill at every line; check what the restarted driver knows, and does when the call is repeated. How many lines."""
    line = 0
    while True:
        directory = tmp_path / str(line)
        directory.mkdir()
        prepare(table(directory))
        before = table(directory).get("a").users
        is_killed = killed_at(line, directory, operate)
        after = table(directory)
        expected = table(tmp_path / "expected") if (tmp_path / "expected").exists() else None
        if expected is None:
            (tmp_path / "expected").mkdir()
            expected = table(tmp_path / "expected")
            prepare(expected)
            operate(expected)
        target = expected.get("a").users
        # every answered user is counted, and no other but the one whose answer was lost
        assert after.get("a").users in (before, target)
        assert is_attached(directory) == bool(after.get("a").users)
        operate(after)  # the caller repeats a call without an answer
        assert after.get("a").users == target
        assert is_attached(directory) == bool(target)
        assert table(directory).get("a").users == target
        if not is_killed:
            return line
        line += 1


def _mount(made: MountTable, user: str) -> None:
    made.mount("a", user)


def created(made: MountTable) -> None:
    made.create("a", {})


def mounted(*users: str) -> Callable[[MountTable], None]:
    def prepare(made: MountTable) -> None:
        created(made)
        for user in users:
            made.mount("a", user)

    return prepare


@pytest.mark.parametrize("before", [(), ("one",)], ids=["first", "second"])
def test_counts_are_right_after_a_kill_at_any_line_of_a_mount(tmp_path: Path, before: tuple[str, ...]) -> None:
    assert each_line(tmp_path, mounted(*before), lambda made: _mount(made, "new")) > 30


@pytest.mark.parametrize("others", [(), ("one",)], ids=["last", "not last"])
def test_counts_are_right_after_a_kill_at_any_line_of_an_unmount(tmp_path: Path, others: tuple[str, ...]) -> None:
    assert each_line(tmp_path, mounted("old", *others), lambda made: made.unmount("a", "old")) > 30


def test_a_volume_exists_or_not_after_a_kill_at_any_line_of_create_and_remove(tmp_path: Path) -> None:
    def operate(made: MountTable) -> None:
        made.create("a", {"x": "y"})
        made.remove("a", lambda volume: None)

    line = 0
    while killed_at(line, tmp_path, operate):
        made = table(tmp_path)
        assert [each.name for each in made.volumes()] in ([], ["a"])
        for each in made.volumes():
            made.remove(each.name, lambda volume: None)
        assert table(tmp_path).volumes() == []
        line += 1
    assert line > 50


@pytest.mark.parametrize("text", ["[]", "{", '{"version": 2, "volumes": {}}'])
def test_a_file_of_another_kind_is_refused_and_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "volumes.json").write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011 - of json, too
        table(tmp_path)
    assert (tmp_path / "volumes.json").read_text() == text


@pytest.mark.parametrize("failing", ["open", "write", "fsync", "rename"])
def test_a_table_that_cannot_be_saved_is_unchanged(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = table(tmp_path)
    created(made)

    def fail(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    target = Path if failing == "rename" else os
    with monkeypatch.context() as patch:
        patch.setattr(target, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            made.mount("a", "one")
        with pytest.raises(OSError, match="No space left"):
            made.create("b", {})
    assert made.get("a").users == ()
    assert not is_attached(tmp_path)
    assert [each.name for each in table(tmp_path).volumes()] == ["a"]
    assert made.mount("a", "one") == "/mnt/a"
