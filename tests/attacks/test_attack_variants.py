"""Variants of the findings that the first round of attacks had not tried."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import EngineProcess, Refused, config, engine

pytestmark = [pytest.mark.needs("static-cc")]


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the policy allows to be read."""
    return tmp_path_factory.mktemp("readable")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, readable: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("guarded"), policy={"readOnlyMounts": [f"{readable}/"]}) as made:
        yield made


@pytest.mark.parametrize("options", [["rbind", "ro", "rrw"], ["bind", "ro", "rrw"], ["rbind", "rrw", "ro"]])
def test_s03_s05_an_option_that_undoes_read_only_is_a_grant_to_write(
    guarded: EngineProcess, readable: Path, options: list[str]
) -> None:
    """The runtimes apply rrw after ro: what was shown as read-only, and allowed as that, was writable."""
    source = readable / "data"
    source.mkdir(exist_ok=True)
    mount = {"source": str(source), "destination": "/x", "type": "bind", "options": options}
    guarded.create("p", config(mounts=[mount]))
    try:
        shown = [text for each in guarded.more("p")["Privileges"] for text in each["Value"]]
        assert f"{source} on /x, read-write ({','.join(options)})" in shown
        with pytest.raises(Refused, match=r"403: .*does not allow bind mount"):
            guarded.enable("p")
    finally:
        guarded.remove("p", force=True)
