"""The file that makes podman know published volume drivers."""

import json
import logging
import tomllib
from pathlib import Path

import pytest
from msgspec.structs import replace

from moorage.engine.consumers.podman import PodmanConfig, config_text, published_drivers
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginView, Publication
from moorage.plugins import NO_OVERRIDES, effective_settings, parse_config

DIRECTORY = Path("/run/docker/plugins")


def plugin(names: tuple[str, ...] = ("vieux/sshfs:latest",), kind: str = "volumedriver", **more: object) -> PluginView:
    interface = {"socket": "p.sock", "types": [f"docker.{kind}/1.0"]}
    config = parse_config(json.dumps({"entrypoint": ["/p"], "interface": interface}).encode()).config
    published = Publication(names, podman=True)
    view = PluginView("0" * 64, "p", "p", True, State.READY, config, effective_settings(config, NO_OVERRIDES))
    return replace(replace(view, published=published), **more)


def test_p15_names_are_quoted_keys_and_the_time_limit_is_longer_than_podmans_own() -> None:
    drivers = published_drivers([plugin(("b", "vieux/sshfs:latest"))], DIRECTORY, is_installed=False)
    engine = tomllib.loads(config_text(drivers, Path("/var/lib/moorage")))["engine"]
    assert engine["volume_plugins"] == {
        "b": "/run/docker/plugins/b.sock",
        "vieux/sshfs:latest": "/run/docker/plugins/vieux/sshfs:latest.sock",
    }
    assert engine["volume_plugin_timeout"] == 60


@pytest.mark.parametrize(("podman", "is_installed", "is_listed"), [
    (None, True, True), (None, False, False), (True, False, True), (False, True, False),
])  # fmt: skip
def test_p15_only_an_installed_podman_is_configured_unless_the_user_decides(
    podman: bool | None, is_installed: bool, is_listed: bool
) -> None:
    published = Publication(("x",), podman=podman)
    assert bool(published_drivers([plugin(published=published)], DIRECTORY, is_installed=is_installed)) == is_listed


@pytest.mark.parametrize(
    "other", [plugin(kind="logdriver"), plugin(published=None), plugin(state=State.REMOVING)], ids=["log", "no", "rm"]
)
def test_p15_other_plugins_are_not_listed(other: PluginView) -> None:
    assert published_drivers([other], DIRECTORY, is_installed=True) == {}


def test_p15_a_disabled_driver_stays_listed() -> None:
    off = plugin(enabled=False, state=State.DISABLED)
    assert list(published_drivers([off], DIRECTORY, is_installed=True)) == ["vieux/sshfs:latest"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "containers/containers.conf.d/50-moorage.conf"


def test_p15_the_file_is_written_changed_and_removed_with_the_last_name(file: Path, tmp_path: Path) -> None:
    config = PodmanConfig(file, tmp_path)
    config.update([], DIRECTORY)
    assert not file.parent.exists()
    config.update([plugin(("a",)), plugin(("b",))], DIRECTORY)
    assert set(tomllib.loads(file.read_text())["engine"]["volume_plugins"]) == {"a", "b"}
    assert file.stat().st_mode & 0o777 == 0o644
    written = file.stat().st_mtime_ns
    config.update([plugin(("b",)), plugin(("a",))], DIRECTORY)
    assert file.stat().st_mtime_ns == written
    config.update([plugin(("b",))], DIRECTORY)
    assert set(tomllib.loads(file.read_text())["engine"]["volume_plugins"]) == {"b"}
    config.update([], DIRECTORY)
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[engine]\n", "# by hand\n"])
def test_p15_a_file_of_the_administrator_is_never_changed(
    file: Path, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    config = PodmanConfig(file, tmp_path)
    with caplog.at_level(logging.ERROR):
        config.update([plugin()], DIRECTORY)
        config.update([plugin()], DIRECTORY)
    assert [record.getMessage() for record in caplog.records] == [
        f"podman does not know the published volume drivers: {file} is not of this engine; rename it, or publish with "
        "--no-podman"
    ]
    config.update([], DIRECTORY)
    assert file.read_text() == text


def test_p15_the_file_of_another_engine_is_left_until_that_one_is_removed(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    PodmanConfig(file, other).update([plugin(("a",))], DIRECTORY)
    own = PodmanConfig(file, tmp_path)
    own.update([plugin(("b",))], DIRECTORY)
    own.update([], DIRECTORY)
    assert '"a"' in file.read_text()
    other.rmdir()
    own.update([plugin(("b",))], DIRECTORY)
    assert '"b"' in file.read_text()
