"""Fixtures with an engine, a registry or a machine, to be imported into the conftest of the folders that use them.

A module that needs another engine or registry defines a fixture of the same name, which replaces the one here.
"""

from collections.abc import AsyncIterator, Iterator

import pytest

from support.engines import EngineProcess, engine
from support.fault_registry import FaultRegistry, serve_faults
from support.foreground import Machine
from support.registries import Served, serve_registry


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine for the tests of a module."""
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
def nothing_else(house: EngineProcess) -> Iterator[None]:
    """Removes every plugin after a test."""
    yield
    for plugin in house.plugins():
        house.remove(plugin["Id"], force=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A registry over plain HTTP for the tests of a module."""
    with serve_registry(tmp_path_factory.mktemp("registries") / "plain") as served:
        yield served


@pytest.fixture
async def server() -> AsyncIterator[FaultRegistry]:
    """A registry that answers what a test says."""
    async with serve_faults() as registry:
        yield registry


@pytest.fixture
async def other() -> AsyncIterator[FaultRegistry]:
    """Another one."""
    async with serve_faults() as registry:
        yield registry


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine within this one."""
    with Machine() as made:
        yield made
