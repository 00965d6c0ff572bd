"""The unmodified docker command against our socket and against a real dockerd: the same answers, but for one table."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peers.dockerd import Dockerd
from support.engines import EngineProcess, actor, config
from support.limits import limit
from support.pages import Reader
from support.registries import Served

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "static-cc")]

DIFFERENCES = Path(__file__).parents[2] / "docs/reference/docker-differences.md"


@dataclass(frozen=True)
class Step:
    """One command, given to both."""

    words: str
    own_output: str = ""
    """Where we differ on purpose: a pattern for all that our side prints; the reason is in the table of the docs."""
    key: str = ""
    """Which row of that table."""


A, B = "t/a:1", "127.0.0.1:5000/t/b"
STEPS = (
    Step(f"plugin create {A} DIR"),
    Step(f"plugin create {A} DIR"),
    Step(f"plugin create {B} DIR2"),
    Step("plugin create UPPER/x DIR", "repository name must be lowercase", "texts"),  # 26 checks the content first
    Step("plugin create --compress t/z:1 DIR2", "t/z:1", "compress"),
    Step("plugin rm t/z:1", "t/z:1", "compress"),
    Step("plugin ls"),
    Step("plugin ls -q"),
    Step("plugin ls --no-trunc"),
    Step("plugin ls --format {{.Name}}|{{.Enabled}}|{{.Description}}|{{.PluginReference}}"),
    Step("plugin ls --format json"),
    Step("plugin ls --filter enabled=false --format {{.Name}}"),
    Step("plugin ls --filter enabled=true --format {{.Name}}"),
    Step("plugin ls --filter capability=volumedriver --format {{.Name}}"),
    Step("plugin ls --filter capability=logdriver --format {{.Name}}"),
    Step("plugin ls --filter foo=bar", "invalid filter 'foo'", "texts"),
    Step("plugin ls --filter enabled=maybe", r"invalid filter 'enabled=\[maybe\]'", "texts"),
    Step("plugin inspect --format {{.Name}}|{{.Enabled}}|{{.Settings.Env}}|{{.Config.Interface.Types}} t/a:1"),
    Step("plugin inspect --format {{json.Settings.Mounts}} t/a:1"),
    Step("plugin inspect --format {{.Config.Description}} nope t/a:1"),
    Step("inspect --type plugin --format {{.Name}} t/a:1"),
    Step("plugin set t/a:1 DEBUG=1 data.source=/tmp"),
    Step("plugin inspect --format {{.Settings.Env}} t/a:1"),
    Step("plugin set t/a:1 NOPE=1", 'setting "NOPE" not found in the plugin configuration; what can be set: .*', "set"),
    Step("plugin set t/a:1 FIXED=1", '"FIXED" is not settable; what can be set: .*', "set"),
    Step("plugin set t/a:1 =x", "invalid format, must be .*"),
    Step("plugin disable t/a:1"),
    Step("plugin enable t/a:1"),
    Step("plugin enable t/a:1"),
    Step("plugin enable --timeout=-1 t/a:1"),
    Step("plugin set t/a:1 DEBUG=2"),
    Step("plugin rm t/a:1"),
    Step("plugin ls --filter enabled=true --format {{.Name}}"),
    Step("plugin disable t/a:1"),
    Step("plugin enable --timeout 20 t/a:1"),
    Step("plugin disable -f t/a:1"),
    Step("plugin enable nope"),
    Step("plugin disable nope"),
    Step("plugin set nope A=1"),
    Step("plugin rm nope t/a:1"),
    Step("plugin enable 127.0.0.1:5000/t/b", "cannot enable plugin .* exited with status 3 .*boom", "enable"),
    Step("plugin rm -f 127.0.0.1:5000/t/b"),
    Step("plugin ls"),
    Step("plugin push t/a:1"),
    Step("version --format {{.Server.Os}}/{{.Server.Arch}}"),
    Step("info --format {{.Swarm.LocalNodeState}}|{{.OSType}}|{{.Containers}}|{{.Architecture}}|{{.NCPU}}"),
)


def make_directory(directory: Path, document: dict[str, Any]) -> Path:
    (directory / "rootfs").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(document))
    (directory / "rootfs/actor").write_bytes(actor() + directory.name.encode())  # dockerd 20.10 refuses the same bytes
    (directory / "rootfs/actor").chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("plugins")
    env = [{"name": "DEBUG", "value": "0", "settable": ["value"]}, {"name": "FIXED", "value": "x"}]
    mounts = [{"name": "data", "source": "/", "destination": "/d", "type": "bind", "options": ["rbind"],
               "settable": ["source"]}]  # fmt: skip
    made = {"DIR": config(env=env, mounts=mounts), "DIR2": config("err=boom", "end=3")}
    return {name: str(make_directory(base / name, document)) for name, document in made.items()}


def clis() -> list[str]:
    """Debian's docker command, and a newer one where there is one."""
    found = ["/usr/bin/docker", shutil.which("docker") or ""]
    return list(dict.fromkeys(path for path in found if Path(path).is_file()))


def run(cli: str, host: Path, words: list[str]) -> tuple[int, str]:
    """The exit status of a command and all that it prints, ids and digests made alike."""
    home = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], "DOCKER_HOST": f"unix://{host}"}
    done = subprocess.run(
        [cli, *words], capture_output=True, text=True, env=home, timeout=limit(60), stdin=subprocess.DEVNULL
    )
    text = re.sub(r"\b[0-9a-f]{64}\b", "ID64", done.stdout + done.stderr)
    text = re.sub(r"\b[0-9a-f]{12}\b", "ID12", text)
    # the command's own words on a tar that it could not finish come or not, as the daemon is quick to refuse
    noise = r"WARNING: Error loading config file.*\n|time=.* msg=\"Can't (close tar writer|add file).*\n"
    return done.returncode, re.sub(noise, "", text).strip()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("cli", clis())
