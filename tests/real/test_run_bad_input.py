"""What `moorage run` cannot run: a sentence on standard error says what is wrong and what to do; nothing is left."""

import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moorage import errors
from moorage.foreground.session import plan_run
from moorage.packages.directory import load_directory
from moorage.plugins import NO_OVERRIDES, effective_settings
from support.foreground import EARLY, Machine, make_plugin
from support.local_user import open_to_all
from support.runtimes import runtime_command

pytestmark = pytest.mark.real

UNPRIVILEGED = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def refused(machine: Machine, *words: str | Path, status: int = 1, **options: Any) -> str:
    """The one sentence that such a run says in the end."""
    done = machine.moorage("run", *words, **options)
    assert done.stdout == ""
    said = done.stderr.splitlines()
    starting = [line for line in said if line.startswith(("moorage: starting ", "moorage: socket "))]
    assert said[: len(starting)] == starting
    assert done.returncode == status, said
    sentence = "\n".join(said[len(starting) :])
    assert "Traceback" not in sentence
    assert sentence.startswith("moorage: "), sentence
    return sentence.removeprefix("moorage: ")


# ---- the directory and its config.json


@pytest.mark.parametrize("name", ["config.json", "plugin.tar"])
def test_l01_a_file_instead_of_a_directory_is_refused(machine: Machine, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("{}")
    assert refused(machine, file) == f"cannot run the plugin: {file} is a file; give its directory"
    assert refused(machine, tmp_path / "none") == f"cannot run the plugin: there is no plugin at {tmp_path / 'none'}"


def write(text: str | bytes) -> Callable[[Path], object]:
    data = text.encode() if isinstance(text, str) else text
    return lambda plugin: (plugin / "config.json").write_bytes(data)


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(plugin: Path) -> None:
        (plugin / "config.json").unlink()
        make(plugin / "config.json")

    return change


def entry(**config: object) -> Callable[[Path], object]:
    base = {"interface": {"types": ["x/1.0"], "socket": "x.sock"}, "entrypoint": ["/bin/true"]}
    return write(json.dumps({**base, **config}))


def root(make: Callable[[Path], object] | None) -> Callable[[Path], object]:
    def change(plugin: Path) -> None:
        shutil.rmtree(plugin / "rootfs")
        if make is not None:
            make(plugin / "rootfs")

    return change


CONFIG = "cannot read config.json: "
NO_FILE = "cannot read {plugin}/config.json: it is not a file"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "cannot run the plugin: there is no plugin at {plugin}"),
    "no config": (instead(lambda path: None), "cannot run {plugin}: there is no config.json in it"),
    "empty": (write(""), CONFIG + "it is not JSON: "),
    "cut off": (write('{"entrypoint": ["/p"],'), CONFIG + "it is not JSON: "),
    "binary": (write(bytes(range(256))), CONFIG + "it is not UTF-8 at byte 128"),
    "a list": (write("[]"), CONFIG),
    "deep": (write("[" * 100_000), CONFIG + "it is nested deeper than 64 levels"),
    "huge": (write(b" " * 1_100_000), "cannot read {plugin}/config.json: it has more than 1048576 bytes"),
    "endless": (instead(lambda path: path.symlink_to("/dev/zero")), NO_FILE),
    "a directory": (instead(Path.mkdir), "cannot read {plugin}/config.json: "),
    "a FIFO": (instead(os.mkfifo), NO_FILE),
    "a loop": (instead(lambda path: path.symlink_to(path)), "cannot read {plugin}/config.json: Too many levels"),
    "wrong type": (entry(env=[{"name": 5}]), CONFIG + "env[0].name: must be a text, not a number"),
    "no entrypoint": (entry(entrypoint=None), "entrypoint"),
    "no socket": (entry(interface={"types": ["x/1.0"], "socket": ""}), "interface.socket"),
    "long socket": (entry(interface={"types": ["x/1.0"], "socket": "x" * 90}), "and a unix socket's path may have 107"),
    "bad capability": (entry(linux={"capabilities": ["CAP_SYSADMIN"]}), "did you mean CAP_SYS_ADMIN?"),
    "bad network": (entry(network={"type": "foo"}), "network.type: must be host, none, null or bridge, not foo"),
    "no root": (root(None), "cannot run the plugin: there is no root file system at {plugin}/rootfs"),
    "root is a file": (root(Path.touch), "its root file system, {plugin}/rootfs, is not a directory"),
    "root is a loop": (root(lambda path: path.symlink_to("rootfs")), "Too many levels of symbolic links"),
    "no source": (
        entry(mounts=[{"name": "m", "type": "bind", "destination": "/m", "settable": ["source"]}]),
        "cannot enable the plugin: mount m (on /m) has no source; set m.source=<path on this host>",
    ),
    "source missing": (
        entry(
            mounts=[{"name": "m", "type": "bind", "source": "/no/such", "destination": "/m", "settable": ["source"]}]
        ),
        "mount m (on /m): there is no /no/such here; set m.source=<path on this host>",
    ),
    "device missing": (
        entry(linux={"devices": [{"name": "d", "path": "/dev/no-such", "settable": ["path"]}]}),
        "device d: there is no /dev/no-such here; set d.path=<device on this host>",
    ),
    "not a device": (
        entry(linux={"devices": [{"name": "d", "path": "/etc/passwd", "settable": ["path"]}]}),
        "device d: there is no /etc/passwd here; set d.path=<device on this host>",
    ),
}


