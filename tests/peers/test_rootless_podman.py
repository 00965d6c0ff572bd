"""podman of a user without privileges, with volumes of a driver that is published for the user's group (row P19)."""

import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from peers.consumers import Consumers, Driver, Make, kill_plugin, plugin_name
from support.consumers import IMAGE, WITHIN, ConsumerMachine, Failed, image_archive
from support.engines import EngineProcess
from support.foreground import wait_until
from support.limits import limit

pytestmark = [
    pytest.mark.real,
    pytest.mark.extensive,
    pytest.mark.needs("dockerd", "podman", "docker", "busybox", "static-cc"),
]


class User:
    """An account with subordinate ids, and its podman on a machine."""

    def __init__(self, machine: ConsumerMachine, name: str) -> None:
        self.machine = machine
        self.name = name
        self._home = Path(tempfile.mkdtemp(prefix="m-home-", dir="/tmp"))
        subprocess.run(["useradd", f"--home-dir={self._home}", "--user-group", name], check=True)
        self.uid = pwd.getpwnam(name).pw_uid
        (self._home / "run").mkdir(mode=0o700)
        for each in (self._home, self._home / "run"):
            os.chown(each, self.uid, self.uid)

    def as_user(self, *words: str, within: float = WITHIN) -> str:
        """Standard output of a command. Raises: Failed."""
        identity = (f"--reuid={self.uid}", f"--regid={self.uid}", "--init-groups", "--reset-env")
        return self.machine.run("setpriv", *identity, *words, within=within)

    def podman(self, *words: str, within: float = WITHIN) -> str:
        """Standard output of a podman command of this user. Raises: Failed."""
        variables = ("env", f"--chdir={self._home}", f"HOME={self._home}", f"XDG_RUNTIME_DIR={self._home / 'run'}")
        directories = [f"--{name}={self._home / name}" for name in ("root", "runroot", "tmpdir")]
        options = ("--storage-driver=vfs", "--runtime=runc", "--cgroup-manager=cgroupfs")
        return self.as_user(*variables, "podman", *directories, *options, *words, within=within)

    def run(self, *words: str, script: str) -> str:
        """What a shell script prints in a new container."""
        return self.podman("run", "--rm", "--network=none", *words, IMAGE, "/bin/sh", "-ec", script)

    def close(self) -> None:
        """End the process that has its namespaces, and delete the account."""
        with suppress(Failed, subprocess.TimeoutExpired):
            self.podman("rm", "--all", "--force", "--time=0")
        with suppress(Failed, subprocess.TimeoutExpired):
            self.podman("unshare", "rm", "-rf", *(str(self._home / each) for each in ("root", "runroot")))
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._pids(), "its processes exit", limit(20))
        subprocess.run(["userdel", self.name], check=True)
        subprocess.run(["rm", "-rf", self._home], check=True)

    def _pids(self) -> list[int]:
        found = subprocess.run(["ps", "-o", "pid=", "-u", str(self.uid)], capture_output=True, text=True, check=False)
        return [int(each) for each in found.stdout.split()]


@pytest.fixture(scope="module")
def users(consumers: Consumers) -> Iterator[tuple[User, User]]:
    """A member of the group that drivers are published for, which is the first one's own, and another user."""
    machine = consumers.machine
    machine.directory.chmod(0o711)  # as the directories of a real machine
    image_archive(machine.directory).chmod(0o644)
    made: list[User] = []
    try:
        for number in range(2):
            made.append(User(machine, f"m-user-{machine.directory.name.rpartition('-')[2].replace('_', '0')}{number}"))
            made[-1].podman("import", str(machine.directory / "image.tar"), IMAGE)
        yield made[0], made[1]
    finally:
        for each in made:
            each.close()


@pytest.fixture
def driver(make: Make, users: tuple[User, User]) -> Driver:
    """A driver that is published for the first user's group."""
    return make("volume", group=users[0].name)


def test_p19_a_users_podman_writes_to_a_volume_and_has_it_again_after_a_crash(
    users: tuple[User, User], driver: Driver, publisher: EngineProcess
) -> None:
    user, name = users[0], "rootless"
    user.podman("volume", "create", f"--driver={driver.name}", name)
    assert name in user.podman("volume", "ls", "--quiet").split()
    script = "echo one >/mnt/a; cat /mnt/a; cat /proc/self/uid_map"
    printed = user.run("-v", f"{name}:/mnt", script=script).split()
    assert printed[0] == "one"
    assert printed[2] == str(user.uid), "root of the container is this user"
    assert (driver.data / name / "a").read_text() == "one\n"
    before = publisher.more(plugin_name(driver))
    kill_plugin(publisher, driver)
    publisher.until_restarted(plugin_name(driver), before["Restarts"] + 1)
    assert user.run("-v", f"{name}:/mnt", script="echo two >>/mnt/a; cat /mnt/a") == "one\ntwo\n"
    assert driver.mounts() == set()
    user.podman("volume", "rm", name)
    assert not (driver.data / name).exists()


def test_p19_a_mount_of_a_users_podman_names_it_as_the_owner(
    users: tuple[User, User], driver: Driver, publisher: EngineProcess
) -> None:
    user, name = users[0], "rootless-in-use"
    user.podman("volume", "create", f"--driver={driver.name}", name)
    container = user.podman("run", "-d", "--network=none", "-v", f"{name}:/mnt", IMAGE, "sleep", "1000").strip()
    try:
        (mount,) = publisher.more(plugin_name(driver))["Mounts"]
        assert (mount["Volume"], mount["Consumer"].split()[0]) == (name, "podman")
    finally:
        user.podman("rm", "--force", "--time=0", container)
    wait_until(lambda: driver.mounts() == set(), "podman returns the mount", limit(20))
    user.podman("volume", "rm", name)


def test_p19_p14_a_user_outside_the_group_reaches_neither_the_socket_nor_the_mount(
    users: tuple[User, User], driver: Driver, publisher: EngineProcess
) -> None:
    with pytest.raises(Failed, match="permission denied"):
        users[1].podman("volume", "create", f"--driver={driver.name}", "foreign")
    assert not (driver.data / "foreign").exists()
    directory = publisher.root / "plugins" / publisher.inspect(plugin_name(driver))["Id"] / "propagated-mount"
    assert users[0].as_user("stat", "--format=%F", str(directory)) == "directory\n"
    with pytest.raises(Failed, match="Permission denied"):
        users[1].as_user("stat", str(directory))
