"""The library without the engine, in environments of its own: each supported protobuf, beside the libraries of others.

Every environment is filled from the wheel that a release would publish, and runs a container on the real containerd.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.fixtures import session as session
from support.limits import limit
from support.workspace import Session

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.extensive]

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("temporalio", "opentelemetry-proto", "grpcio")
"""Libraries with protobuf messages, or with gRPC, that a program may use beside this one."""
REQUIREMENTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
LOWEST = [re.sub(r">=([0-9.]+).*", r"==\1", text) for text in REQUIREMENTS]

USE_BESIDE_OTHERS = """
import sys
from google.protobuf import descriptor_pb2, descriptor_pool
from opentelemetry.proto.trace.v1 import trace_pb2
import grpc, temporalio.api.common.v1, temporalio.client

foreign = descriptor_pb2.FileDescriptorProto(name="moorage_types.proto", package="containerd.types", syntax="proto3")
foreign.message_type.add(name="Mount").field.add(name="other", number=1, type=5, label=1)
descriptor_pool.Default().Add(foreign)  # another client of containerd, with messages of the same names

import anyio
from google.protobuf import __version__
from moorage import containerd

async def main():
    async with containerd.connect(sys.argv[1], "beside") as client:
        return (await client.version()).version, len(await client.plugins()), await client.list_tasks()

version, plugins, tasks = anyio.run(main)
assert version and plugins > 10 and tasks == []
assert trace_pb2.Span(name="x").name == "x"
absent = [name for name in ("aiohttp", "click", "uvloop", "yaml", "rich", "cryptography") if name in sys.modules]
assert not absent, absent
print(__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, ROOT])
    return next(target.glob("*.whl"))


def run(command: Sequence[str | Path], *, status: int = 0) -> str:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=limit(180), check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def make_environment(directory: Path, *requirements: str | Path) -> Path:
    run([sys.executable, "-m", "venv", directory])
    run([directory / "bin/pip", "install", "--quiet", "--no-compile", *map(str, requirements)])
    return directory / "bin"


def pinned_protobuf() -> str:
    found = re.search(r"^protobuf==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("protobuf", "more"),
    [("4.25.0", LOWEST), ("5.29.6", []), (pinned_protobuf(), [])],
    ids=["lowest", "middle", "newest"],
)
def test_i21_the_library_works_with_this_protobuf_beside_other_libraries_of_messages(
    protobuf: str, more: list[str], wheel: Path, session: Session, tmp_path: Path
) -> None:
    assert not more or "protobuf==4.25" in more
    others = [text for text in more if not text.startswith("protobuf")]
    programs = make_environment(tmp_path / "venv", wheel, f"protobuf=={protobuf}", *others, *OTHERS)
    address = session.containerd.address
    assert run([programs / "python", "-W", "error", "-c", USE_BESIDE_OTHERS, address]).strip() == protobuf
    example = ROOT / "examples/containerd-client/run.py"
    assert "hello\n" in run([programs / "python", example, address, "sh", "-c", "echo hello; exit 3"], status=3)


def test_i21_the_command_of_the_library_alone_says_what_installs_the_engine(wheel: Path, tmp_path: Path) -> None:
    programs = make_environment(tmp_path / "venv", wheel)
    shown = run([programs / "moorage", "ls"], status=1)
    assert shown == "moorage: cannot run: there is no Python module click; run: pip install 'moorage[engine]'\n"
    mounted = run([programs / "mount.moorage", "driver/volume", "/mnt", "-o", "host=/absent.sock"], status=32)
    assert "cannot reach moorage at /absent.sock" in mounted
    assert mounted.endswith("there is no Python module click; run: pip install 'moorage[engine]'\n")
    assert "No broken requirements" in run([programs / "pip", "check"])
