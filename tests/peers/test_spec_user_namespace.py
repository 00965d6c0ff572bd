"""Case 077: the spec for a user namespace, on runc itself under ``unshare -Ur``, which maps one user only."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.plugins import BUILT_IN, NO_OVERRIDES, HostPaths, confined_spec, effective_settings, parse_config
from moorage.runs.devices import locked_flags
from moorage.runs.host_security import HostSecurity
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("unshare", "static-cc")]

TIMEOUT_SECONDS = limit(20.0)
HERE = Path(__file__).parent


@pytest.fixture
def bundle() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as name:
        directory = Path(name)
        for each in ("rootfs", "sockets", "flagged", "state"):
            (directory / each).mkdir()
        subprocess.run(["gcc", "-static", "-O1", "-o", directory / "rootfs/probe", HERE / "probe.c"], check=True)
        (directory / "rootfs/probe.socket").write_text("/run/docker/plugins/p.sock")
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec", "flagged", directory / "flagged"], check=True
        )
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory / "flagged"], check=True)


def write_spec(bundle: Path, fields: dict[str, Any], *, in_user_namespace: bool = True) -> None:
    mounts = [{"source": str(bundle / "flagged"), "destination": "/f", "type": "bind", "options": ["rbind", "ro"]}]
    document = {"entrypoint": ["/probe"], "interface": {"socket": "p.sock"}, "mounts": mounts} | fields
    config = parse_config(json.dumps(document).encode()).config
    sources = [str(bundle / "flagged"), str(bundle / "sockets"), "/etc/hosts", "/etc/resolv.conf"]
    paths = HostPaths(
        rootfs=str(bundle / "rootfs"),
        socket_directory=str(bundle / "sockets"),
        cgroup_path=f"/moorage-test-{bundle.name}",
        in_user_namespace=in_user_namespace,
        locked_flags=locked_flags(sources) if in_user_namespace else {},
    )
    spec = confined_spec(config, effective_settings(config, NO_OVERRIDES), paths, BUILT_IN, HostSecurity().features())
    (bundle / "config.json").write_text(json.dumps(spec))


def run(bundle: Path) -> str | None:
    """Run the bundle until its socket accepts and kill it; None if it did, else what runc said."""
    runc = f"{shutil.which('runc')} --root {bundle}/state"
    script = f"trap 'set +e; {runc} kill t KILL; wait' TERM; {runc} run --bundle {bundle} t & wait"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(bundle / "sockets/p.sock")) == 0:
                    process.terminate()
                    process.communicate(timeout=TIMEOUT_SECONDS)
                    return None
            time.sleep(0.01)
        process.terminate()
        return process.communicate(timeout=TIMEOUT_SECONDS)[1]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"network": {"type": "host"}},
        {"network": {"type": "host"}, "pidhost": True, "ipchost": True},
        {"pidhost": True},
        {"ipchost": True},
    ],
    ids=["isolated", "host-network", "all-of-the-host", "host-pid", "host-ipc"],
)
def test_case_077_a_plugin_starts_in_a_user_namespace(bundle: Path, fields: dict[str, Any]) -> None:
    write_spec(bundle, fields)
    assert run(bundle) is None


def test_case_077_the_ordinary_spec_does_not_and_the_failure_names_the_mount(bundle: Path) -> None:
    write_spec(bundle, {"network": {"type": "host"}}, in_user_namespace=False)
    said = run(bundle)
    assert said is not None
    assert "/dev/pts" in said
