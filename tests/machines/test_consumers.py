"""Programs that use a published volume at boot: docker.service, a podman unit, and a line of fstab."""

from collections.abc import Iterator

import pytest

from support.machines import CHECKOUT, Machine

IMAGE = "localhost/busybox:1"
MOUNTED = "/srv/volume"
_ARCHIVE = "/var/tmp/image.tar"
_SCRIPT = "while true; do date +%s >>/mnt/times; sleep 5; done"
_PODMAN_UNIT = f"""
[Unit]
Wants=moorage.service
After=moorage.service
[Service]
ExecStart=/usr/bin/podman run --rm --replace --name=mine --network=none -v of-podman:/mnt {IMAGE} sh -c '{_SCRIPT}'
ExecStop=/usr/bin/podman stop --time=1 mine
[Install]
WantedBy=multi-user.target
"""
_FSTAB = f"hello:latest/of-fstab {MOUNTED} moorage _netdev,nofail,x-systemd.after=moorage.service 0 0"


@pytest.fixture
def consumers(machine: Machine) -> Iterator[Machine]:
    """A published volume driver ``hello:latest`` with a volume for each consumer, all of which start at boot."""
    machine.run(f"moorage create --publish hello {CHECKOUT}/examples/hello-volume && moorage enable hello")
    make = "import sys, pathlib, support.consumers as c; c.image_archive(pathlib.Path(sys.argv[1]).parent)"
    machine.run(f"cd {CHECKOUT} && PYTHONPATH=tests .venv/bin/python -c '{make}' {_ARCHIVE}")
    machine.run(f"podman import {_ARCHIVE} {IMAGE}")
    # The containers have no network, and not every kernel here has what Docker's bridge asks for.
    machine.write("/etc/docker/daemon.json", '{"bridge": "none", "iptables": false, "ip6tables": false}')
    machine.run("systemctl enable --now docker.service")
    machine.run(f"docker import {_ARCHIVE} {IMAGE}")
    machine.run("docker volume create --driver=hello:latest of-docker")
    machine.run(
        "docker run --detach --restart=always --name=always --network=none"
        f" --volume=of-docker:/mnt {IMAGE} sh -c '{_SCRIPT}'"
    )
    machine.run("podman volume create --driver=hello:latest of-podman")
    machine.write("/etc/systemd/system/podman-mine.service", _PODMAN_UNIT)
    machine.run("systemctl daemon-reload && systemctl enable --now podman-mine.service")
    machine.run("moorage volume create of-fstab --driver=hello:latest")
    machine.run(f"mkdir -p {MOUNTED} && cp /etc/fstab /var/tmp/fstab && echo '{_FSTAB}' >>/etc/fstab")
    machine.run(f"systemctl daemon-reload && mount {MOUNTED} && echo stored >{MOUNTED}/file")
    yield machine
    for command in (
        f"umount {MOUNTED}; cp /var/tmp/fstab /etc/fstab; rmdir {MOUNTED}",
        "systemctl disable --now podman-mine.service; rm -f /etc/systemd/system/podman-mine.service",
        "podman rm --all --force; podman volume rm of-podman; podman image rm " + IMAGE,
        "docker rm --force always; docker volume rm of-docker; docker image rm " + IMAGE,
        "systemctl disable --now docker.service docker.socket; rm -f /etc/docker/daemon.json",
        "systemctl daemon-reload; systemctl reset-failed",
    ):
        machine.run(command, check=False)


def in_use(machine: Machine) -> bool:
    """Whether both containers run, and the volume of fstab is mounted with its data."""
    return all(
        machine.run(command, check=False).stdout.strip() == answer
        for command, answer in (
            ("docker inspect --format='{{.State.Running}}' always", "true"),
            ("podman inspect --format='{{.State.Running}}' mine", "true"),
            (f"cat {MOUNTED}/file", "stored"),
        )
    )


def check_that_it_writes(machine: Machine, consumer: str, container: str) -> None:
    """The container has what it wrote before, and continues to write."""
    read = f"{consumer} exec {container} cat /mnt/times"
    found = machine.output(read).split()
    assert len(found) > 1
    machine.wait_until(lambda: len(machine.output(read).split()) > len(found), f"{consumer}'s container writes")


def test_p16_containers_and_fstab_have_their_volumes_after_a_reboot_and_a_power_cut(consumers: Machine) -> None:
    machine = consumers
    machine.wait_until(lambda: in_use(machine), "all consumers use their volumes")
    for interruption in ("reboot", "power cut"):
        if interruption == "reboot":
            machine.reboot()
        else:
            machine.run("sync")
            machine.lose_power()
            machine.boot()
        machine.wait_until(lambda: in_use(machine), f"all consumers use their volumes after a {interruption}")
        check_that_it_writes(machine, "docker", "always")
        check_that_it_writes(machine, "podman", "mine")
        assert machine.output("systemctl --failed --plain --no-legend") == ""
    # Moorage was started first, and stopped last, so no consumer has waited for it
    assert "docker.service" in machine.output("systemctl show -P Before moorage.service")
    users = machine.output("moorage volume ls")
    assert all(volume in users for volume in ("of-docker", "of-podman", "of-fstab")), users
