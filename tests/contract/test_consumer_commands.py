"""``moorage publish``, ``moorage volume`` and ``--publish``: what is sent, and what is printed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from moorage import errors
from moorage.api.server import serve_api
from moorage.engine.consumers.volumes import mount_id
from support.fake_backend import FakeBackend
from support.fake_volumes import FakeVolumeDriver
from support.limits import limit

CONFIG = {
    "description": "",
    "entrypoint": ["/p"],
    "interface": {"socket": "p.sock", "types": ["docker.volumedriver/1.0"]},
}


class Shell:
    """Gives commands to an engine in memory."""

    def __init__(self, backend: FakeBackend, host: Path, directory: Path) -> None:
        self.backend = backend
        self.host = host
        self.package = directory / "package"
        (self.package / "rootfs").mkdir(parents=True)
        (self.package / "config.json").write_text(json.dumps(CONFIG))

    def give(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "moorage", "--host", str(self.host), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=limit(30), check=False)

    def run(self, *words: str) -> str:
        done = self.give(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def driver(self, name: str) -> FakeVolumeDriver:
        """A new plugin that runs."""
        self.run("create", name, str(self.package), "-y")
        self.run("enable", name)
        return self.backend.drivers.setdefault(self.backend.get(name).id, FakeVolumeDriver())


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    backend, path = FakeBackend(), tmp_path / "m.sock"
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(portal.call(serve_api, backend, path, None)),
    ):
        yield Shell(backend, path, tmp_path)


def test_p01_publish_prints_the_names_and_ls_shows_them(shell: Shell) -> None:
    shell.run("create", "vieux/sshfs", str(shell.package))
    assert "PUBLISHED" not in shell.run("ls")
    assert shell.run("publish", "vieux/sshfs") == "vieux/sshfs:latest\n"
    assert shell.run("ls").splitlines()[0].endswith("PUBLISHED AS")
    assert shell.run("ls").splitlines()[1].endswith("vieux/sshfs:latest")
    words = (
        "--as",
        "a",
        "--as",
        "b",
        "--group",
        "staff",
        "--while-disabled",
        "answer",
        "--no-replay",
        "--at-once",
        "3",
    )
    more = ("--time-limit", "VolumeDriver.Mount=300", "--no-podman", "--json")
    published = json.loads(shell.run("publish", "vieux/sshfs", *words, *more))
    assert published == {
        "Names": ["a", "b"],
        "Group": "staff",
        "Mode": "0660",
        "WhileDisabled": "answer",
        "WhileUnhealthy": "forward",
        "Replay": False,
        "AtOnce": 3,
        "TimeLimits": {"VolumeDriver.Mount": 300},
        "Podman": False,
    }
    assert json.loads(shell.run("ls", "--json"))["Moorage"]["Published"] == published
    assert shell.run("unpublish", "vieux/sshfs") == "vieux/sshfs\n"
    assert shell.give("unpublish", "vieux/sshfs").returncode == 1


@pytest.mark.parametrize(("option", "names"), [("--publish", ["p:latest"]), ("--publish=x/y", ["x/y"])])
def test_p01_create_publishes_what_it_has_created(shell: Shell, option: str, names: list[str]) -> None:
    assert shell.run("create", option, "p", str(shell.package)) == "p\n"
    published = shell.backend.get("p").published
    assert published is not None
    assert list(published.names) == names


def test_p01_a_plugin_that_is_created_and_cannot_be_published_is_reported(shell: Shell) -> None:
    shell.run("create", "p", "--publish=x", str(shell.package))
    done = shell.give("create", "q", "--publish=x", str(shell.package))
    assert done.returncode == 1
    assert "plugin q is created, but cannot be published: cannot publish plugin q:latest as x" in done.stderr
    assert "moorage publish q" in done.stderr


@pytest.mark.parametrize("value", ["x", "Mount=3", "VolumeDriver.Mount=0", "VolumeDriver.Mount=x"])
def test_p09_a_time_limit_is_a_call_with_seconds(shell: Shell, value: str) -> None:
    done = shell.give("publish", "p", "--time-limit", value)
    assert done.returncode == 2
    assert "is not CALL=SECONDS" in done.stderr


def test_v01_commands_for_volumes_print_what_docker_prints(shell: Shell, tmp_path: Path) -> None:
    driver = shell.driver("d")
    (tmp_path / "password").write_text("s3cr3t\n")
    secret = f"password=@{tmp_path / 'password'}"
    assert shell.run("volume", "create", "data", "-d", "d", "-o", "a=b=c", "-o", "flag", "--secret", secret) == "data\n"
    assert driver.volumes == {"data": {"a": "b=c", "flag": "", "password": "s3cr3t"}}
    shell.run("volume", "create", "--driver", "d", "more")
    assert shell.run("volume", "ls").splitlines() == [
        "DRIVER     VOLUME NAME",
        "d:latest   data",
        "d:latest   more",
    ]
    assert shell.run("volume", "ls", "-q") == "data\nmore\n"
    assert shell.run("volume", "ls", "--format", "{{.Name}} {{.Mountpoint}}") == "data /mnt/data\nmore /mnt/more\n"
    assert shell.run("volume", "ls", "--format", r"table {{.Name}}\t{{.Driver}}").splitlines()[0] == "NAME   DRIVER"
    assert [json.loads(line)["Name"] for line in shell.run("volume", "ls", "--json").splitlines()] == ["data", "more"]
    (found,) = json.loads(shell.run("volume", "inspect", "data"))
    assert (found["Scope"], found["Status"]) == ("global", {"size": 7})
    assert shell.run("volume", "inspect", "--format", "{{.Mountpoint}}", "data", "more") == "/mnt/data\n/mnt/more\n"
    assert shell.run("volume", "rm", "data", "more") == "data\nmore\n"
    assert shell.run("volume", "ls", "-q") == ""


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (("driver=d",), "data\nmore\n"),
        (("driver=d:latest", "name=mo"), "more\n"),
        (("name=mo", "name=da"), "data\nmore\n"),
        (("driver=other",), ""),
        (("dangling=true",), "more\n"),
        (("dangling=0",), "data\n"),
    ],
)
def test_v01_volumes_are_filtered(shell: Shell, filters: tuple[str, ...], names: str) -> None:
    shell.driver("d").volumes.update(data={}, more={})
    shell.run("volume", "mount", "data")
    assert shell.run("volume", "ls", "-q", *(word for each in filters for word in ("--filter", each))) == names


def test_v01_a_silent_driver_is_named_on_standard_error(shell: Shell) -> None:
    shell.driver("good").volumes["data"] = {}
    shell.driver("bad").failure = errors.Unavailable("it is starting")
    done = shell.give("volume", "ls", "-q")
    assert (done.returncode, done.stdout) == (1, "data\n")
    assert done.stderr == "moorage: driver bad:latest does not list its volumes: it is starting\n"


def test_v02_mount_prints_the_path_and_owners_are_listed(shell: Shell) -> None:
    shell.driver("d").volumes["data"] = {}
    assert shell.run("volume", "mount", "data") == "/mnt/data\n"
    assert shell.run("volume", "mount", "data", "--id", "web.service") == "/mnt/data\n"
    head, row = shell.run("volume", "ls").splitlines()
    assert (head, row) == ("DRIVER     VOLUME NAME   USERS", "d:latest   data          data, web.service")
    assert shell.run("volume", "unmount", "data", "--id", "web.service") == "data\n"
    assert [each.id for each in shell.backend.get("d").mounts] == [mount_id("data")]


def test_v04_a_volume_in_use_is_not_removed(shell: Shell) -> None:
    shell.driver("d").volumes.update(data={}, more={})
    shell.run("volume", "mount", "data")
    done = shell.give("volume", "rm", "data", "more")
    assert (done.returncode, done.stdout) == (1, "more\n")
    assert "cannot remove volume data: it is in use by data" in done.stderr
    assert shell.run("volume", "rm", "-f", "data", "gone") == "data\ngone\n"
