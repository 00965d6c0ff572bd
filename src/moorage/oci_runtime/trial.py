"""Whether a runtime can run plugins on this machine, found out by running some. Everything here blocks.

A trial uses the spec and the preparation of real plugins, with a root of two programs of some bytes. What only some
plugins need (limits, a user namespace) decides against a runtime only where the default runtime passes it: otherwise
this machine cannot do it. Nothing of a trial stays; what a killed one left is removed by ``clear_trial``.
"""

import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

from msgspec import Struct

from moorage import errors
from moorage.containerd.supervisor import find_binary
from moorage.containerd.types import Mount, RuntimeOptions
from moorage.host.cgroups import find_groups, parent_group_in_use, remove_groups, remove_parent_group
from moorage.host.directory_tree import Directory, remove_tree_now
from moorage.host.files import last_line, make_directory
from moorage.host.id_mapping import FIRST_BASE
from moorage.host.leftovers import end_processes
from moorage.host.mounts import mount_all, unmount_all_below
from moorage.host.process_environment import clean_environment
from moorage.oci_runtime.programs import EXIT_STATUS, programs
from moorage.plugins import (
    BUILT_IN,
    NO_OVERRIDES,
    CgroupDriver,
    Confinement,
    control_group,
    effective_settings,
    parse_config,
    resources_of,
)
from moorage.runs.directories import PluginDirectories
from moorage.runs.plan import PlanOptions, RunPlan, build_plan
from moorage.runs.preparation import prepare_run
from moorage.timeouts import DEFAULT

__all__ = ("TRIAL_PART", "TRIAL_RECORD", "clear_trial", "find_obstacle")

TRIAL_PART = "t"
"""Directory of a trial in a run-time directory; short, because paths of sockets are."""

TRIAL_RECORD = "trial.json"
"""File in a run-time directory: the result of the last trial."""

_GROUP = "group"  # file with the control group of a trial
_ROOT_OPTIONS = ("mode=755", "size=1m")
_MEMORY = 64 << 20  # bytes
_SECONDS = DEFAULT.runtime_trial


class _Case(Struct, frozen=True):
    """One container of a trial."""

    name: str
    config: dict[str, Any]
    confinement: Confinement = BUILT_IN
    id_base: int = 0
    is_required: bool = False
    """Whether nothing runs by a runtime that does not pass it."""


_CONFIG: dict[str, Any] = {
    "interface": {"types": ["moorage.trial/1.0"], "socket": "s"},
    "entrypoint": ["/wait"],
    "network": {"type": "host"},
    "propagatedMount": "/data",
    "mounts": [
        {"name": "x", "type": "bind", "source": "/etc", "destination": "/host", "options": ["rbind", "ro"]},
        {"name": "y", "type": "tmpfs", "source": "tmpfs", "destination": "/scratch", "options": ["nosuid", "mode=755"]},
    ],
    "linux": {"capabilities": ["CAP_SYS_ADMIN"]},
}
_ISOLATED: dict[str, Any] = {
    "interface": _CONFIG["interface"],
    "entrypoint": ["/exit"],
    "network": {"type": "none"},
    "user": {"uid": 1000, "gid": 1000},
}
_OTHER_LIMITS = Confinement(memory_bytes=2 * _MEMORY, cpus=0.5, pids=100)
_CASES = (
    _Case("a plugin", _CONFIG, is_required=True),
    _Case(
        "a plugin with limits",
        {**_ISOLATED, "entrypoint": ["/wait"]},
        BUILT_IN.updated(Confinement(memory_bytes=_MEMORY, cpus=1.0, read_only=True, capabilities="minimal")),
    ),
    _Case(
        "a plugin with a user namespace",
        {**_ISOLATED, "user": {}},
        BUILT_IN.updated(Confinement(userns="auto")),
        id_base=FIRST_BASE,
    ),
)


class _Failure(Exception):
    """A runtime failed; the text has its command and its message."""


def find_obstacle(command: str, options: RuntimeOptions, exec_root: Path, reference: str, id: str = "") -> str:
    """Why plugins are not to be run by this runtime; empty where they can be.

    ``options`` are those of containers by it; ``exec_root`` is a run-time directory of the caller, ``reference`` the
    default runtime. ``id`` is that of a plugin that does not run yet, whose control group is used.
    """
    if not programs():
        return "there is no trial for this machine's processor"
    try:
        for case in _CASES:
            problem = _try(case, command, options, exec_root, id)
            if problem and (case.is_required or not _try(case, reference, options, exec_root, id)):
                return f"it cannot run {case.name}: {problem}"
    finally:
        clear_trial(exec_root)
    return ""


