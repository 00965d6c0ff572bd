"""Check of a dockerd beside the engine: on the same containerd and namespace it deletes the engine's containers."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from moorage.doctor.check import Check, CheckTarget, exists
from moorage.doctor.findings import Finding, Verdict
from moorage.engine.store import Store
from moorage.engine.values import EngineIdentity
from moorage.host import proc
from moorage.host.processes import has_users

__all__ = ("DOCKERD_CHECKS", "Dockerd", "compare_dockerd", "read_dockerd")

SYSTEM_CONTAINERD = "/run/containerd/containerd.sock"

_SEVERITY = (Verdict.OK, Verdict.WARNING, Verdict.WRONG)
_NO_DOCKERD = Finding("dockerd", Verdict.OK, "does not run here")


class Dockerd(Struct, frozen=True):
    """A dockerd that runs here, as far as it may affect the engine's plugins."""

    pid: int
    containerd: str
    """Its containerd's socket; empty where it started one of its own."""
    namespaces: frozenset[str]


def check_dockerd(target: CheckTarget) -> Finding:
    """The worst finding of all that run: one harms the engine if it shares its containerd and namespace."""
    store = Store(target.data)
    if proc.are_others_hidden():
        raise PermissionError(errno.EACCES, "other users' processes are hidden", str(proc.PROC))
    running = [pid for pid in proc.pids() if proc.command_name(pid) == "dockerd" and has_users(pid, 0)]
    choice = store.find_identity()
    if running and choice is None and exists(store.root / "engine.json"):
        (store.root / "engine.json").read_bytes()  # raises where this user cannot read it
    found = [compare_dockerd(read_dockerd(pid), choice) for pid in running]
    return max(found, key=lambda each: _SEVERITY.index(each.verdict), default=_NO_DOCKERD)


def compare_dockerd(dockerd: Dockerd, choice: EngineIdentity | None) -> Finding:
    """Whether it harms the plugins of an engine with this choice of containerd (None: no engine has started yet)."""
    where = f"runs here (pid {dockerd.pid})"
    if choice is None:
        text = f"{where}; on one containerd it deletes the containers of others in its namespace"
        return Finding("dockerd", Verdict.WARNING, text, "leave moorage on its own containerd, as is the default")
    address = SYSTEM_CONTAINERD if choice.containerd == "system" else choice.containerd.removeprefix("unix://")
    if choice.containerd == "private" or not _is_same(dockerd.containerd, address):
        return Finding("dockerd", Verdict.OK, f"{where}, on another containerd than the engine")
    if choice.namespace not in dockerd.namespaces:
        return Finding("dockerd", Verdict.OK, f"{where}, in other namespaces than the engine ({choice.namespace})")
    shared = f"namespace {choice.namespace} of the engine's containerd"
    text = f"{where} and uses {shared}: it deletes the containers of others there"
    advice = (
        "give the engine another namespace or containerd: a new --root with --namespace NAME or --containerd private"
    )
    return Finding("dockerd", Verdict.WRONG, text, advice)


def read_dockerd(pid: int) -> Dockerd:
    """How it uses containerd, by its options and its daemon.json.

    Raises: PermissionError for a daemon.json that this user cannot read.
    """
    words = proc.command_line(pid)
    try:
        configured = json.loads(Path(_option(words, "config-file") or "/etc/docker/daemon.json").read_bytes())
    except PermissionError:
        raise
    except (OSError, ValueError):
        configured = {}
    configured = configured if isinstance(configured, dict) else {}
    address = _option(words, "containerd") or str(configured.get("containerd") or "")
    if not address and os.path.exists(SYSTEM_CONTAINERD):
        address = SYSTEM_CONTAINERD  # dockerd starts one of its own only where this does not exist
    containers = _option(words, "containerd-namespace") or configured.get("containerd-namespace") or "moby"
    plugins = _option(words, "containerd-plugins-namespace") or configured.get("containerd-plugin-namespace")
    return Dockerd(pid, address, frozenset((str(containers), str(plugins or "plugins.moby"))))


def _option(words: Sequence[str], name: str) -> str:
    """The value of ``--name VALUE`` or ``--name=VALUE``; empty where it is not given."""
    for word, after in zip(words, (*words[1:], ""), strict=True):
        if word in (f"--{name}", f"-{name}"):
            return after
        if word.startswith((f"--{name}=", f"-{name}=")):
            return word.partition("=")[2]
    return ""


def _is_same(one: str, other: str) -> bool:
    if not one:
        return False
    try:
        return os.path.samefile(one.removeprefix("unix://"), other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


DOCKERD_CHECKS: tuple[Check, ...] = (("dockerd", check_dockerd),)
