import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check_protos(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(root / "scripts/protos"), "--check"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def make_tree(root: Path) -> Path:
    """The smallest checkout that scripts/protos works in: links to what it reads, and a copy of what it would write."""
    generated = root / "src/moorage/containerd/_proto"
    generated.mkdir(parents=True)
    for path in (ROOT / "src/moorage/containerd/_proto").iterdir():
        if path.suffix in (".pyi", ".binpb"):
            (generated / path.name).write_bytes(path.read_bytes())
    (root / "scripts").mkdir()
    (root / "scripts/protos").symlink_to(ROOT / "scripts/protos")
    (root / "constraints.txt").symlink_to(ROOT / "constraints.txt")
    (root / "proto").mkdir()
    for path in (ROOT / "proto").glob("*.proto"):
        (root / "proto" / path.name).write_bytes(path.read_bytes())
    return root


def test_what_is_generated_is_current() -> None:
    done = check_protos(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_message_a_new_file_and_a_lost_one_are_seen(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    assert check_protos(root).returncode == 0
    new = root / "proto/moorage_new.proto"
    new.write_text('syntax = "proto3";\npackage moorage.test;\nmessage New { string name = 1; }\n')
    assert "moorage_new_pb2" in check_protos(root).stdout
    new.unlink()
    numbered = root / "proto/moorage_diff.proto"
    text = numbered.read_text()
    numbered.write_text(text.replace("applied = 1;", "applied = 2;"))
    assert "descriptors.binpb differ" in check_protos(root).stdout, "no type shows the number of a field"
    numbered.write_text(text)
    changed = root / "proto/moorage_version.proto"
    text = changed.read_text()
    changed.write_text(text + "\nmessage Added { string name = 1; }\n")
    assert "Added" in check_protos(root).stdout
    changed.unlink()
    done = check_protos(root)
    assert done.returncode == 1
    assert "moorage_version_pb2" in done.stdout
    assert "run scripts/protos" in done.stderr