def clear_trial(exec_root: Path) -> None:
    """Remove what a trial in this run-time directory has left. May be repeated; what cannot be removed stays."""
    directory = exec_root / TRIAL_PART
    try:
        group = (directory / _GROUP).read_text()
    except OSError:
        group = ""
    try:
        if group:
            end_processes(directory, group, 0, DEFAULT.killed)
            remove_groups(set(find_groups(group).values()))
            remove_parent_group()
        unmount_all_below(directory)
        remove_tree_now(directory)
    except (OSError, errors.MoorageError):
        pass  # the next trial, or moorage down, removes it


def _try(case: _Case, command: str, options: RuntimeOptions, exec_root: Path, id: str) -> str:
    """Run a case; why that failed, empty where it did not."""
    clear_trial(exec_root)
    try:
        trial = _Trial(case, command, options, exec_root / TRIAL_PART, id or secrets.token_hex(32))
        trial.prepare()
        with parent_group_in_use():
            trial.run()
    except _Failure as failure:
        return str(failure)
    except (errors.MoorageError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        clear_trial(exec_root)
    return ""


class _Trial:
    """One container, created by one runtime without containerd."""

    def __init__(self, case: _Case, command: str, options: RuntimeOptions, directory: Path, id: str) -> None:
        self._case = case
        self._directory = directory
        self._id = id
        self._directories = PluginDirectories(id, directory, directory / "data")
        self._runtime = [find_binary(command), "--root", str(directory / "state")]
        self._driver: CgroupDriver = "systemd" if options.systemd_cgroup else "cgroupfs"
        if options.systemd_cgroup:
            self._runtime.append("--systemd-cgroup")

    def prepare(self) -> None:
        """Make the bundle and what the spec names."""
        make_directory(self._directory, 0o711)
        (self._directory / _GROUP).write_text(control_group(self._id, self._driver))
        bundle = self._directory / "bundle"
        bundle.mkdir()
        plan = self._plan()
        prepare_run(plan, self._mount_root)
        (bundle / "config.json").write_text(json.dumps(plan.spec))

    def _plan(self) -> RunPlan:
        config = parse_config(json.dumps(self._case.config).encode()).config
        settings = effective_settings(config, NO_OVERRIDES)
        options = PlanOptions(
            confinement=self._case.confinement, id_base=self._case.id_base, cgroup_driver=self._driver
        )
        return build_plan(self._directories, config, settings, options)

    def _mount_root(self, plan: RunPlan) -> None:
        root, owner = plan.directories.root, plan.id_base
        mount_all([Mount("tmpfs", "tmpfs", (*_ROOT_OPTIONS, f"uid={owner}", f"gid={owner}"))], root)
        for name, program in programs().items():
            (root / name).write_bytes(program)
            (root / name).chmod(0o755)
        with Directory.open(root) as top:
            for name in ("dev", "proc", "sys", "run", "tmp", "etc", "data", "host", "scratch"):
                top.make_directory(name, mode=0o755, uid=owner, gid=owner).close()

    def run(self) -> None:
        """Do with the container what the shim does. Raises: _Failure."""
        if self._case.config["entrypoint"] == ["/exit"]:
            self._call(EXIT_STATUS, "run", "--bundle", str(self._directory / "bundle"), self._id)
            return
        self._call(0, "create", "--bundle", str(self._directory / "bundle"), self._id)
        self._call(0, "start", self._id)
        if self._case.confinement.memory_bytes:
            for confinement in (_OTHER_LIMITS, BUILT_IN.updated(Confinement(pids=0))):
                resources = self._directory / "resources.json"
                resources.write_text(json.dumps(resources_of(confinement, _OTHER_LIMITS)))
                self._call(0, "update", "--resources", str(resources), self._id)
        else:
            for words in (("pause", self._id), ("resume", self._id)):
                self._call(0, *words)
            self._call(EXIT_STATUS, "exec", self._id, "/exit")
        self._call(0, "kill", "--all", self._id, "KILL")
        self._call(0, "delete", "--force", self._id)

    def _call(self, expected: int, *words: str) -> None:
        status, said = self._execute(*words)
        if status != expected:
            raise _Failure(f"{words[0]} exits with {status} instead of {expected}{f': {said}' if said else ''}")

    def _execute(self, *words: str) -> tuple[int, str]:
        """The exit status of a command of the runtime, and the last line that it wrote."""
        output = self._directory / "output"  # a file: the container's process has it open for longer
        with output.open("wb") as file:
            done = subprocess.run(
                [*self._runtime, *words],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=_SECONDS,
                check=False,
            )
        return done.returncode, last_line(output)
