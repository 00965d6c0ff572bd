"""What a program sees of its confinement under Moorage, as a plugin of dockerd and in podman, measured in one run.

The same static program, with no privileges requested, is queried over its socket. Prints a table in Markdown; with
``--write`` it replaces the one in docs/security.md.
"""

import errno
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peers.dockerd import SOCKETS, running_dockerd
from support.attempts import Send, attempts_config, attempts_program, attempts_tar, sender_to
from support.engines import engine

PAGE = Path(__file__).resolve().parents[1] / "docs/security.md"
BEGIN, END = "<!-- measured by scripts/confinement -->", "<!-- end -->"
SIDES = ("Moorage", "Moorage, `--userns auto`", "plugin of dockerd", "podman")
SECONDS = 60.0
_LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
_MOST = 16384  # of each
MOST_FORKS = 2500
LIMIT = 2048

CALLS = {
    "keyctl": "`keyctl`",
    "add_key": "`add_key`",
    "userfaultfd": "`userfaultfd`",
    "io_uring": "`io_uring_setup`",
    "unshare-user": "`unshare(CLONE_NEWUSER)`",
    "clone-user": "`clone(CLONE_NEWUSER)`",
    "unshare-mount": "`unshare(CLONE_NEWNS)`",
    "setns": "`setns`",
    "mount": "`mount`",
    "bpf": "`bpf`",
    "perf": "`perf_event_open`",
    "handle": "`open_by_handle_at`",
    "init-module": "`init_module`",
    "mknod": "`mknod` of a device",
    "raw-socket": "raw socket",
}


@contextmanager
def under_moorage(directory: Path) -> Iterator[dict[str, Send]]:
    """As two plugins, one in a user namespace of its own."""
    directory.mkdir()
    with engine(directory) as house:
        requests = {}
        for side, name, policy in ((SIDES[0], "plain", {}), (SIDES[1], "mapped", {"userns": "auto"})):
            house.request_json(
                "POST", f"/plugins/create?name={name}", attempts_tar(), headers={"Content-Type": "application/x-tar"}
            )
            if policy:
                house.request_own("PUT", name, "policy", policy)
            house.enable(name)
            requests[side] = sender_to(Path(house.more(name)["Socket"]))
        yield requests
        for name in ("plain", "mapped"):
            house.remove(name, force=True)


@contextmanager
def under_dockerd(rootfs: Path) -> Iterator[Send]:
    with running_dockerd() as dockerd:
        dockerd.create_plugin("attempts", json.dumps(attempts_config()).encode(), rootfs)
        dockerd.enable_plugin("attempts")
        yield sender_to(SOCKETS / dockerd.inspect_plugin("attempts")["Id"] / "plugin.sock")
        dockerd.remove_plugin("attempts")


