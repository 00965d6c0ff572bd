"""Checks of the engine of this machine and of its socket. Nothing is changed."""

import grp
import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

from moorage import errors
from moorage.doctor.check import Check, CheckTarget, ContainerdState, exists, unknown_without_root
from moorage.doctor.findings import Finding, Verdict
from moorage.engine.store import Store, list_retained
from moorage.host.sockets import accepts_connections, is_socket

__all__ = ("ENGINE_CHECKS",)

_START = "start it: moorage serve, or systemctl start moorage; plugins that ran continue"


def check_engine(target: CheckTarget) -> Finding:
    """Whether the engine runs, answers and can run plugins."""
    data, socket = target.data, target.socket
    store = Store(data)
    if not exists(socket):
        return _absent(store, socket)
    try:
        info = target.get_info()
    except errors.Denied:
        return _forbidden(socket)
    except errors.MoorageError as error:
        if store.is_locked():
            text = f"process {store.find_owner()} works on {data} but does not answer on {socket}: {error}"
            advice = "see why (journalctl -u moorage), or end it (kill -9) and start it again; plugins continue"
        elif accepts_connections(socket):
            text = f"does not run; another program answers on {socket}: {error}"
            advice = "name the socket of the engine with --host or MOORAGE_HOST, or stop that program"
        else:
            text, advice = f"does not run, and has left {socket}: it was killed", _START
        return Finding("engine", Verdict.WRONG, text, advice)
    state = info.moorage
    if state.problem:
        return Finding("engine", Verdict.WRONG, f"answers, but cannot run plugins: {state.problem}", _advise(state))
    text = f"version {info.server_version} answers on {socket}, with containerd {state.containerd_version}"
    return Finding("engine", Verdict.OK, text)


def check_leftovers(target: CheckTarget) -> Sequence[Finding]:
    """What the engine found at its start and did not touch, and files that earlier starts have renamed."""
    findings: list[Finding] = []
    texts: list[str] = []
    try:
        texts += target.get_info().moorage.notices
    except errors.MoorageError:
        pass  # reported by the check of the engine
    try:
        texts += list_retained(target.data)
    except PermissionError as error:
        findings.append(unknown_without_root("leftovers", f"{error.filename}: {error.strerror}"))
    advice = "find out whose it is; remove it if it is not needed"
    return [*findings, *(Finding("leftovers", Verdict.WARNING, text, advice) for text in texts)]


def _absent(store: Store, socket: Path) -> Finding:
    if store.is_locked():
        text = f"process {store.find_owner()} works on {store.root}, but there is no socket at {socket}"
        return Finding("engine", Verdict.WRONG, text, "name its socket with --host or MOORAGE_HOST, or start it again")
    if exists(store.root / "engine.json"):
        return Finding("engine", Verdict.WARNING, f"does not run; its plugins are in {store.root}", _START)
    return Finding("engine", Verdict.OK, f"does not run, and has no plugins in {store.root} yet")


def _forbidden(socket: Path) -> Finding:
    status = socket.stat()
    user, group = _user(os.geteuid()), _group(status.st_gid)
    advice = f"use sudo, or let {user} into the group: sudo usermod -aG {group} {user}, then log in again"
    if status.st_gid == 0 or not status.st_mode & stat.S_IWGRP:
        advice = "use sudo, or start the engine with --group NAME (MOORAGE_GROUP) of a group that may use it"
    return Finding("engine", Verdict.WRONG, f"user {user} may not use {socket}", advice)


def _advise(state: ContainerdState) -> str:
    if "run moorage down" in state.problem:
        return ""  # a damaged database: the problem says what to do
    if state.containerd == "private":
        return "read containerd.log below containerd/ in the data directory; the engine tries again by itself"
    address = state.containerd_address or state.containerd
    return f"check that containerd runs ({address}: systemctl status containerd); the engine tries again by itself"


def check_socket(target: CheckTarget) -> Finding:
    """Who may use the API, which is as good as root: root, and at most one group."""
    socket = target.socket
    subject = "engine socket"
    try:
        status = socket.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        return Finding(subject, Verdict.OK, f"there is nothing at {socket} ({error.strerror})")
    if not is_socket(socket):
        advice = "remove it, or choose another path with --host"
        return Finding(subject, Verdict.WRONG, f"{socket} is not a socket", advice)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0 or mode & stat.S_IWOTH:
        users = "all users" if mode & stat.S_IWOTH else f"user {_user(status.st_uid)}"
        text = f"{users} may use {socket}, which is as good as root"
        return Finding(subject, Verdict.WRONG, text, f"chown root {socket}; chmod 660 {socket}; or restart the engine")
    group = _group(status.st_gid) if mode & stat.S_IWGRP and status.st_gid else ""
    return Finding(subject, Verdict.OK, f"root{f' and group {group}' if group else ''} may use {socket}")


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


ENGINE_CHECKS: tuple[Check, ...] = (
    ("engine", check_engine),
    ("leftovers", check_leftovers),
    ("engine socket", check_socket),
)
"""In the order in which they are reported."""
