"""Row L01, and `enable`: a plugin that is not ready, or is another thing than its config says, is reported as that."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.engines import EngineProcess, Refused, config, engine
from support.foreground import ANSWER, FOREVER, LISTEN, SOCKET, Machine, make_plugin
from support.limits import limit

pytestmark = pytest.mark.real

OTHER = LISTEN.replace(SOCKET, SOCKET.replace("it.sock", "other.sock"))


@pytest.mark.parametrize("last_statement", ["", "sys.exit(0)\n"])
def test_l01_a_plugin_that_exits_with_0_before_it_is_ready_is_a_failure(
    machine: Machine, tmp_path: Path, last_statement: str
) -> None:
    done = machine.moorage("run", make_plugin(tmp_path / "it", f"import sys\nprint('hi')\n{last_statement}"))
    assert done.returncode == 1
    assert "the plugin exited before it accepted a connection on" in done.stderr
    assert "hi" in done.stdout


def test_l01_a_plugin_that_exits_with_a_status_before_it_is_ready_gives_that(machine: Machine, tmp_path: Path) -> None:
    assert machine.moorage("run", make_plugin(tmp_path / "it", "raise SystemExit(3)")).returncode == 3


def test_l01_a_plugin_that_exits_with_0_after_it_was_ready_is_none(machine: Machine, tmp_path: Path) -> None:
    once = ANSWER.replace("    c.close()\n", "        os._exit(0)\n    c.close()\n", 1)
    done = machine.moorage("run", make_plugin(tmp_path / "it", once))
    assert (done.returncode, "ready after" in done.stderr) == (0, True), done.stderr


@pytest.mark.parametrize("last_statement", [FOREVER, "os._exit(0)\n", "os._exit(4)\n"])
def test_l01_a_socket_by_another_name_is_named(machine: Machine, tmp_path: Path, last_statement: str) -> None:
    done = machine.moorage("run", "--timeout", f"{limit(3):g}", make_plugin(tmp_path / "it", OTHER + last_statement))
    assert done.returncode == (4 if "4" in last_statement else 1)
    assert "it made other.sock there instead: interface.socket in config.json must be the name" in done.stderr


def test_l01_no_other_socket_is_no_hint(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", "open('/run/docker/plugins/file.sock', 'w')\nimport time\n" + FOREVER)
    done = machine.moorage("run", "--timeout", "2", plugin)
    assert done.returncode == 1
    assert "instead" not in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_l01_a_config_that_says_something_else_than_the_plugin_is_noted(
    machine: Machine, tmp_path: Path, as_json: bool
) -> None:
    interface = {"types": ["docker.networkdriver/1.0"], "socket": "it.sock"}
    plugin = make_plugin(tmp_path / "it", ANSWER, interface=interface)
    if as_json:
        run = machine.start(plugin)
        ready = run.until("ready")
        assert ready["implements"] == ["VolumeDriver", "x"]
        assert run.end(signal.SIGINT) == 130
        text = ready["problem"]
    else:
        once = ANSWER.replace("    c.close()\n", "        time.sleep(2); os._exit(0)\n    c.close()\n", 1)
        text = machine.moorage("run", make_plugin(tmp_path / "people", once, interface=interface)).stderr
    assert "its config says networkdriver, but its answer to Plugin.Activate says VolumeDriver, x" in text


@pytest.mark.needs("static-cc")
def test_l01_enable_and_probe_say_the_same(tmp_path: Path) -> None:
    with engine(tmp_path) as house:
        socket = {"types": ["docker.networkdriver/1.0"], "socket": "mine.sock"}
        house.create("wrong", config(interface={**socket, "socket": "wrong.sock"}))
        with pytest.raises(Refused) as refusal:
            house.enable("wrong", within=int(limit(2)))
        assert "it made plugin.sock there instead" in refusal.value.message
        house.create("probed", config(interface={**socket, "socket": "plugin.sock"}))
        house.enable("probed")
        _probe(house)


def _probe(house: EngineProcess) -> None:
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", "probe", "probed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)
    assert done.returncode == 0
    assert "warning: its config says networkdriver, but its answer to Plugin.Activate says" in done.stdout
