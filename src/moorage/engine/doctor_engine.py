"""What is wrong with the engine of this machine, its socket, and a dockerd beside it. Looks only; everything blocks."""

import grp
import json
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from moorage import errors
from moorage._lib.unix_socket import is_socket
from moorage.engine.findings import Finding, Verdict
from moorage.engine.leftovers import list_set_aside
from moorage.engine.store import Choice, Store
from moorage.host.process_identity import has_users

__all__ = ("Dockerd", "examine_engine", "judge_dockerd", "read_dockerd")

SYSTEM_CONTAINERD = "/run/containerd/containerd.sock"

Ask = Callable[[], Mapping[str, Any]]
"""What the engine says of itself, as GET /info. Raises: MoorageError: Denied, or Unavailable for no answer."""

_BADNESS = (Verdict.GOOD, Verdict.DOUBTFUL, Verdict.BAD)
_NO_DOCKERD = Finding("dockerd", Verdict.GOOD, "does not run here")
_START = "start it: moorage serve, or systemctl start moorage; plugins that ran go on running"


def examine_engine(data: Path, socket: Path, ask: Ask) -> Iterator[Finding]:
    """Look at the engine with this data directory and this socket of its API, and at every dockerd that runs here."""
    yield _engine(data, socket, ask)
    yield from _notices(data, ask)
    yield _permissions(socket)
    yield _dockerds(data)


def _engine(data: Path, socket: Path, ask: Ask) -> Finding:
    store = Store(data)
    if not os.path.lexists(socket):
        return _absent(store, socket)
    try:
        info = ask()
    except errors.Denied:
        return _forbidden(socket)
    except errors.MoorageError as error:
        if store.is_locked():
            text = f"process {store.find_owner()} works on {data} but does not answer on {socket}: {error}"
            advice = "see why (journalctl -u moorage), or end it (kill -9) and start it again; plugins go on running"
        else:
            text, advice = f"does not run, and has left {socket}: it was killed", _START
        return Finding("engine", Verdict.BAD, text, advice)
    ours = info.get("Moorage", {})
    if problem := ours.get("Problem"):
        return Finding("engine", Verdict.BAD, f"answers, but cannot run plugins: {problem}", _mend(ours))
    text = f"version {info.get('ServerVersion')} answers on {socket}, with containerd {ours.get('ContainerdVersion')}"
    return Finding("engine", Verdict.GOOD, text)


def _notices(data: Path, ask: Ask) -> Iterator[Finding]:
    """What the engine found at its start and left alone, and what earlier starts have set aside."""
    try:
        found = [str(each) for each in ask().get("Moorage", {}).get("Notices") or ()]
    except errors.MoorageError:
        found = []  # said above
    advice = "see whose it is; remove it where nobody needs it"
    for text in (*found, *list_set_aside(data)):
        yield Finding("leftovers", Verdict.DOUBTFUL, text, advice)


def _absent(store: Store, socket: Path) -> Finding:
    if store.is_locked():
        text = f"process {store.find_owner()} works on {store.root}, but there is no socket at {socket}"
        return Finding("engine", Verdict.BAD, text, "name its socket with --host or MOORAGE_HOST, or start it again")
    if os.path.exists(store.root / "engine.json"):  # False too where this user may not look
        return Finding("engine", Verdict.DOUBTFUL, f"does not run; its plugins are in {store.root}", _START)
    return Finding("engine", Verdict.GOOD, f"does not run, and {store.root} holds none yet")


def _forbidden(socket: Path) -> Finding:
    status = socket.stat()
    user, group = _user(os.geteuid()), _group(status.st_gid)
    advice = f"use sudo, or let {user} into the group: sudo usermod -aG {group} {user}, then log in again"
    if status.st_gid == 0 or not status.st_mode & stat.S_IWGRP:
        advice = "use sudo, or start the engine with --group NAME (MOORAGE_GROUP) of a group that may use it"
    return Finding("engine", Verdict.BAD, f"user {user} may not use {socket}", advice)


def _mend(ours: Mapping[str, Any]) -> str:
    if "run moorage down" in str(ours.get("Problem")):
        return ""  # a damaged database: the problem says what to do
    if ours.get("Containerd") == "private":
        return "look into containerd.log below containerd/ in the data directory; the engine tries again by itself"
    address = ours.get("ContainerdAddress") or ours.get("Containerd")
    return f"see that containerd runs ({address}: systemctl status containerd); the engine tries again by itself"


