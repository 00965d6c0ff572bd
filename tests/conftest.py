"""What every test relies on: the peers it needs, its limit by marker, the machine's versions in the header."""

import os
import platform
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support.limits import limit
from support.samples import spread

FOLDER = Path(__file__).parent
REAL_PEERS = ("root", "containerd", "runc")
LIMITS = {
    "machine": 300.0,
    "long": 400.0,
    "real": 240.0,
    "quick": 60.0,
}  # seconds, against hangs only; the first marker of a test applies
# what takes long first, so that no process runs it alone at the end
ORDER = ("machines", "peers", "faults", "attacks", "real", "fuzz", "contract", "unit")
REAL_FOLDERS = ("real", "peers", "attacks")  # the tests in any other folder are quick where they are not marked real

# They drive a virtual machine; `scripts/vm test` starts it and says which.
collect_ignore = [] if "MOORAGE_VM_NAME" in os.environ else ["machines"]

# A machine that is busy is no bug; the markers' limits apply. CI draws the same examples every time.
settings.register_profile(
    "moorage",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("moorage")

# Not what an engine would choose on this machine: `MOORAGE_RUNTIME=crun scripts/test` repeats the suite with another.
os.environ.setdefault("MOORAGE_RUNTIME", "runc")


def first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit(10), check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return (done.stdout.strip() or "none").splitlines()[0]


@cache
def is_there(peer: str) -> bool:
    """Whether the machine has this peer: root, static-cc (a C compiler that links statically), or a command."""
    if peer == "root":
        return os.geteuid() == 0
    if peer == "static-cc":
        return Path(first_line("gcc", "-print-file-name=libc.a")).is_file()
    return shutil.which(peer) is not None


def cgroup_mode() -> str:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return "v2"
    return "v1 and v2 (hybrid)" if (root / "unified").is_dir() else "v1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        metavar="PEER,...",
        help="peers (root, containerd, runc, dockerd, static-cc, ...) that must be there; "
        "what needs one that is neither required nor there is skipped",
    )
    parser.addoption("--failures-file", metavar="FILE", help="where the names of the tests that failed are written")


def pytest_configure(config: pytest.Config) -> None:
    # a shell without job control ignores the one for what it starts, nohup the other
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line("markers", "needs(peer, ...): peers that a test needs besides those of `real`")
    required = [peer for peer in config.getoption("--require").split(",") if peer]
    if missing := [peer for peer in required if not is_there(peer)]:
        names = ", ".join(missing)
        raise pytest.UsageError(f"required and not on this machine: {names} (scripts/setup test brings what it can)")


def pytest_report_header(config: pytest.Config) -> list[str]:
    required = config.getoption("--require") or "nothing"
    return [
        f"containerd: {first_line('containerd', '--version')}; runc: {first_line('runc', '--version')}; "
        f"crun: {first_line('crun', '--version')}; containers by {os.environ['MOORAGE_RUNTIME']}",
        f"kernel: {platform.release()}; cgroup: {cgroup_mode()}; user id: {os.geteuid()}; required: {required}",
        f"time limits: {limit(1):g} times the usual ones",
    ]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the names of the tests that failed; with several processes, in the one that has the reports of all."""
    path = session.config.getoption("--failures-file")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if path and reporter:
        reports = [*reporter.stats.get("failed", ()), *reporter.stats.get("error", ())]
        Path(path).write_text("".join(f"{name}\n" for name in dict.fromkeys(each.nodeid for each in reports)))


def limit_of(item: pytest.Item) -> float:
    return limit(next(seconds for name, seconds in LIMITS.items() if item.get_closest_marker(name)))


def _mark_samples(items: list[pytest.Item]) -> None:
    """Mark all but so many parameters of each ``sampled`` test as extensive."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for found in by_test.values():
        (count,) = found[0].get_closest_marker("sampled").args  # type: ignore[union-attr]
        for index in set(range(len(found))) - spread(len(found), count):
            found[index].add_marker("extensive")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test the marker of its folder where it bears none, its limit, and a skip where a peer is missing."""
    _mark_samples(items)
    for item in items:
        group = item.path.relative_to(FOLDER).parts[0]
        if group == "machines":
            item.add_marker("machine")
        elif not any(item.get_closest_marker(name) for name in ("quick", "real")):
            item.add_marker("real" if group in REAL_FOLDERS else "quick")
        if group == "unit" and item.get_closest_marker("real"):
            raise pytest.UsageError(f"{item.nodeid}: a test in unit/ needs no peer, so it cannot be marked real")
        if item.get_closest_marker("timeout") is None and config.getoption("--timeout") is None:
            item.add_marker(pytest.mark.timeout(limit_of(item)))
        peers = [peer for mark in item.iter_markers("needs") for peer in mark.args]
        if item.get_closest_marker("real"):
            peers.extend(REAL_PEERS)
        if missing := [peer for peer in peers if not is_there(peer)]:
            item.add_marker(pytest.mark.skip(reason=f"not on this machine: {', '.join(missing)}"))
    items.sort(key=lambda item: ORDER.index(item.path.relative_to(FOLDER).parts[0]))


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The loop that Moorage runs on."""
    return "asyncio", {"use_uvloop": True}
