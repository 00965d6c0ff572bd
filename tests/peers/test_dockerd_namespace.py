"""Two that keep plugins on one containerd: a real dockerd deletes what it does not know, so we refuse its namespace."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.engine.doctor_engine import judge_dockerd, read_dockerd
from moorage.engine.findings import Verdict
from moorage.engine.store import Store
from peers.dockerd import Dockerd, running_dockerd
from support.engines import EngineProcess, actor, config, processes_below
from support.places import Ground

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "static-cc")]


@pytest.fixture
def sharing(ground: Ground) -> Iterator[Dockerd]:
    """A dockerd on the session's containerd."""
    with running_dockerd(containerd=ground.containerd.address) as peer:
        yield peer


def test_l03_m11_the_namespace_of_a_dockerd_on_the_same_containerd_is_refused(
    sharing: Dockerd, ground: Ground, tmp_path: Path
) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    (rootfs / "actor").write_bytes(actor())
    (rootfs / "actor").chmod(0o755)
    sharing.create_plugin("theirs:1", json.dumps(config()).encode(), rootfs)
    sharing.enable_plugin("theirs:1")
    ours = EngineProcess(tmp_path / "ours", containerd=ground.containerd.address)
    ours.root.parent.mkdir()
    assert ours._popen("serve").wait(60) != 0
    said = ours.log.read_text()
    assert "cannot use namespace plugins.moby" in said
    assert "is not ours but a dockerd's" in said
    assert "give another one with --namespace, or use --containerd private" in said
    assert sharing.inspect_plugin("theirs:1")["Enabled"] is True
    assert processes_below(ours.exec_root) == []
    seen = judge_dockerd(read_dockerd(str(sharing.process.pid)), Store(ours.root).find_choice())
    assert seen.verdict is Verdict.BAD
    assert "uses namespace plugins.moby of the engine's containerd: it deletes what is not its own" in seen.text
    assert "--namespace NAME or --containerd private" in seen.advice
    assert not ours.exec_root.exists()

    # the way out that it names
    beside = EngineProcess(tmp_path / "beside", containerd=ground.containerd.address, namespace="moorage")
    beside.root.parent.mkdir()
    try:
        beside.start()
        beside.create("p")
        beside.enable("p")
        assert beside.state("p") == "ready"
        beside.remove("p", force=True)
    finally:
        beside.close()
    seen = judge_dockerd(read_dockerd(str(sharing.process.pid)), Store(beside.root).find_choice())
    assert (seen.verdict, seen.advice) == (Verdict.GOOD, "")
    assert "in other namespaces than the engine (moorage)" in seen.text
    assert sharing.inspect_plugin("theirs:1")["Enabled"] is True
    sharing.remove_plugin("theirs:1")