def _permissions(socket: Path) -> Finding:
    """The API is as good as root: it is for root, and for a group at most."""
    subject = "engine socket"
    try:
        status = socket.lstat()
    except OSError as error:
        return Finding(subject, Verdict.GOOD, f"nothing stands at {socket} ({error.strerror})")
    if not is_socket(socket):
        advice = "remove it, or choose another path with --host"
        return Finding(subject, Verdict.BAD, f"{socket} is no socket", advice)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0 or mode & stat.S_IWOTH:
        who = "everybody" if mode & stat.S_IWOTH else f"user {_user(status.st_uid)}"
        text = f"{who} may use {socket}, which is as good as root"
        return Finding(subject, Verdict.BAD, text, f"chown root {socket}; chmod 660 {socket}; or restart the engine")
    group = _group(status.st_gid) if mode & stat.S_IWGRP and status.st_gid else ""
    return Finding(subject, Verdict.GOOD, f"root{f' and group {group}' if group else ''} may use {socket}")


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


class Dockerd(Struct, frozen=True):
    """A dockerd that runs here, as far as it may meet our plugins."""

    pid: str
    containerd: str
    """Its containerd's socket; empty where it started one of its own."""
    namespaces: frozenset[str]


def _dockerds(data: Path) -> Finding:
    """The worst of them: what one does to our plugins depends on whether it shares containerd and namespace."""
    choice = Store(data).find_choice()
    running = [
        pid for pid in os.listdir("/proc") if pid.isdigit() and _name(pid) == "dockerd" and has_users(int(pid), 0)
    ]
    found = [judge_dockerd(read_dockerd(pid), choice) for pid in running]
    return max(found, key=lambda each: _BADNESS.index(each.verdict), default=_NO_DOCKERD)


def judge_dockerd(dockerd: Dockerd, choice: Choice | None) -> Finding:
    """Whether it harms the plugins of an engine that made this choice at its first start (None: there was none)."""
    where = f"runs here (pid {dockerd.pid})"
    if choice is None:
        text = f"{where}; on one containerd it deletes the containers of others in its namespace"
        return Finding("dockerd", Verdict.DOUBTFUL, text, "leave moorage on its own containerd, as is the default")
    address = SYSTEM_CONTAINERD if choice.containerd == "system" else choice.containerd.removeprefix("unix://")
    if choice.containerd == "private" or not _is_same(dockerd.containerd, address):
        return Finding("dockerd", Verdict.GOOD, f"{where}, on another containerd than the engine")
    if choice.namespace not in dockerd.namespaces:
        return Finding("dockerd", Verdict.GOOD, f"{where}, in other namespaces than the engine ({choice.namespace})")
    text = f"{where} and uses namespace {choice.namespace} of the engine's containerd: it deletes what is not its own"
    advice = (
        "give the engine another namespace or containerd: a new --root with --namespace NAME or --containerd private"
    )
    return Finding("dockerd", Verdict.BAD, text, advice)


def read_dockerd(pid: str) -> Dockerd:
    """How it was told to use containerd. Source: dockerd's options, and the same as keys of its daemon.json."""
    words = _words(pid)
    try:
        configured = json.loads(Path(_option(words, "config-file") or "/etc/docker/daemon.json").read_bytes())
    except (OSError, ValueError):
        configured = {}
    configured = configured if isinstance(configured, dict) else {}
    address = _option(words, "containerd") or str(configured.get("containerd") or "")
    if not address and os.path.exists(SYSTEM_CONTAINERD):
        address = SYSTEM_CONTAINERD  # dockerd starts one of its own only where this is not there
    containers = _option(words, "containerd-namespace") or configured.get("containerd-namespace") or "moby"
    plugins = _option(words, "containerd-plugins-namespace") or configured.get("containerd-plugin-namespace")
    return Dockerd(pid, address, frozenset((str(containers), str(plugins or "plugins.moby"))))


def _option(words: Sequence[str], name: str) -> str:
    """The value of ``--name VALUE`` or ``--name=VALUE``; empty where it is not there."""
    for word, after in zip(words, (*words[1:], ""), strict=True):
        if word in (f"--{name}", f"-{name}"):
            return after
        if word.startswith((f"--{name}=", f"-{name}=")):
            return word.partition("=")[2]
    return ""


def _words(pid: str) -> list[str]:
    try:
        return os.fsdecode(Path("/proc", pid, "cmdline").read_bytes()).split("\0")
    except OSError:
        return []


def _name(pid: str) -> str:
    try:
        return Path("/proc", pid, "comm").read_text().strip()
    except OSError:
        return ""


def _is_same(one: str, other: str) -> bool:
    if not one:
        return False
    try:
        return os.path.samefile(one.removeprefix("unix://"), other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