def plan(directory: Path) -> None:
    plugin = load_directory(directory)
    plan_run(plugin, effective_settings(plugin.parsed.config, NO_OVERRIDES))


@pytest.mark.parametrize("name", WRONG)
def test_l01_a_directory_that_is_no_plugin_is_refused(tmp_path: Path, name: str) -> None:
    change, expected = WRONG[name]
    plugin = make_plugin(tmp_path / "it", ["/bin/true"])
    change(plugin)
    with pytest.raises(errors.MoorageError) as caught:
        plan(plugin)
    assert expected.format(plugin=plugin) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_l01_a_refusal_is_one_sentence_with_status_1(machine: Machine, tmp_path: Path) -> None:
    for name in ("cut off", "a FIFO", "root is a file", "source missing"):
        change, expected = WRONG[name]
        plugin = make_plugin(tmp_path / name, ["/bin/true"])
        change(plugin)
        sentence = refused(machine, plugin)
        assert expected.format(plugin=plugin) in sentence
        assert "\n" not in sentence


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["x" * 5000], 1),
        (["/etc/passwd"], 1),
        ([], 2),
    ],
)
def test_l01_wrong_calls_are_refused(machine: Machine, words: list[str], status: int) -> None:
    done = machine.moorage("run", *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr


def test_l01_a_setting_that_the_plugin_does_not_have_is_refused(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/true"], env=[{"name": "A", "value": "1"}])
    assert "B" in refused(machine, plugin, "B=1")
    assert "A" in refused(machine, plugin, "A=2")  # it is not settable


# ---- the entrypoint


def program(contents: bytes, mode: int = 0o755) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.write_bytes(contents)
        path.chmod(mode)

    return make


def elf(**changes: bytes) -> bytes:
    """/bin/true, changed at offsets given as `at_<n>`."""
    data = bytearray(Path("/bin/true").read_bytes())
    for name, value in changes.items():
        at = int(name.removeprefix("at_"))
        data[at : at + len(value)] = value
    return bytes(data)


S390X = b"\x16\x00"
OTHER_LOADER = Path("/bin/true").read_bytes().replace(b"/lib64/ld-linux", b"/lib64/xx-linux")
# each branch is tested in unit/test_entrypoint.py; these show that a run calls it
ENTRYPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no /p in the plugin's root file system"),
    "not executable": (program(b"#!/bin/sh\n", 0o644), "/p is not executable; make it so with chmod +x"),
    "other CPU": (program(elf(at_18=S390X)), "/p is a program for another CPU (IBM S/390; this machine is "),
    "no loader": (program(OTHER_LOADER), "/p needs the loader /lib64/xx-linux"),
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the loader's name of one CPU")
@pytest.mark.parametrize("name", ENTRYPOINTS)
def test_l01_an_entrypoint_that_cannot_run_is_explained(machine: Machine, tmp_path: Path, name: str) -> None:
    make, expected = ENTRYPOINTS[name]
    plugin = make_plugin(tmp_path / "it", ["/p"])
    make(plugin / "rootfs/p")
    done = machine.moorage("run", plugin)
    assert done.returncode in (1, 126, 127, 255)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


# ---- the machine


def test_l01_without_root_it_says_so(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(open_to_all(tmp_path) / "it", ["/bin/true"])
    assert refused(machine, plugin, wrapper=UNPRIVILEGED) == (
        "cannot run a plugin: mounts and control groups need root; run this with sudo"
    )


@pytest.mark.parametrize(
    ("name", "package"),
    [("containerd", "containerd"), ("containerd-shim-runc-v2", "containerd"), (runtime_command(), runtime_command())],
)
def test_l01_without_containerd_or_runc_it_says_what_to_install(
    machine: Machine, tmp_path: Path, name: str, package: str
) -> None:
    machine.hide(name)
    assert refused(machine, make_plugin(tmp_path / "it", ["/bin/true"])) == (
        f"cannot run containers: there is no {name} on this machine; install it (Debian: apt install {package})"
    )


def test_l01_a_containerd_that_does_not_start_is_reported_with_its_error(machine: Machine, tmp_path: Path) -> None:
    machine.do("mkdir /run/bin; printf '#!/bin/sh\\necho it is broken >&2; exit 1' > /run/bin/containerd")
    machine.do("chmod +x /run/bin/containerd")
    path = f"/run/bin:{os.environ['PATH']}"
    sentence = refused(machine, make_plugin(tmp_path / "it", ["/bin/true"]), env={"PATH": path})
    assert sentence == "cannot start containerd: it exited at once\n  it is broken"
    machine.do("rm -r /run/bin")


def test_l01_a_runtime_that_fails_is_reported_with_its_error(machine: Machine, tmp_path: Path) -> None:
    name = runtime_command()
    machine.do(f"mkdir /run/bin; printf '#!/bin/sh\\necho it is broken >&2; exit 1' > /run/bin/{name}")
    machine.do(f"chmod +x /run/bin/{name}")
    path = f"/run/bin:{os.environ['PATH']}"
    sentence = refused(machine, make_plugin(tmp_path / "it", ["/bin/true"]), env={"PATH": path})
    assert sentence.startswith("cannot start the plugin: ")
    assert "it is broken" in sentence or "OCI runtime create failed" in sentence
    machine.do("rm -r /run/bin")


# ---- where its directories go

INPUTS = {
    "missing": ("", "cannot use /var/tmp/there for this run: No such file"),
    "read-only": ("mkdir there; mount -t tmpfs -o ro none there", "Read-only file system"),
    "full": ("mkdir there; mount -t tmpfs -o size=4m none there; cat /dev/zero > there/f || :", "has only 0 KiB left"),
    "tiny": ("mkdir there; mount -t tmpfs -o size=512k none there", "there is no room, it has only 512 KiB left"),
    "a file": ("touch there", "Not a directory"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_l01_a_temporary_directory_that_cannot_be_used_is_named(machine: Machine, tmp_path: Path, name: str) -> None:
    prepare, expected = INPUTS[name]
    machine.do(f"cd /var/tmp; {prepare or ':'}")
    sentence = refused(machine, make_plugin(tmp_path / "it", ["/bin/true"]), env={"TMPDIR": "/var/tmp/there"})
    assert expected in sentence
    assert "set TMPDIR to a directory that can be written to" in sentence
    assert not [path for path in machine.inside("/run").iterdir() if path.name != "mount"]
    machine.do("cd /var/tmp; find -name 'moorage-*' | grep . && exit 1; umount there || :; rm -rf there /run/mount")


def test_l01_a_relative_temporary_directory_is_refused(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/true"])
    assert "TMPDIR must be an absolute path, not tmp" in refused(machine, plugin, env={"TMPDIR": "tmp"})


def test_l01_a_run_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with Machine("rm -rf /run/mount; mount -n -o remount,ro /run") as machine:
        sentence = refused(machine, make_plugin(tmp_path / "it", ["/bin/true"]))
        assert sentence.startswith("cannot use /run/moorage-run-")
        assert sentence.endswith(" for this run: Read-only file system")


# an overlay cannot carry another one's changes
OVERLAY = """
    mkdir -p /var/tmp/s /var/tmp/there; mount -t tmpfs -o size={size} none /var/tmp/s; cd /var/tmp/s; mkdir a b c
    mount -t overlay -o {flag}lowerdir=a,upperdir=b,workdir=c none /var/tmp/there
"""
CLEANUP = "umount /var/tmp/there /var/tmp/s; rm -r /var/tmp/*; rm -rf /run/mount"


@pytest.mark.parametrize("noexec", [False, True])
def test_l01_where_overlay_cannot_be_used_a_copy_is_run_unless_nothing_can_be(tmp_path: Path, noexec: bool) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/sh", "-c", "test -p /fifo && echo new > /file && cat /file"])
    os.mkfifo(plugin / "rootfs/fifo")
    with Machine(OVERLAY.format(size="50m", flag="noexec," if noexec else "")) as machine:
        before = set(machine.left())
        if noexec:
            sentence = refused(machine, plugin, env={"TMPDIR": "/var/tmp/there"})
            assert "cannot run the plugin from /var/tmp/there: it is mounted noexec" in sentence
            assert "set TMPDIR to a directory on another file system" in sentence
        else:
            run = machine.start(plugin, env={"TMPDIR": "/var/tmp/there"})
            assert run.end() == EARLY, run.stderr
            assert run.lines == ["new"]
            assert "cannot lay an overlay over" in run.stderr
            assert "; using a copy" in run.stderr
        assert not (plugin / "rootfs/file").exists()
        assert set(machine.left()) == before
        machine.do(CLEANUP)


def test_l01_a_noexec_file_system_is_no_trouble_where_overlay_works(machine: Machine, tmp_path: Path) -> None:
    machine.do("mkdir /var/tmp/there; mount -t tmpfs -o noexec none /var/tmp/there; rm -rf /run/mount")
    plugin = make_plugin(tmp_path / "it", ["/p"])
    (plugin / "rootfs/p").write_text("#!/bin/sh\necho it ran\n")
    (plugin / "rootfs/p").chmod(0o755)
    run = machine.start(plugin, env={"TMPDIR": "/var/tmp/there"})
    assert run.end() == EARLY, run.stderr
    assert run.lines == ["it ran"]
    machine.do("umount /var/tmp/there; rm -r /var/tmp/there; rm -rf /run/mount")


def test_m04_a_copy_without_room_is_reported(tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/true"])
    (plugin / "rootfs/big").write_bytes(bytes(8_000_000))
    with Machine(OVERLAY.format(size="4m", flag="")) as machine:
        before = set(machine.left())
        sentence = refused(machine, plugin, env={"TMPDIR": "/var/tmp/there"})
        assert f"cannot copy {plugin}/rootfs to /var/tmp/there/moorage-run-" in sentence
        assert "No space left on device" in sentence
        assert set(machine.left()) == before
        machine.do(CLEANUP)
