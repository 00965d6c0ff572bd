"""Plugins from Debian's docker-registry into a whole engine, by Docker's calls and by Moorage's."""

import base64
import http.client
import json
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support import packages
from support.contents import contents_of, wait_for
from support.engines import EngineProcess, Refused, actor, config, engine, root_of
from support.limits import limit
from support.packages import Blob, Made, layer, make, push
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry", "zstd")]

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
NEEDY = config(
    network={"type": "host"}, linux={"allowAllDevices": True, "capabilities": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}
)
REQUESTED = [
    {"Name": "network", "Description": "", "Value": ["host"]},
    {"Name": "allow-all-devices", "Description": "", "Value": ["true"]},
    {"Name": "capabilities", "Description": "", "Value": ["CAP_SYS_ADMIN", "CAP_CHOWN"]},
]
SETTABLE = {"env": [{"name": "LEVEL", "value": "0", "settable": ["value"]}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registries")


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[Served]:
    with serve_registry(folder / "plain") as served:
        yield served


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    policy = {"network": ["host"], "allowAllDevices": True, "capabilities": ["*"], "mounts": ["*"], "devices": ["*"]}
    with engine(tmp_path_factory.mktemp("engine"), policy=policy, timeouts={"ready": limit(5.0)}) as made:
        yield made


@pytest.fixture
def house(shared_house: EngineProcess) -> Iterator[EngineProcess]:
    """An engine without plugins, before and after."""
    yield shared_house
    for plugin in shared_house.plugins():
        shared_house.remove(plugin["Name"], force=True)


# ------------------------------------------------------------------------------------------- what is pulled, D03


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [(packages.SCHEMA2, "application/vnd.docker.image.rootfs.diff.tar{}"), (packages.OCI, f"{OCI_LAYER}{{}}")],
    ids=["docker", "oci"],
)
def test_d03_case_060_every_kind_of_layer_is_unpacked_in_order_with_whiteouts(
    house: EngineProcess, registry: Served, media_type: str, kind: str
) -> None:
    mark = "+" if "oci" in media_type else "."
    made = make(
        config(),
        layer({"a": b"1", "b": b"1", "d/": b"", "d/old": b"1"}, kind.format("")),
        layer({"b": b"2", ".wh.a": b"", "d/.wh..wh..opq": b"", "d/new": b"2"}, kind.format(f"{mark}zstd")),
        layer({"b": b"3"}, kind.format(f"{mark}gzip")),
        media_type=media_type,
    )
    remote = f"{registry.host}/kinds/{made.digest[7:17]}"
    push(registry.host, remote.partition("/")[2], "latest", made)
    house.install(remote)
    assert house.more(remote)["Digest"] == made.digest
    house.enable(remote)
    root = root_of(house, remote)
    assert (root / "b").read_bytes() == b"3"
    assert not (root / "a").exists()
    assert os.listdir(root / "d") == ["new"]


def test_d03_case_026_of_an_index_the_package_for_this_machine_is_taken(house: EngineProcess, registry: Served) -> None:
    here = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    right, wrong = make(config(env=[{"name": "A", "value": "right"}])), make(config())
    for each in (right, wrong):
        push(registry.host, "t/index", each.digest[7:17], each)
    entries: list[tuple[Made, dict[str, Any]]] = [
        (wrong, {"platform": {"os": "unknown", "architecture": "unknown"}}),
        (wrong, {"platform": {"os": "linux", "architecture": "s390x"}}),
        (right, {"platform": {"os": "linux", "architecture": here}}),
    ]
    for media_type in (packages.LIST, packages.INDEX):
        tag = media_type.split(".")[1]
        packages.push_manifest(registry.host, "t/index", tag, packages.index_of(entries, media_type), media_type)
        house.install(f"{registry.host}/t/index:{tag}")
        assert house.more(f"{registry.host}/t/index:{tag}")["Digest"] == right.digest
    packages.push_manifest(registry.host, "t/index", "other", packages.index_of(entries[:2]), packages.LIST)
    for operation in (house.privileges, house.install):
        with pytest.raises(Refused, match=rf"^404: .* no package for linux/{here}, only for: linux/s390x$"):
            operation(f"{registry.host}/t/index:other")


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (make(config_type=packages.IMAGE), "400: .* is not a plugin but an image .*container.image.v1"),
        (make(config_type="application/x-thing", media_type=packages.OCI), "400: .* is not a plugin .*x-thing"),
        (make(config(), layer({}, "application/x-squashfs")), "400: .* a layer of type application/x-squashfs"),
        (make(config(entrypoint=3)), "400: .* entrypoint"),
    ],
    ids=["image", "thing", "layer", "config"],
)
def test_d03_case_066_what_is_no_plugin_is_refused_by_its_type(
    house: EngineProcess, registry: Served, made: Made, text: str
) -> None:
    remote = f"{registry.host}/no/{made.digest[7:17]}"
    push(registry.host, remote.partition("/")[2], "latest", made)
    before = contents_of(house)
    for operation in (house.privileges, house.install):
        with pytest.raises(Refused, match=text):
            operation(remote)
    assert house.plugins() == []
    assert contents_of(house) == before


