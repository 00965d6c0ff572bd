"""What an operator grants and what he gets: packages that ask for less than they take, paths that change after a check.

Each of these succeeded at 70b8c43.
"""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import leftovers
from support.engines import EngineProcess, Refused, actor, config, engine
from support.layouts import Layout, layer_tar
from support.packages import make, push
from support.registries import Served

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

BIND = {"name": "x", "settable": ["source"], "destination": "/x", "type": "bind", "options": ["rbind"]}


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the guarded engine's policy allows."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, allowed: Path) -> Iterator[EngineProcess]:
    policy = {
        "mounts": [f"{allowed}/"],
        "readOnlyMounts": ["/usr/"],
        "fileSystems": ["tmpfs"],
        "devices": ["/dev/null"],
    }
    with engine(tmp_path_factory.mktemp("guarded"), policy=policy) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_else(house: EngineProcess, guarded: EngineProcess) -> Iterator[None]:
    yield
    for each in (house, guarded):
        for plugin in each.plugins():
            each.remove(plugin["Id"], force=True)


def mounted(*mounts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return config(mounts=list(mounts), **fields)


def values(privileges: list[dict[str, Any]]) -> list[str]:
    return [f"{each['Name']}: {', '.join(each['Value'])}" for each in privileges]


def inside(house: EngineProcess, name: str, path: str) -> Path:
    """A path in a running plugin, as it sees it."""
    return Path(f"/proc/{house.more(name)['Pid']}/root{path}")


# -------------------------------------------------------------------------------- S03: what is requested is what it is

TMPFS = {"source": "tmpfs", "destination": "/x", "type": "tmpfs"}
FORMS: list[dict[str, Any]] = [
    {"type": "proc"},
    {"type": "sysfs"},
    {"type": "cgroup2"},
    {"type": "overlay", "options": ["lowerdir=/root:/etc"]},
    {"type": "tmpfs", "options": ["size=90%"]},
    {"type": "ext4", "source": "/dev/sda1"},
    {"source": "/etc", "options": ["bind"]},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: str(form.get("type", "bind")))
def test_s03_another_kind_of_mount_behind_the_same_source_needs_a_new_grant(
    house: EngineProcess, registry: Served, form: dict[str, Any]
) -> None:
    path = f"t/form-{FORMS.index(form)}"
    name = f"{registry.host}/{path}"
    push(registry.host, path, "v1", make(mounted(TMPFS)))
    push(registry.host, path, "v2", make(mounted(TMPFS | form)))
    seen = house.privileges(f"{name}:v1")
    assert "mount: tmpfs" in values(seen), "Docker's list is in it"
    house.install(f"{name}:v1", "p", seen)
    requested = house.privileges(f"{name}:v2")
    text = "\n".join(values(requested))
    for part in (form.get("type", ""), *form.get("options", []), form.get("source", ""), "/x"):
        assert part in text
    with pytest.raises(Refused, match=r"403: incorrect privileges: not granted: .*(file system|bind mount) \["):
        house.upgrade("p", f"{name}:v2", seen)
    house.upgrade("p", f"{name}:v2", requested)
    assert house.more("p")["Privileges"] == requested


@pytest.mark.parametrize(
    "change", [{"options": ["rbind"]}, {"options": ["rbind", "ro", "rshared"]}, {"destination": "/run/docker/plugins"}]
)
def test_s03_a_bind_that_becomes_writable_shared_or_is_elsewhere_needs_a_new_grant(
    house: EngineProcess, registry: Served, change: dict[str, Any]
) -> None:
    read_only = {"source": "/usr", "destination": "/x", "type": "bind", "options": ["rbind", "ro"]}
    path = f"t/bind-{len(str(change))}"
    for tag, mount in (("v1", read_only), ("v2", read_only | change)):
        push(registry.host, path, tag, make(mounted(mount)))
    name = f"{registry.host}/{path}"
    seen = house.privileges(f"{name}:v1")
    assert "bind mount: /usr on /x, read-only (rbind,ro)" in values(seen)
    house.install(f"{name}:v1", "p", seen)
    with pytest.raises(Refused, match="403: incorrect privileges"):
        house.upgrade("p", f"{name}:v2", seen)


def test_s03_a_source_that_was_set_does_not_become_writable_by_an_upgrade(
    house: EngineProcess, registry: Served
) -> None:
    """Neither version has a source of its own, so Docker's clients see the same empty list of both."""
    off = BIND | {"source": "", "options": ["rbind", "ro"]}
    push(registry.host, "t/later", "v1", make(mounted(off)))
    push(registry.host, "t/later", "v2", make(mounted(off | {"options": ["rbind"]})))
    name = f"{registry.host}/t/later"
    house.install(f"{name}:v1", "p", house.privileges(f"{name}:v1"))
    house.set("p", "x.source=/etc")
    assert house.privileges(f"{name}:v2") == []
    with pytest.raises(Refused, match=r"403: .*not granted: .*bind mount \[/etc on /x, read-write \(rbind\)\]"):
        house.upgrade("p", f"{name}:v2", [])
    requested = house.request_json("POST", f"/moorage/v1/privileges?name=p&remote={name}:v2", {})
    assert values(requested["New"]) == ["bind mount: /etc on /x, read-write (rbind)"]
    house.change("p", f"{name}:v2", privileges=requested["Privileges"])
    assert house.more("p")["Privileges"] == requested["Privileges"]


def test_s03_a_file_system_that_a_set_switches_on_needs_a_grant(house: EngineProcess) -> None:
    house.create("p", mounted({**BIND, "source": "", "type": "proc", "options": []}))
    house.set("p", "x.source=anything")
    with pytest.raises(Refused, match=r"403: .*never granted file system \[mount of type proc from anything on /x\]"):
        house.enable("p")
    house.request_own("POST", "p", "grant", {"privileges": house.more("p")["Privileges"]})
    house.enable("p")
    assert inside(house, "p", "/x/self").is_symlink()


def test_case_239_inspect_shows_the_privileges_of_what_was_set(house: EngineProcess) -> None:
    house.create("p", mounted(BIND | {"source": ""}))
    assert house.more("p")["Privileges"] == []
    house.set("p", "x.source=/usr")
    assert values(house.more("p")["Privileges"]) == ["mount: /usr", "bind mount: /usr on /x, read-write (rbind)"]


# ---------------------------------------------------------------- S05: the policy is about what is mounted, at each use


def test_s05_a_link_in_an_allowed_directory_grants_nothing(
    guarded: EngineProcess, registry: Served, allowed: Path
) -> None:
    secret = allowed.parent / "secret"
    secret.mkdir(exist_ok=True)
    (allowed / "link").symlink_to(secret)
    push(registry.host, "t/link", "v1", make(mounted(BIND | {"source": f"{allowed}/link"})))
    name = f"{registry.host}/t/link:v1"
    with pytest.raises(Refused, match=rf"403: cannot grant unattended: .*which is {secret}"):
        guarded.install(name, "p", guarded.privileges(name))
    (allowed / "link").unlink()
    (allowed / "link").mkdir()
    guarded.install(name, "p", guarded.privileges(name))
    (allowed / "link").rmdir()
    (allowed / "link").symlink_to(secret)
    with pytest.raises(Refused, match=rf"403: .*cannot grant unattended: .*which is {secret}"):
        guarded.enable("p")
    (allowed / "link").unlink()


def test_s05_a_setting_is_checked_like_the_config(guarded: EngineProcess, allowed: Path) -> None:
    (allowed / "data").mkdir(exist_ok=True)
    guarded.create(
        "p", mounted(BIND | {"source": ""}, linux={"devices": [{"name": "d", "path": "", "settable": ["path"]}]})
    )
    for wrong in ("x.source=/etc", f"x.source={allowed}/../../etc", "d.path=/dev/kmsg", "d.path=/dev"):
        with pytest.raises(Refused, match="403: cannot grant unattended"):
            guarded.set("p", wrong)
    guarded.set("p", f"x.source={allowed}/data", "d.path=/dev/null")
    guarded.enable("p")
    (allowed / "data/file").write_text("here")
    assert inside(guarded, "p", "/x/file").read_text() == "here"


def test_s05_the_config_of_a_create_is_checked_at_enable(guarded: EngineProcess) -> None:
    guarded.create("p", mounted(BIND | {"source": "/etc"}))
    with pytest.raises(Refused, match=r"403: .*does not allow bind mount \[/etc on /x, read-write \(rbind\)\]"):
        guarded.enable("p")
    assert not guarded.inspect("p")["Enabled"]
    guarded.create("q", mounted({"source": "x", "destination": "/y", "type": "proc"}))
    with pytest.raises(Refused, match=r"403: .*does not allow file system \[mount of type proc"):
        guarded.enable("q")
    guarded.create(
        "r", mounted({"source": "/usr/share", "destination": "/y", "type": "bind", "options": ["bind", "ro"]}, TMPFS)
    )
    guarded.enable("r")
    assert inside(guarded, "r", "/y").is_dir()


def test_s05_a_restart_after_a_crash_and_after_the_engine_checks_again(guarded: EngineProcess, allowed: Path) -> None:
    data = allowed / "moved"
    data.mkdir()
    guarded.create("p", mounted(BIND | {"source": str(data)}))
    guarded.enable("p")
    data.rmdir()
    data.symlink_to("/etc")
    guarded.crash("p", 1)
    guarded.wait_until(
        lambda: "does not allow" in ((guarded.more("p")["LastExit"] or {}).get("Error") or ""), "the start was refused"
    )
    with pytest.raises(Refused, match="does not allow"):
        guarded.request_own("POST", "p", "restart")
    data.unlink()
    data.mkdir()
    guarded.until("p", "ready")


def test_s05_what_was_checked_is_what_is_mounted(guarded: EngineProcess, allowed: Path) -> None:
    """A race: the source is a directory and a link to /etc in turn, as fast as it goes, through many starts."""
    good, bad, source = allowed / "good", allowed / "bad", allowed / "source"
    good.mkdir()
    (good / "mark").write_text("good")
    bad.symlink_to("/etc")
    source.symlink_to(good)
    over = threading.Event()

    def swap() -> None:
        for target in _alternating(over, good, bad):
            (allowed / "next").symlink_to(target)
            os.rename(allowed / "next", source)

    guarded.create("p", mounted(BIND | {"source": str(source)}))
    swapper = threading.Thread(target=swap)
    swapper.start()
    started = 0
    try:
        for _ in range(60):
            status, raw = guarded.request("POST", "/plugins/p/enable")
            assert status in (200, 403), raw
            if status == 403:
                continue
            started += 1
            assert inside(guarded, "p", "/x/mark").read_text() == "good"
            guarded.disable("p")
            if started >= 8:
                break
    finally:
        over.set()
        swapper.join()
    assert started


def _alternating(over: threading.Event, *targets: Path) -> Iterator[Path]:
    while not over.is_set():
        yield from targets


def test_s05_a_read_only_grant_does_not_reach_what_is_mounted_below(guarded: EngineProcess, registry: Served) -> None:
    """Read-only ends at the top of a recursive bind; what is mounted below it would be writable."""
    rules = {"source": "/usr/lib", "destination": "/x", "type": "bind", "options": ["rbind", "ro"]}
    guarded.create("p", mounted(rules))
    guarded.enable("p")
    lines = Path(f"/proc/{guarded.more('p')['Pid']}/mountinfo").read_text().splitlines()
    (line,) = [line for line in lines if line.split()[4].startswith("/x")]
    assert "ro" in line.split()[5].split(",")
    assert "shared:" not in line


def test_s05_pins_leave_nothing_behind_and_take_nothing_of_the_host_along(
    guarded: EngineProcess, allowed: Path
) -> None:
    (allowed / "file").write_text("x")
    inner, deep = allowed / "tree/inner", allowed / "tree/inner/deep"
    inner.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    subprocess.run(["mount", "--make-shared", inner], check=True)
    deep.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", deep], check=True)
    shared = {"source": f"{allowed}/tree", "destination": "/y", "type": "bind", "options": ["rbind", "rshared"]}
    guarded.create("p", mounted(BIND | {"source": f"{allowed}/file"}, shared))
    directories = (guarded.exec_root, guarded.root, allowed)  # others mount on this machine, too
    before = sorted(leftovers.mounts_below(*directories))
    try:
        guarded.enable("p")
        assert inside(guarded, "p", "/y/inner/deep").is_dir()
        assert not list((guarded.exec_root / "p").glob("*/m")), "they last as long as it takes to create the container"
        guarded.crash("p", 1)
        guarded.until_restarted("p", 1)
        guarded.disable("p")
        assert sorted(leftovers.mounts_below(*directories)) == before
        assert inner.is_mount()
        assert deep.is_mount()
    finally:
        subprocess.run(["umount", deep, inner], check=False)
    assert (allowed / "file").read_text() == "x"


def test_s05_an_attended_grant_covers_what_was_shown_and_nothing_else(guarded: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/attended", "v1", make(mounted(BIND | {"source": "/opt"})))
    name = f"{registry.host}/t/attended:v1"
    guarded.ensure(name, "p", attended=True, privileges=guarded.privileges(name))
    guarded.enable("p")
    guarded.disable("p")
    with pytest.raises(Refused, match="403: cannot grant unattended"):
        guarded.set("p", "x.source=/etc")


# ------------------------------------------------------------------------------------------- S13: who grants what


@pytest.mark.parametrize("source", ["etc", "../etc", "./x"])
def test_s13_a_relative_source_is_refused_wherever_it_comes_from(
    house: EngineProcess, registry: Served, source: str
) -> None:
    with pytest.raises(Refused, match=r"400: .*mounts\[0\].source: must be an absolute path"):
        house.create("p", mounted(BIND | {"source": source}))
    push(registry.host, "t/relative", "v1", make(mounted(BIND | {"source": source})))
    with pytest.raises(Refused, match=r"400: .*mounts\[0\].source: must be an absolute path"):
        house.privileges(f"{registry.host}/t/relative:v1")
    house.create("p", mounted(BIND | {"source": ""}))
    with pytest.raises(Refused, match=r"400: .*must be an absolute path"):
        house.set("p", f"x.source={source}")


def archive(document: dict[str, Any], name: str) -> bytes:
    layout = Layout()
    layout.list(layout.plugin(document, [layer_tar({"actor": (actor(), 0o755)})]), name)
    return layout.tar()


def load(house: EngineProcess, data: bytes) -> Any:
    return house.request_json("POST", "/moorage/v1/load", data, headers={"Content-Type": "application/x-tar"})


def test_s13_what_an_archive_requests_is_not_granted_until_it_was_shown(house: EngineProcess) -> None:
    (loaded,) = load(house, archive(mounted(BIND | {"source": "/usr"}, network={"type": "host"}), "docker.io/t/p:1"))
    assert loaded["Ungranted"] == loaded["Privileges"]
    assert "bind mount: /usr on /x, read-write (rbind)" in values(loaded["Privileges"])
    name = loaded["Name"]
    with pytest.raises(Refused, match=r"403: .*never granted network \[host\], mount \[/usr\], bind mount"):
        house.enable(name)
    with pytest.raises(Refused, match="403: incorrect privileges"):
        house.request_own("POST", name, "grant", {"privileges": loaded["Privileges"][:1]})
    house.request_own("POST", name, "grant", {"privileges": loaded["Privileges"]})
    assert house.more(name)["Ungranted"] == []
    house.enable(name)


def test_s13_an_archive_without_requests_needs_no_grant(house: EngineProcess) -> None:
    (loaded,) = load(house, archive(config(), "docker.io/t/q:1"))
    house.enable(loaded["Name"])


def test_s13_a_saved_plugin_takes_no_grant_along(house: EngineProcess) -> None:
    house.create("t/saved:1", mounted(BIND | {"source": "/usr"}))
    house.enable("t/saved:1")
    _, data = house.request("GET", "/moorage/v1/save?name=t/saved:1")
    house.remove("t/saved:1", force=True)
    (loaded,) = load(house, data)
    with pytest.raises(Refused, match=r"403: .*never granted"):
        house.enable(loaded["Name"])
    assert json.dumps(loaded["Ungranted"]) != "[]"
