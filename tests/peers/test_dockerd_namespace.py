"""Two that keep plugins on one containerd: a real dockerd deletes what it does not know, so we refuse its namespace."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.doctor.dockerd import compare_dockerd, read_dockerd
from moorage.doctor.findings import Verdict
from moorage.engine.store import Store
from peers.dockerd import Dockerd, running_dockerd
from support.engines import EngineProcess, actor, config, processes_below
from support.limits import limit
from support.workspace import Session

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "static-cc")]


@pytest.fixture
def sharing(session: Session) -> Iterator[Dockerd]:
    """A dockerd on the session's containerd."""
    with running_dockerd(containerd=session.containerd.address) as peer:
        yield peer


def test_l03_m11_the_namespace_of_a_dockerd_on_the_same_containerd_is_refused(
    sharing: Dockerd, session: Session, tmp_path: Path
) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    (rootfs / "actor").write_bytes(actor())
    (rootfs / "actor").chmod(0o755)
    sharing.create_plugin("theirs:1", json.dumps(config()).encode(), rootfs)
    sharing.enable_plugin("theirs:1")
    own = EngineProcess(tmp_path / "ours", containerd=session.containerd.address)
    own.root.parent.mkdir()
    assert own._popen("serve").wait(limit(60)) != 0
    said = own.log.read_text()
    assert "cannot use namespace plugins.moby" in said
    assert "is a dockerd's and not this engine's" in said
    assert "give another one with --namespace, or use --containerd private" in said
    assert sharing.inspect_plugin("theirs:1")["Enabled"] is True
    assert processes_below(own.exec_root) == []
    seen = compare_dockerd(read_dockerd(sharing.process.pid), Store(own.root).find_identity())
    assert seen.verdict is Verdict.WRONG
    assert (
        "uses namespace plugins.moby of the engine's containerd: it deletes the containers of others there" in seen.text
    )
    assert "--namespace NAME or --containerd private" in seen.advice
    assert not own.exec_root.exists()

    # the way out that it names
    beside = EngineProcess(tmp_path / "beside", containerd=session.containerd.address, namespace="moorage")
    beside.root.parent.mkdir()
    try:
        beside.start()
        beside.create("p")
        beside.enable("p")
        assert beside.state("p") == "ready"
        beside.remove("p", force=True)
    finally:
        beside.close()
    seen = compare_dockerd(read_dockerd(sharing.process.pid), Store(beside.root).find_identity())
    assert (seen.verdict, seen.advice) == (Verdict.OK, "")
    assert "in other namespaces than the engine (moorage)" in seen.text
    assert sharing.inspect_plugin("theirs:1")["Enabled"] is True
    sharing.remove_plugin("theirs:1")