def test_case_065_every_form_of_a_reference_is_pulled_and_gets_a_tag(house: EngineProcess, registry: Served) -> None:
    made = make()
    name = f"{registry.host}/forms/p"
    for tag in ("latest", "v1"):
        push(registry.host, "forms/p", tag, made)
    for remote, local in {
        name: f"{name}:latest",
        f"{name}:v1": f"{name}:v1",
        f"{name}@{made.digest}": "other:latest",
        f"{name}:v1@{made.digest}": "another:v2",
    }.items():
        alias = "" if local.startswith(name) else local.removesuffix(":latest")
        house.install(remote, alias)
        shown = house.inspect(local)
        assert shown["Name"] == local
        assert shown["PluginReference"] == (remote if remote != name else f"{name}:latest")
    house.remove(f"{name}:latest")
    house.install(f"{name}@{made.digest}")
    assert house.inspect(name)["Name"] == f"{name}:latest"
    with pytest.raises(Refused, match=r"400: cannot use digest in plugin tag"):
        house.install(name, f"x@{made.digest}")


# ------------------------------------------------------------------------------------------ what is granted, C07


def test_c07_case_058_only_exactly_what_is_requested_may_be_granted(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/needy", "latest", make(NEEDY, layer({"big": os.urandom(100_000)})))
    remote, before = f"{registry.host}/t/needy", contents_of(house)
    requested = house.privileges(remote)
    assert [(each["Name"], each["Value"]) for each in requested] == [
        (each["Name"], each["Value"]) for each in REQUESTED
    ]
    changed = json.loads(json.dumps(REQUESTED))
    changed[2]["Value"][0] = "CAP_NET_ADMIN"
    for granted in (
        None,
        [],
        REQUESTED[:1],
        REQUESTED[1:],
        [*REQUESTED, REQUESTED[0]],
        changed,
        [REQUESTED[0], REQUESTED[0], REQUESTED[2]],
    ):
        with pytest.raises(Refused, match=r"403: incorrect privileges"):
            house.install(remote, granted=granted)
    assert contents_of(house) == before, "the check comes before anything is read"
    mixed = [{**REQUESTED[2], "Value": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}, REQUESTED[0], REQUESTED[1]]
    house.install(remote, granted=mixed)


def test_c07_a_policy_says_what_is_granted_unattended(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/policed", "latest", make(config(pidhost=True, network={"type": "host"})))
    remote = f"{registry.host}/t/policed"
    requested = house.privileges(remote)
    for operation in ("install", "ensure"):
        with pytest.raises(Refused, match=r"403: cannot grant unattended.* host pid namespace"):
            house.install(remote, granted=requested) if operation == "install" else house.ensure(remote)
    house.ensure(remote, attended=True, privileges=requested)


# ------------------------------------------------------------------------------- our call: settings, and once


def test_case_054_a_wrong_setting_installs_nothing(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/set", "latest", make(config(**SETTABLE)))
    remote, before = f"{registry.host}/t/set", contents_of(house)
    with pytest.raises(Refused, match=r'400: setting "BAD" not found .*what can be set: LEVEL'):
        house.ensure(remote, settings=["LEVEL=1", "BAD=1"], verb="pull")
    assert house.plugins() == []
    assert contents_of(house) == before
    house.ensure(remote, settings=["LEVEL=1"], verb="pull")
    assert house.inspect(remote)["Settings"]["Env"] == ["LEVEL=1"]


def test_case_057_ensured_twice_is_installed_once(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/once", "latest", make(config(**SETTABLE)))
    remote = f"{registry.host}/t/once"
    house.ensure(remote, "p", settings=["LEVEL=1"])
    house.enable("p")
    before = house.inspect("p")
    assert [line["status"] for line in house.ensure(remote, "p", settings=["LEVEL=1"])] == [
        "Plugin p:latest is installed already"
    ]
    house.ensure(remote, "p")
    assert house.inspect("p")["Moorage"]["Pid"] == before["Moorage"]["Pid"]
    with pytest.raises(Refused, match=r"409: plugin p:latest already exists with other settings"):
        house.ensure(remote, "p", settings=["LEVEL=2"])
    with pytest.raises(Refused, match=r"409: plugin p:latest already exists, from .*t/once:latest and not from .*:v9"):
        house.ensure(f"{remote}:v9", "p")
    with pytest.raises(Refused, match=r"409: plugin p:latest already exists"):
        house.install(remote, "p")


# --------------------------------------------------------------------------- who asks, and whom: D05, D06, D08


def test_d05_case_027_what_a_registry_says_of_credentials_stays_so(house: EngineProcess, folder: Path) -> None:
    def header(password: str) -> str:
        return base64.urlsafe_b64encode(json.dumps({"username": USER, "password": password}).encode()).decode()

    with serve_registry(folder / "login", auth=htpasswd(folder)) as served:
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        push(served.host, "t/private", "latest", make(), authorization=basic)
        remote = f"{served.host}/t/private"
        for operation in (house.privileges, house.install):
            for headers in ({}, {"X-Registry-Auth": header("wrong")}):
                with pytest.raises(Refused, match=r"^401: "):
                    operation(remote, **headers)
            with pytest.raises(Refused, match=r"^404: "):
                operation(f"{remote}:none", **{"X-Registry-Auth": header(PASSWORD)})
        assert house.privileges(remote, **{"X-Registry-Auth": header(PASSWORD)}) == []
        house.install(remote, **{"X-Registry-Auth": header(PASSWORD)})
    with pytest.raises(Refused, match=r"^503: .*refused"):
        house.privileges(remote)


def test_d03_d08_ten_plugins_share_what_is_the_same(house: EngineProcess, registry: Served) -> None:
    base = layer({"base": os.urandom(2_000_000)})
    before = contents_of(house)
    for number in range(3):
        made = make(config(), base, layer({"own": str(number).encode()}))
        push(registry.host, "t/shared", f"v{number}", made)
        lines = house.install(f"{registry.host}/t/shared:v{number}")
        shared = [line for line in lines if line["status"] == "Already exists"]
        assert len(shared) == (2 if number else 0)
    now = contents_of(house)
    assert len(now.blobs - before.blobs) == 2 + 3 * 2 + 1
    assert len([name for name in now.snapshots if name.startswith("sha256:")]) == 2 + 3
    for number in range(3):
        house.remove(f"{registry.host}/t/shared:v{number}")
    wait_for(house, before)


# ------------------------------------------------------------------------------------------------- upgrade, D07


def versions(registry: Served, path: str, *second: str, **fields: Any) -> tuple[str, Made]:
    """Two versions, v1 and v2, of which the second one is an actor with these arguments; the repository, and v2."""
    base = layer({"actor": actor()})
    old = make(
        config(
            env=[{"name": "LEVEL", "value": "0", "settable": ["value"]}, {"name": "OLD", "settable": ["value"]}],
            mounts=[{"name": "state", "destination": "/state", "type": "bind", "options": ["rbind"],
                     "source": "/usr", "settable": ["source"]}],
            linux={"devices": [{"name": "d", "path": "/dev/null", "settable": ["path"]}]},
            propagatedMount="/data",
        ),
        layer({"which": b"1"}),
        base=base,
    )  # fmt: skip
    new = make(
        config(
            *second,
            env=[{"name": "LEVEL", "value": "0", "settable": ["value"]}, {"name": "NEW", "value": "lorem"}],
            mounts=[{"name": "state", "destination": "/state", "type": "bind", "options": ["rbind"],
                     "source": "/usr", "settable": ["source"]}],
            propagatedMount="/data",
            **fields,
        ),
        layer({"which": b"2"}),
        base=base,
    )  # fmt: skip
    for tag, made in (("v1", old), ("v2", new)):
        push(registry.host, path, tag, made)
    return f"{registry.host}/{path}", new


def test_d07_case_011_case_012_case_014_an_upgrade_keeps_what_is_the_users(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    name, new = versions(registry, "t/up")
    started = f"{time.time():.6f}"  # not the events of the tests before
    house.ensure(
        f"{name}:v1", "p", settings=["LEVEL=1", "OLD=x", f"state.source={tmp_path}", "d.path=/dev/fuse"], attended=True
    )
    before, old = contents_of(house), house.inspect("p")
    house.enable("p")
    data = house.root / "plugins" / old["Id"] / "propagated-mount/kept"
    data.write_text("mine")
    with pytest.raises(Refused, match=r"409: plugin must be disabled before upgrading: plugin p:latest is enabled"):
        house.upgrade("p", f"{name}:v2", house.privileges(f"{name}:v2"))
    house.disable("p")
    below = house.exec_root / "p" / old["Id"][:12] / "root"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    with pytest.raises(Refused, match=rf"{below} is mounted; unmount it first"):
        house.upgrade("p", f"{name}:v2", house.privileges(f"{name}:v2"))
    subprocess.run(["umount", below], check=True)
    with pytest.raises(Refused, match=r"403: incorrect privileges"):
        house.upgrade("p", f"{name}:v2")
    assert house.inspect("p") == old
    wait_for(house, before)

    lines = [line["status"] for line in house.upgrade("p", f"{name}:v2", house.privileges(f"{name}:v2"))]
    assert [line for line in lines if "dropped" in line] == [
        f"The setting {key} does not apply any more and was dropped" for key in ("OLD.value", "d.path")
    ]
    now = house.inspect("p")
    assert (now["Id"], now["Name"], now["PluginReference"]) == (old["Id"], "p:latest", f"{name}:v2")
    assert (now["Settings"]["Env"], now["Settings"]["Devices"]) == (["LEVEL=1", "NEW=lorem"], [])
    assert now["Settings"]["Mounts"][0]["Source"] == str(tmp_path)
    assert now["Moorage"]["Digest"] == new.digest
    stored = contents_of(house)
    assert stored.blobs == {new.digest, *(blob.digest for blob in new.blobs)}, "of the old version nothing is left"
    assert (len(stored.images), len(stored.snapshots), stored.leases) == (1, 3, frozenset())
    house.enable("p")
    assert (root_of(house, "p") / "which").read_bytes() == b"2"
    assert data.read_text() == "mine"
    events = [
        json.loads(line)
        for line in house.request("GET", f"/events?since={started}&until={int(time.time()) + 1}")[1].splitlines()
    ]
    assert [each["Action"] for each in events if each["Action"] in ("pull", "upgrade")] == ["pull", "pull", "upgrade"]
    house.end()
    house.start()
    house.until("p", "ready")
    assert contents_of(house) == stored


def test_d07_case_075_a_new_version_that_never_listens_gives_way_again(house: EngineProcess, registry: Served) -> None:
    name, _ = versions(registry, "t/never", "never", "out=I am new")
    house.ensure(f"{name}:v1", "p", settings=["LEVEL=1"], attended=True)
    before, old = contents_of(house), house.inspect("p")
    house.enable("p")
    text = f"within {limit(5):g} s; its last output:\nI am new; the version of before is current"
    with pytest.raises(Refused, match=text):
        house.change("p", f"{name}:v2", attended=True)
    house.until("p", "ready")
    now = house.inspect("p")
    assert {**now, "Enabled": False, "Moorage": {}} == {**old, "Moorage": {}}
    assert (root_of(house, "p") / "which").read_bytes() == b"1"
    wait_for(house, before)

    thread = threading.Thread(target=lambda: _quietly(lambda: house.change("p", f"{name}:v2", attended=True)))
    thread.start()
    house.wait_until(lambda: "#" in _record(house, "p")["image"], "the new version is tried out")
    house.end(signal.SIGKILL)
    thread.join()
    house.start()
    house.until("p", "ready")
    assert (root_of(house, "p") / "which").read_bytes() == b"1"
    wait_for(house, before)


def test_h05_d07_a_new_version_that_does_not_become_healthy_gives_way_again(
    house: EngineProcess, registry: Served
) -> None:
    name, _ = versions(registry, "t/sick", "sick=1")
    house.ensure(f"{name}:v1", "p", settings=["LEVEL=1"], attended=True)
    check = {"Kind": "call", "Method": "health"}
    house.request_own("PUT", "p", "policy", {"health": {"Checks": [check], "StartPeriod": 0, "Failures": 2}})
    house.enable("p")
    with pytest.raises(Refused, match=r"is unhealthy: health: sick; the version of before is current again"):
        house.change("p", f"{name}:v2", "restart=1&wait=60", attended=True)
    house.until("p", "ready")
    assert (root_of(house, "p") / "which").read_bytes() == b"1"
    house.request_own("POST", "p", "wait?timeout=60")

    house.change("p", f"{name}:v2", attended=True)  # without waiting, ready is enough
    assert (root_of(house, "p") / "which").read_bytes() == b"2"


def test_d07_case_096_a_corrupt_layer_leaves_the_old_version_as_it_is(house: EngineProcess, registry: Served) -> None:
    name, _ = versions(registry, "t/corrupt")
    packages.push(registry.host, "t/corrupt", "v3", make(config(), Blob(b"no layer" * 100, packages.GZIP)))
    house.ensure(f"{name}:v1", "p", attended=True)
    before, old = contents_of(house), house.inspect("p")
    for _ in range(2):
        with pytest.raises(Refused, match=r"cannot unpack layer"):
            house.upgrade("p", f"{name}:v3")
        wait_for(house, before)
    assert house.inspect("p") == old


def _quietly(do: Callable[[], object]) -> None:
    with suppress(OSError, http.client.HTTPException, Refused, ValueError):
        do()


def _record(house: EngineProcess, name: str) -> Any:
    return json.loads((house.root / "plugins" / house.inspect(name)["Id"] / "plugin.json").read_text())


# -------------------------------------------------------------------------------------------- our commands, L02


def moorage(house: EngineProcess, *words: str, answer: str = "", **options: Any) -> "subprocess.CompletedProcess[str]":
    """The moorage command, for this engine; ``answer`` is typed input."""
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("environment", {})}
    return subprocess.run(
        command,
        input=answer,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        check=False,
        timeout=limit(100),
        **options,
    )


def run_command(house: EngineProcess, *words: str, **options: Any) -> tuple[int, str, str]:
    done = moorage(house, *words, stderr=subprocess.PIPE, **options)
    return done.returncode, done.stdout, done.stderr


def test_l02_install_shows_prompts_and_starts(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/cli", "v1", make({**NEEDY, **SETTABLE}))
    name = f"{registry.host}/t/cli:v1"
    privileges_shown = "\n + network: host\n + allow-all-devices: true\n + capabilities: CAP_CHOWN, CAP_SYS_ADMIN\n"
    for answer, reason in (("n\n", "were not granted"), ("", "give --grant-all-permissions")):
        status, out, err = run_command(house, "install", name, answer=answer)
        assert (status, out, reason in err, privileges_shown in f"\n{err}") == (1, "", True, True), err
    assert house.plugins() == []
    for words, reason in (
        ([name, "BAD=1"], "what can be set: LEVEL"),
        ([name, "\u2013\u2013disable"], "not found in the plugin configuration"),
        ([f"{registry.host}/t/none"], "cannot read"),
        ([name, "--alias", f"x@sha256:{'0' * 64}"], "cannot use digest in plugin tag"),
    ):
        status, out, err = run_command(house, "install", "--grant-all-permissions", *words)
        assert (status, out, reason in err) == (1, "", True), err
    assert house.plugins() == []
    status, out, err = run_command(house, "install", name, "--alias", "p", "LEVEL=2", answer="y\n")
    assert (status, out) == (0, "p:latest\n"), err
    assert ": Complete\n" in err
    shown = house.inspect("p")
    assert (shown["Enabled"], shown["Settings"]["Env"]) == (True, ["LEVEL=2"])
    for words in (["--ensure", "LEVEL=2"], ["--ensure"]):
        assert run_command(house, "install", name, "--alias", "p", *words)[:2] == (0, "p:latest\n")
    assert house.inspect("p")["Moorage"]["Pid"] == shown["Moorage"]["Pid"]
    assert run_command(house, "install", name, "--alias", "p", "--grant-all-permissions")[0] == 1


def test_l02_upgrade_shows_what_is_requested_in_addition(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/more", "v1", make(config(network={"type": "host"})))
    push(registry.host, "t/more", "v2", make(config(linux={"capabilities": ["CAP_CHOWN"]})))
    push(registry.host, "t/other", "v1", make(config()))
    name = f"{registry.host}/t/more"
    assert run_command(house, "install", f"{name}:v1", "--alias", "p", "--grant-all-permissions")[0] == 0
    status, _, err = run_command(house, "upgrade", "p", f"{name}:v2")
    assert (status, "disable it first, or give --restart" in err) == (1, True)
    status, _, err = run_command(house, "upgrade", "--restart", "p", f"{name}:v2", answer="n\n")
    assert (status, " + capabilities: CAP_CHOWN\n - network: host\n" in err) == (1, True), err
    status, out, err = run_command(house, "upgrade", "--restart", "p", f"{name}:v2", answer="y\n")
    assert (status, out) == (0, "p:latest\n"), err
    assert house.state("p") == "ready"
    status, _, err = run_command(house, "upgrade", "--restart", "p", f"{registry.host}/t/other:v1")
    assert (status, "give --skip-remote-check" in err) == (1, True)
    status, _, err = run_command(
        house, "upgrade", "--restart", "--skip-remote-check", "p", f"{registry.host}/t/other:v1"
    )
    assert (status, " - capabilities: CAP_CHOWN\n" in err) == (0, True), err
    assert json.loads(run_command(house, "privileges", "--json", f"{name}:v2")[1])[0]["Value"] == ["CAP_CHOWN"]
    assert "capabilities" in run_command(house, "privileges", f"{name}:v2")[1]


def test_l02_a_plugin_that_does_not_start_is_reported_as_installed(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/broken", "latest", make(config("err=boom", "end=3")))
    status, out, err = run_command(house, "install", f"{registry.host}/t/broken", "--alias", "p")
    assert (status, out) == (1, "")
    assert re.search(
        r"plugin p:latest is installed, but cannot be enabled: .*status 3.*boom.*: moorage enable p:latest",
        err,
        re.DOTALL,
    )


def test_l02_a_terminal_shows_bars(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "t/bars", "latest", make(config(), layer({"big": os.urandom(3_000_000)})))
    controller_end, terminal_end = pty.openpty()
    try:
        done = moorage(house, "install", f"{registry.host}/t/bars", "--alias", "p", stderr=terminal_end)
    finally:
        os.close(terminal_end)
    shown = b""
    with suppress(OSError), os.fdopen(controller_end, "rb", buffering=0) as terminal:
        while piece := terminal.read(65536):
            shown += piece
    assert (done.returncode, done.stdout) == (0, "p:latest\n")
    assert b"Pulling from" in shown
    assert b"Complete" in shown
    assert "\u2501".encode() in shown, "the bars"


def test_d05_our_command_uses_what_docker_login_keeps(house: EngineProcess, folder: Path, tmp_path: Path) -> None:
    with serve_registry(folder / "cli-login", auth=htpasswd(folder)) as served:
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        push(served.host, "t/private", "latest", make(), authorization=f"Basic {basic}")
        environment = {"DOCKER_CONFIG": str(tmp_path)}
        assert run_command(house, "privileges", f"{served.host}/t/private", environment=environment)[0] == 1
        (tmp_path / "config.json").write_text(json.dumps({"auths": {served.host: {"auth": basic}}}))
        status, out, err = run_command(
            house, "install", f"{served.host}/t/private", "--disable", environment=environment
        )
        assert (status, out) == (0, f"{served.host}/t/private:latest\n"), err