@contextmanager
def under_podman(directory: Path, rootfs: Path) -> Iterator[Send]:
    """In a container of podman as it makes them by default, on runc, in directories of its own."""
    sockets = directory / "s"
    sockets.mkdir(parents=True)
    options = [f"--root={directory / 'root'}", f"--runroot={directory / 'run'}", f"--tmpdir={directory / 'tmp'}"]
    podman = ["podman", *options, "--runtime=runc", "--cgroup-manager=cgroupfs", "--storage-driver=vfs"]
    name = f"moorage-confinement-{directory.parent.name}"
    where = ["--network=none", f"--volume={sockets}:/run/docker/plugins", f"--name={name}", "--log-driver=none"]
    # its defaults are above what a root without CAP_SYS_RESOURCE may give
    hard = {kind: min(resource.getrlimit(number)[1], _MOST) for kind, number in _LIMITS.items()}
    limits = [f"--ulimit={kind}={limit}:{limit}" for kind, limit in hard.items()]
    command = [*podman, "run", f"--cgroup-parent=/{name}", *where, *limits, "--rootfs", str(rootfs), "/attempts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            deadline = time.monotonic() + SECONDS
            while not (sockets / "plugin.sock").exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    assert child.stdout is not None
                    raise SystemExit(f"confinement: podman did not start: {child.stdout.read()[-2000:]}")
                time.sleep(0.02)
            yield sender_to(sockets / "plugin.sock")
        finally:
            subprocess.run([*podman, "kill", name], capture_output=True, check=False)
            try:
                child.wait(SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
            subprocess.run([*podman, "rm", "--force", name], capture_output=True, check=False)
            _remove_groups(name)


def _remove_groups(name: str) -> None:
    """The control groups that podman leaves."""
    for top in Path("/sys/fs/cgroup").glob(f"*/{name}"):
        for group in (*sorted(top.rglob("*/"), reverse=True), top):
            group.rmdir()


def measure(send: Send) -> dict[str, str]:
    """Every row for one side."""
    status = dict(line.partition(":")[::2] for line in send("read/proc/self/status").splitlines())
    limits = {line[:26].strip(): line[26:].split()[:2] for line in send("read/proc/self/limits").splitlines()[1:]}
    effective = int(status["CapEff"], 16)
    host_uid = send("read/proc/self/uid_map").split()[1]
    rows = {
        "system call filter (`Seccomp`)": {"0": "none", "2": "filter"}.get(status["Seccomp"].strip(), "?"),
        "`NoNewPrivs`": status["NoNewPrivs"].strip(),
        "capabilities (`CapEff`)": f"{effective.bit_count()}",
        "uid on the host of root inside": "0" if host_uid == "0" else "of its own",
        "`core` (soft)": limits["Max core file size"][0],
        "nice value": send("read/proc/self/stat").rpartition(")")[2].split()[16],
        "`oom_score_adj`": send("read/proc/self/oom_score_adj").strip(),
    }
    calls = {text: _outcome(int(send(f"try/{call}"))) for call, text in CALLS.items()}
    return {**rows, **calls, "processes before `fork` fails": _forks(send)}  # the last: nothing can be forked then


def _forks(send: Send) -> str:
    count = int(send(f"fork/{MOST_FORKS}"))
    if LIMIT - 8 <= count <= LIMIT:  # a process of the runtime may not have ended yet
        return str(LIMIT)
    return str(count + 1) if count < MOST_FORKS else f"more than {MOST_FORKS}"


def _outcome(number: int) -> str:
    return "works" if number == 0 else errno.errorcode.get(number, str(number))


def measure_all() -> dict[str, dict[str, str]]:
    """The rows of every side. Everything that was started is ended again."""
    with tempfile.TemporaryDirectory(prefix="m-confinement-", dir="/var/tmp") as name, ExitStack() as stack:
        directory = Path(name)
        rootfs = directory / "rootfs"
        for each in ("mnt", "run/docker/plugins", "tmp", "proc", "sys", "dev", "etc"):
            (rootfs / each).mkdir(parents=True)
        (rootfs / "attempts").write_bytes(attempts_program())
        (rootfs / "attempts").chmod(0o755)
        for_podman = directory / "podman-rootfs"
        shutil.copytree(rootfs, for_podman)
        requests: dict[str, Send] = dict(stack.enter_context(under_moorage(directory / "moorage")))
        requests[SIDES[2]] = stack.enter_context(under_dockerd(rootfs))
        requests[SIDES[3]] = stack.enter_context(under_podman(directory / "podman", for_podman))
        return {side: measure(requests[side]) for side in SIDES}


def table(measured: Mapping[str, Mapping[str, str]]) -> str:
    """The rows as Markdown."""
    rows = [["", *SIDES], ["---"] * (len(SIDES) + 1)]
    rows += [[name, *(measured[side][name] for side in SIDES)] for name in measured[SIDES[0]]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def time_starts(rounds: int) -> dict[str, list[float]]:
    """Seconds of each enable, by what confines the plugin; taken in turn, so that a busy machine is busy for all."""
    policies = {"no filter": {"seccomp": "unconfined"}, "default": {}, "user namespace": {"userns": "auto"}}
    taken: dict[str, list[float]] = {name: [] for name in policies}
    with (
        tempfile.TemporaryDirectory(prefix="m-confinement-", dir="/var/tmp") as directory,
        engine(Path(directory)) as house,
    ):
        for number, policy in enumerate(policies.values()):
            house.create(f"p{number}")
            house.request_own("PUT", f"p{number}", "policy", policy)
        for _ in range(rounds):
            for number, name in enumerate(policies):
                started = time.perf_counter()
                house.enable(f"p{number}")
                taken[name].append(time.perf_counter() - started)
                house.disable(f"p{number}")
        for number in range(len(policies)):
            house.remove(f"p{number}")
    return taken


def main() -> None:
    """Measure and print; the page with ``--write``, times of starts with ``--time``."""
    if "--time" in sys.argv[1:]:
        for name, seconds in time_starts(30).items():
            least, median = (1000 * each for each in (min(seconds), statistics.median(seconds)))
            print(f"{name:<16} median {median:6.1f} ms, least {least:6.1f} ms")
        return
    made = table(measure_all())
    print(made, end="")
    if "--write" in sys.argv[1:]:
        text = PAGE.read_text()
        before, _, rest = text.partition(f"{BEGIN}\n")
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}")


if __name__ == "__main__":
    main()
