"""The units, as systemd reads them, and that they say what the guide promises."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "packaging"
UNITS = ("moorage.service", "moorage-down.service", "moorage.slice")


def read(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(FOLDER / name)
    return parser


@pytest.mark.needs("systemd-analyze")
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    program = tmp_path / "moorage"
    program.symlink_to(sys.executable)
    for name in UNITS:
        text = (FOLDER / name).read_text()
        assert text.count("=/usr/bin/moorage ") + text.count("=-/usr/bin/moorage ") == name.endswith(".service")
        (tmp_path / name).write_text(text.replace("/usr/bin/moorage", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in UNITS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("systemd-analyze")
def test_systemd_sees_a_mistake(tmp_path: Path) -> None:
    unit = tmp_path / "moorage.service"
    unit.write_text((FOLDER / unit.name).read_text().replace("KillMode=process", "KillMode=nonsense"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert "kill mode" in done.stderr


def test_a_restart_leaves_what_the_engine_keeps() -> None:
    service = read("moorage.service")["Service"]
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "ExecStart": "/usr/bin/moorage serve",
        "KillMode": "process",
        "Restart": "on-failure",
        "Delegate": "yes",
        "OOMPolicy": "continue",
        "RuntimeDirectory": "moorage",
        "RuntimeDirectoryPreserve": "yes",
        "StateDirectory": "moorage",
    }
    assert {name: service[name] for name in expected} == expected
    assert int(service["WatchdogSec"]) >= 10
    # In a mount namespace of its own the host would not see what plugins mount.
    assert not {"PrivateMounts", "PrivateTmp", "ProtectSystem", "ProtectHome", "DynamicUser"} & set(service)


def test_a_shutdown_stops_the_slice_after_the_plugins_were_stopped() -> None:
    unit = read("moorage.slice")["Unit"]
    assert unit["DefaultDependencies"] == "no"
    assert not {"Conflicts", "PartOf", "BindsTo"} & set(unit)


def test_only_the_end_of_the_host_takes_plugins_down() -> None:
    engine, down = read("moorage.service")["Unit"], read("moorage-down.service")
    assert "moorage-down.service" in engine["Wants"].split()
    assert "moorage-down.service" in engine["After"].split()  # stopped in reverse: after the engine
    assert down["Unit"]["RefuseManualStop"] == "yes"
    assert down["Service"]["ExecStop"] == "-/usr/bin/moorage down"
    assert not {"PartOf", "BindsTo", "Requires", "StopWhenUnneeded"} & set(down["Unit"])
    assert "Install" not in down


CONSUMERS = {
    "docker.service": "[Unit]\nAfter=network-online.target docker.socket containerd.service\nRequires=docker.socket\n",
    "docker.socket": "[Socket]\nListenStream=/run/docker.sock\n",
    "podman.service": "[Unit]\nRequires=podman.socket\nAfter=podman.socket\n",
    "podman.socket": "[Socket]\nListenStream=/run/podman/podman.sock\n",
    "podman-restart.service": "[Unit]\nAfter=network-online.target\n",
    "containerd.service": "[Unit]\nAfter=network.target\n",
}
"""As Debian's packages order them, and their sockets are enabled."""


def verify_with_consumers(folder: Path, **changes: str) -> str:
    """What systemd says of a boot with the consumers of plugins; ``changes`` are texts to be replaced, by file."""
    for name in UNITS:
        text = (FOLDER / name).read_text().replace("/usr/bin/moorage", "/bin/true")
        (folder / name).write_text(text + changes.get(name.partition(".")[0], ""))
    for name, text in CONSUMERS.items():
        run = "\n[Service]\nExecStart=/bin/true\n" if name.endswith(".service") else ""
        (folder / name).write_text(text + run)
    enabled = folder / "sockets.target.wants"
    enabled.mkdir()
    for name in ("docker.socket", "podman.socket"):
        (enabled / name).symlink_to(folder / name)
    targets = ["basic.target", "multi-user.target", "remote-fs.target", *UNITS, *CONSUMERS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *targets],
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    return "\n".join(line for line in done.stderr.splitlines() if "ordering cycle" in line)


def test_p16_plugins_are_started_before_their_consumers_and_stopped_after_them() -> None:
    for name in ("moorage.service", "moorage-down.service"):
        unit = read(name)["Unit"]
        assert {"docker.service", "podman.service", "podman-restart.service"} <= set(unit["Before"].split())
    # What is stopped in reverse order: consumers, the engine, the plugins.
    assert "moorage-down.service" in read("moorage.service")["Unit"]["After"].split()


@pytest.mark.needs("systemd-analyze")
def test_p16_a_boot_with_docker_and_podman_has_no_ordering_cycle(tmp_path: Path) -> None:
    assert verify_with_consumers(tmp_path) == ""


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", ["docker.socket", "podman.socket"])
def test_p16_sockets_cannot_be_ordered_after_a_service(tmp_path: Path, name: str) -> None:
    assert "ordering cycle" in verify_with_consumers(tmp_path, moorage=f"\n[Unit]\nBefore={name}\n")


GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")


@pytest.mark.needs("systemd-analyze")
@pytest.mark.skipif(not GENERATOR.exists(), reason="no systemd-fstab-generator")
def test_v03_a_line_of_fstab_is_mounted_after_the_engine_and_without_an_ordering_cycle(tmp_path: Path) -> None:
    guide = (FOLDER.parent / "docs/guide/volumes-for-programs.md").read_text()
    (line,) = (each for each in guide.splitlines() if each.startswith("hello-volume/data "))
    fstab, folder = tmp_path / "fstab", tmp_path / "units"
    fstab.write_text(line + "\n")
    folder.mkdir()
    environment = {"SYSTEMD_FSTAB": str(fstab), "SYSTEMD_LOG_TARGET": "console", "PATH": "/usr/bin:/bin"}
    subprocess.run([GENERATOR, folder, folder, folder], env=environment, check=True)
    unit = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(folder / "mnt-data.mount")
    assert unit["Mount"]["Type"] == "moorage"
    assert "moorage.service" in unit["Unit"]["After"].split()
    assert "Requires" not in unit["Unit"]  # a restart of the engine would unmount it
    assert (folder / "remote-fs.target.requires/mnt-data.mount").is_symlink()
    assert verify_with_consumers(folder) == ""
