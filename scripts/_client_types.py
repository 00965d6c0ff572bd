"""Writes ``src/moorage/containerd/sync_client.pyi``: types of the blocking client, from those of the asynchronous one.

``--check`` only compares. Each ``async def`` of a public method becomes a ``def``, and each stream a context with a
plain iterator.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALLS = ROOT / "src/moorage/containerd/calls"
TARGET = ROOT / "src/moorage/containerd/sync_client.pyi"
CLIENT = ("containers", "tasks", "events", "pulls", "system")
STORAGE = ("leases", "content", "images", "snapshots")
OWN = ("storage", "write_content", "under", "marked")
"""Methods that ``sync_client.py`` defines itself."""

HEAD = """# Written by scripts/diagrams from the asynchronous client; never edited.
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from moorage.containerd import types
from moorage.containerd.images.progress import ReportProgress
from moorage.containerd.images.pull import PulledImage
from moorage.containerd.types import CallObserver, Envelope, Usage
from moorage.oci.platforms import Platform
from moorage.registry.credentials import Credentials, CredentialsFor
from moorage.registry.hosts import Options
from moorage.timeouts import ClientTimeouts

__all__ = ("BlockingClient", "BlockingStorage", "connect", "subscribe")

def connect(
    address: str, namespace: str, timeouts: ClientTimeouts = ..., observer: CallObserver | None = ...
) -> AbstractContextManager[BlockingClient]: ...
def subscribe(
    client: BlockingClient, topics: str = ..., *, timeouts: ClientTimeouts = ...
) -> AbstractContextManager[Iterator[Envelope]]: ...

class BlockingStorage:
    def under(self, lease: str) -> BlockingStorage: ...
    def marked(self, marks: Mapping[str, str], ref_prefix: str) -> BlockingStorage: ...
    def write_content(
        self,
        ref: str,
        chunks_from: Callable[[int], Iterator[bytes]],
        *,
        digest: str = ...,
        size_bytes: int = ...,
        labels: Mapping[str, str] | None = ...,
    ) -> str: ...
"""
CLIENT_HEAD = """
class BlockingClient:
    @property
    def address(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def storage(self) -> BlockingStorage: ...
"""


def methods(names: tuple[str, ...]) -> Iterator[str]:
    """The public methods of the classes of these modules, as a stub has them."""
    for name in names:
        for node in ast.walk(ast.parse((CALLS / f"{name}.py").read_text())):
            if isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith("_") and node.name not in OWN:
                yield f"    {stub(node)}\n"


def stub(node: ast.AsyncFunctionDef) -> str:
    """One method without its body; defaults are left out."""
    arguments = node.args
    arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
    arguments.kw_defaults = [default and ast.Constant(...) for default in arguments.kw_defaults]
    assert node.returns is not None
    returned = ast.unparse(node.returns)
    if node.decorator_list:
        item = returned.removeprefix("AsyncIterator[AsyncIterator[").removesuffix("]]")
        returned = f"AbstractContextManager[Iterator[{item}]]"
    return f"def {node.name}({ast.unparse(arguments)}) -> {returned}: ..."


def text() -> str:
    """The whole stub, formatted."""
    whole = HEAD + "".join(methods(STORAGE)) + CLIENT_HEAD + "".join(methods(CLIENT))
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "sync_client.pyi", "-"]
    return subprocess.run(command, cwd=ROOT, input=whole, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Write it, or compare."""
    if sys.argv[1:] != ["--check"]:
        TARGET.write_text(text())
    elif TARGET.read_text() != text():
        sys.exit(f"diagrams: {TARGET.relative_to(ROOT)} is out of date; run scripts/diagrams and commit")


if __name__ == "__main__":
    main()