def test_a01_the_docker_command_gives_the_same_answers(
    cli: str, dockerd: Dockerd, house: EngineProcess, directories: dict[str, str]
) -> None:
    wrong, page = [], DIFFERENCES.read_text()
    for step in STEPS:
        words = [directories.get(word, word.replace("{{json", "{{json ")) for word in step.words.split()]
        docker_output = run(cli, dockerd.address, words)
        own_output = run(cli, house.socket, words)
        if step.own_output:
            same = re.search(step.own_output, own_output[1], re.DOTALL) is not None
            if step.key:
                assert f"`{step.key}`" in page
        else:
            same = docker_output == own_output
        if not same:
            wrong.append(f"{step.words}\n  dockerd: {docker_output}\n  ours:    {own_output}")
    assert not wrong, "\n".join(wrong)


def test_a01_the_objects_are_the_same_but_for_what_the_table_says(
    dockerd: Dockerd, house: EngineProcess, directories: dict[str, str]
) -> None:
    cli = clis()[0]
    found = []
    for host in (dockerd.address, house.socket):
        assert run(cli, host, ["plugin", "create", "t/same:1", directories["DIR"]])[0] == 0
        document = json.loads(run(cli, host, ["plugin", "inspect", "t/same:1"])[1])[0]
        assert run(cli, host, ["plugin", "rm", "t/same:1"])[0] == 0
        found.append(document)
    docker_output, own_output = found
    del own_output["Moorage"], docker_output["Config"]["DockerVersion"]
    del own_output["Config"]["rootfs"]["diff_ids"], docker_output["Config"]["rootfs"]["diff_ids"]
    assert own_output == no_nulls(docker_output)


def no_nulls(value: Any, key: str = "") -> Any:
    """The same with a list where dockerd 20.10 has null for one."""
    if isinstance(value, dict):
        return {name: no_nulls(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [no_nulls(each) for each in value]
    lists = {"Settable", "Value", "Options", "Capabilities", "Devices", "Entrypoint", "Mounts", "Env", "Args", "Types"}
    return [] if value is None and key in lists else value


def test_a01_docker_events_reports_the_same_and_more(
    dockerd: Dockerd, house: EngineProcess, directories: dict[str, str]
) -> None:
    cli, seen = clis()[0], []
    for host in (dockerd.address, house.socket):
        since = subprocess.run(["date", "+%s.%N"], capture_output=True, text=True, check=True).stdout.strip()
        for words in (
            f"plugin create e:1 {directories['DIR']}",
            "plugin enable e:1",
            "plugin disable e:1",
            "plugin rm e:1",
        ):
            assert run(cli, host, words.split())[0] == 0
        until = subprocess.run(["date", "+%s.%N"], capture_output=True, text=True, check=True).stdout.strip()
        filters = ["--filter", "type=plugin", "--filter", "plugin=e:1"]
        form = ["--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"]
        _, text = run(cli, host, ["events", "--since", since, "--until", until, *filters, *form])
        seen.append(text.splitlines())
    docker_output, own_output = seen
    assert [line for line in own_output if " ready " not in line] == docker_output
    assert "plugin ready e:1" in own_output


GUIDE = DIFFERENCES.parents[1] / "guide/migrate-from-docker.md"


@pytest.mark.needs("docker-registry")
def test_a01_a_plugin_moves_from_docker_as_the_guide_says(
    dockerd: Dockerd, house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    cli, plugin = clis()[-1], "old/volumes"
    document = config(env=[{"name": "DEBUG", "value": "0", "settable": ["value"]}], propagatedMount="/mnt")
    pulled = f"{registry.host}/vieux/sshfs:latest"
    # first, because a dockerd 20.10 that removes a plugin deletes parts of others, too
    for words in (f"create {pulled} {make_directory(tmp_path / 'pulled', document)}", f"push {pulled}", f"rm {pulled}"):
        assert run(cli, dockerd.address, ["plugin", *words.split()])[0] == 0
    directory = make_directory(tmp_path / "made", document)
    for words in (f"create {plugin} {directory}", f"set {plugin} DEBUG=1", f"enable {plugin}"):
        assert run(cli, dockerd.address, ["plugin", *words.split()])[0] == 0
    old = dockerd.data / "plugins" / dockerd.inspect_plugin(plugin)["Id"] / "propagated-mount"
    (old / "kept").write_text("by its users")
    # The docker command without -H talks to the daemon, as on a machine where it has its usual path.
    roots: dict[str, Path | str] = {"/run/moorage": house.exec_root, "/var/lib/moorage": house.root}
    roots["vieux/sshfs:latest"] = pulled
    environment = {"DOCKER_HOST": f"unix://{dockerd.address}", "MOORAGE_HOST": str(house.socket)}
    reader = Reader(tmp_path / "reader", roots, environment)
    reader.walk(re.sub(r"^   ", "", GUIDE.read_text(), flags=re.MULTILINE))  # out of the numbered list
    moved = house.root / "plugins" / house.inspect(plugin)["Id"] / "propagated-mount"
    assert (moved / "kept").read_text() == "by its users"
    for name in (plugin, "old/sshfs"):
        assert "DEBUG=1" in house.call(name, "env").splitlines()
        assert house.more(name)["Published"]["Names"] == [f"{name}:latest"]
        house.remove(name, force=True)
