"""The virtual machine of these tests: one for all of them, with the package of this commit installed."""

from collections.abc import Iterator

import pytest

from support.machines import CHECKOUT, Machine, from_environment


@pytest.fixture(scope="session")
def the_machine() -> Machine:
    return from_environment()


@pytest.fixture
def machine(the_machine: Machine) -> Iterator[Machine]:
    """The machine with a running engine that has no plugins; they are removed after each test."""
    _clear(the_machine)
    the_machine.run("systemctl start moorage.service")
    yield the_machine
    _clear(the_machine)


@pytest.fixture
def volume_plugin(machine: Machine) -> str:
    """The name of a volume plugin that is ready on the machine."""
    machine.run(f"moorage create hello {CHECKOUT}/examples/hello-volume && moorage enable hello")
    return "hello"


def _clear(machine: Machine) -> None:
    machine.run("for name in $(moorage ls --quiet); do moorage rm --force $name; done", check=False)
