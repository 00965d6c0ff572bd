"""The check of the OCI runtime: which one an engine uses, or would use. A trial leaves nothing."""

import os
import tempfile
from pathlib import Path

from moorage import errors
from moorage.doctor.check import CheckTarget, exists
from moorage.doctor.findings import Finding, Verdict
from moorage.oci_runtime.choice import AUTO, OciRuntime, choose_runtime, find_installed
from moorage.systemd.cgroup_driver import choose_driver

__all__ = ("check_runtime",)

_SUBJECT = "runtime"


def check_runtime(target: CheckTarget) -> Finding:
    """The runtime of the engine that answers; where none does, the one that an engine would choose."""
    try:
        info = target.get_info().moorage
        if info.runtime:
            return _ok(OciRuntime(info.runtime, info.runtime_version, info.runtime_reason), "the engine uses it")
    except (errors.MoorageError, OSError):
        pass  # the check of the engine says so
    try:
        if os.geteuid() != 0:
            names = " and ".join(find_installed())
            return Finding(_SUBJECT, Verdict.OK, f"{names}; which one is used needs root to find out")
        return _ok(_choose(target), "an engine would use it")
    except errors.Unsupported as error:
        text, _, advice = str(error).removeprefix("cannot run containers: ").partition("; ")
        return Finding(_SUBJECT, Verdict.WRONG, text, advice)


def _ok(runtime: OciRuntime, use: str) -> Finding:
    return Finding(_SUBJECT, Verdict.OK, f"{runtime.version or runtime.command}; {use}: {runtime.reason}")


def _choose(target: CheckTarget) -> OciRuntime:
    parent = target.exec_root
    while not exists(parent):
        parent = parent.parent
    with tempfile.TemporaryDirectory(prefix="moorage-doctor-", dir=parent) as scratch:
        os.chmod(scratch, 0o711)  # as a run-time directory has it
        is_systemd = choose_driver("auto") == "systemd"
        return choose_runtime(AUTO, Path(scratch), systemd_cgroup=is_systemd)
