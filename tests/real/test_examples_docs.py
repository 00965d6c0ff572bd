"""The steps of README.md and the guides are done here, and `moorage run` is what its reference says."""

import ast
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import EngineProcess, config, engine
from support.foreground import ANSWER, Machine, environment, make_plugin, wait_until
from support.limits import limit
from support.workspace import Session

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/guide").glob("*.md"))]

# Commands of the pages that are run elsewhere, or that set up what these tests need.
RUN_PY = ".venv/bin/python examples/containerd-client/run.py /run/containerd/containerd.sock sh -c 'echo hi; exit 3'"
WORKER_PY = (
    ".venv/bin/python examples/embed-executor/worker.py /run/containerd/containerd.sock /run/worker "
    "sh -c 'while date; do sleep 1; done'"
)
ELSEWHERE = {
    "scripts/demo": "scripts/fresh, in bare roots",
    "scripts/test": "it runs this",
    "pip install .": "scripts/fresh",
    ".venv/bin/moorage run examples/hello-volume": "below, and scripts/demo",
    RUN_PY: "below",
    WORKER_PY: "below",
}


IN_CHECKOUT = ["sh", "-c", 'cd "$0" && exec "$@"', str(ROOT)]


PROGRAMS = {"python", "pip", "moorage", "docker", "curl"}


def commands(page: Path) -> list[str]:
    """The lines of indented blocks that begin like a command."""
    text = page.read_text().replace("\\\n    ", "")  # a command that continues in the next line
    lines = re.findall(r"^    (\S.*?)(?:\s{2,}#.*)?$", text, re.MULTILINE)
    return [line for line in lines if line.split()[0] in PROGRAMS or "/" in line.split()[0]]


def is_for_an_engine(command: str) -> bool:
    """Whether a command of the pages talks to an engine, is one, or makes what is given to one."""
    program, *words = command.split()
    alone = {"run", "doctor", "version"}
    is_moorage = program.endswith("moorage") and words[0] not in alone
    return is_moorage or program in ("examples/hello-static/build", "docker", "curl")


# Pages with tests of their own: the guide to the service is for installed programs and a host of one's own.
WITH_THEIR_OWN = {
    "packages.md": "tests/real/test_pull.py, with a registry of its own in place of the public one",
    "service.md": "tests/peers/test_service_guide.py",
    "monitoring.md": "tests/peers/test_prometheus.py",
    "rolling-out-with-ansible.md": "tests/peers/test_ansible.py",
    "rolling-out-with-kubernetes.md": "tests/peers/test_kubernetes.py, as far as that is possible without a cluster",
    "rolling-out-with-swarm.md": "tests/peers/test_swarm.py",
}
COMMAND_PAGES = [page for page in PAGES if page.name not in WITH_THEIR_OWN]
ALL = [command for page in COMMAND_PAGES for command in commands(page) if not command.startswith("/")]
COMMANDS = [command for command in ALL if not is_for_an_engine(command)]


def test_the_pages_have_commands() -> None:
    assert set(ELSEWHERE) <= set(COMMANDS), "a page changed: change the table"
    assert set(SHOWN_ELSEWHERE) <= {
        command.split()[1] for command in ALL if is_for_an_engine(command) and " " in command
    }


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in ELSEWHERE])
def test_each_command_of_the_pages_works(machine: Machine, command: str) -> None:
    program, *words = shlex.split(command)
    assert program == ".venv/bin/moorage"
    done = machine.moorage(*words, wrapper=IN_CHECKOUT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


# Commands for an engine that the test below does not give as they stand.
SHOWN_ELSEWHERE = {
    "apply": "needs a file and a registry: tests/real/test_apply.py",
    "load": "reads a file: tests/peers/test_moving_packages.py",
    "push": "needs a registry: tests/peers/test_moving_packages.py",
    "save": "writes a file: tests/peers/test_moving_packages.py",
    "serve": "the engine that all others talk to",
    "ui": "serves until Ctrl-C: tests/peers/test_ui.py",
}
ENDLESS = ("logs -f", "events")  # they print something at once

# What the reference of commands has as examples, in an order in which they work; the others need more than an engine.
REFERENCE = ROOT / "docs/reference/commands.md"
VERBS = (
    "create", "enable", "call", "probe", "inspect", "ls", "top", "logs", "--json", "policy", "restart", "kill",
    "events", "tag", "df", "prune", "disable", "rm", "completion",
)  # fmt: skip
OTHER_VERBS = {
    **SHOWN_ELSEWHERE,
    "context": "tests/peers/test_ssh.py",
    "cp": "tests/real/test_habits.py",
    "doctor": "above",
    "down": "above",
    "build": "tests/real/test_build.py",
    "new": "tests/real/test_kit_examples.py",
    "test": "tests/real/test_conformance.py",
    "exec": "tests/real/test_exec.py",
    "export": "tests/real/test_habits.py",
    "install": "tests/real/test_pull.py",
    "login": "tests/real/test_habits.py",
    "logout": "tests/real/test_habits.py",
    "migrate": "tests/peers/test_migration.py",
    "privileges": "tests/real/test_pull.py",
    "publish": "tests/real/test_publish.py",
    "rename": "tests/real/test_habits.py",
    "run": "below",
    "set": "tests/real/test_api.py",
    "stats": "tests/real/test_stats.py",
    "unpublish": "tests/real/test_publish.py",
    "upgrade": "tests/real/test_pull.py",
    "volume": "tests/real/test_volumes.py",
    "wait": "tests/real/test_habits.py",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine with the plugin ``volumes`` that the guide speaks of."""
    directory = tmp_path_factory.mktemp("engine")
    with engine(directory) as made:
        make_volumes(made, directory)
        yield made


@pytest.mark.needs("static-cc")
@pytest.mark.parametrize(
    "page",
    [page for page in COMMAND_PAGES if any(map(is_for_an_engine, commands(page)))],
    ids=lambda page: page.name,
)
def test_the_commands_for_an_engine_work_one_after_another(page: Path, house: EngineProcess) -> None:
    for command in filter(is_for_an_engine, commands(page)):
        if command.split()[1:2] and command.split()[1] in SHOWN_ELSEWHERE:
            continue
        type_it(house, command)
        if command.endswith("moorage down"):
            assert house.child is not None
            assert house.child.wait(limit(30)) == 0
            house.start()
    remove_hello(house)


@pytest.mark.needs("static-cc")
def test_l02_the_examples_of_the_reference_of_commands_work(house: EngineProcess) -> None:
    examples = [command for command in commands(REFERENCE) if command.split()[1] not in OTHER_VERBS]
    assert set(OTHER_VERBS) <= {command.split()[1] for command in commands(REFERENCE)}
    subprocess.run([ROOT / "examples/hello-static/build"], cwd=ROOT, check=True, capture_output=True)
    for command in sorted(examples, key=lambda each: VERBS.index(each.split()[1])):
        type_it(house, command)


def remove_hello(house: EngineProcess) -> None:
    """What a page has left."""
    for plugin in house.plugins():
        if plugin["Name"] == "hello:latest":
            house.remove("hello", force=True)


def make_volumes(house: EngineProcess, directory: Path) -> None:
    """The plugin with settings that the guide speaks of; it runs."""
    (directory / "state").mkdir()
    (directory / "password").write_text("s3cr3t\n")
    env = [{"name": name, "value": "", "settable": ["value"]} for name in ("DEBUG", "PASSWORD")]
    mount = {"name": "state", "source": "/srv", "destination": "/state", "type": "bind", "options": ["rbind"]}
    house.create("volumes", config(env=env, mounts=[{**mount, "settable": ["source"]}]))
    house.enable("volumes")


def type_it(house: EngineProcess, command: str) -> None:
    """Give a command to a shell in the checkout, for this engine instead of that of the machine."""
    directory = house.root.parent
    settings = {"MOORAGE_ROOT": house.root, "MOORAGE_EXEC_ROOT": house.exec_root, "MOORAGE_HOST": house.socket}
    surroundings = {**environment(None), **{name: str(path) for name, path in settings.items()}}
    for usual, here in (
        ("/run/moorage/moorage.sock", house.socket),
        ("/srv/state", directory / "state"),
        ("/root/password", directory / "password"),
    ):
        command = command.replace(usual, str(here))
    program, *words = shlex.split(command)
    line = [sys.executable, "-m", "moorage", *words] if program.endswith("moorage") else [program, *words]
    check(line, surroundings, is_endless=" ".join(words).startswith(ENDLESS))


def check(line: list[str], surroundings: dict[str, str], *, is_endless: bool) -> None:
    """A command succeeds; one that does not exit by itself prints something, and is stopped by Ctrl-C."""
    if not is_endless:
        done = subprocess.run(line, env=surroundings, cwd=ROOT, capture_output=True, text=True, timeout=limit(60))
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert '"message"' not in done.stdout, f"{line}: {done.stdout}"  # curl ends with 0 whatever it is answered
        return
    child = subprocess.Popen(line, env=surroundings, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline()
    child.send_signal(signal.SIGINT)
    with child.stdout:
        assert child.wait(limit(30)) == 130


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs/reference").glob("*.md"))], ids=lambda page: page.name)
def test_python_in_a_page_compiles_and_names_what_there_is(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        tree = compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                exec(compile(ast.Module([node], []), str(page), "exec"), {})


ALL_PAGES = [*PAGES, *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in PAGES)]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = set(re.findall(r"\]\(([^)#]+)", page.read_text()))
    assert [target for target in targets if "//" not in target and not (page.parent / target).exists()] == []


def test_the_clients_first_program_runs(session: Session) -> None:
    page = (ROOT / "docs/guide/containerd.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    assert "/run/containerd/containerd.sock" in program
    program = program.replace("/run/containerd/containerd.sock", session.containerd.address)
    done = subprocess.run([sys.executable, "-c", program], env=environment(None), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Version(" in done.stdout


def test_a_program_can_keep_a_containerd_of_its_own_as_the_guide_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/guide/containerd.md").read_text()
    program = next(block for block in page.split("```python\n") if "containerd.supervise(" in block).partition("```")[0]
    for name, workspace in (("/var/lib/my-program", tmp_path / "lib"), ("/run/my-program", tmp_path / "run")):
        assert name in program
        program = program.replace(name, str(workspace))
    program += "\nimport anyio\nanyio.run(main)\n"
    done = subprocess.run([sys.executable, "-c", program], env=environment(None), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Version(" in done.stdout
    assert not (tmp_path / "run/c.sock").exists()


def test_the_clients_example_runs_a_command(session: Session) -> None:
    program = ROOT / "examples/containerd-client/run.py"
    done = subprocess.run(
        [sys.executable, program, session.containerd.address, "sh", "-c", "echo hi; exit 3"],
        env=environment(None),
        capture_output=True,
        text=True,
        timeout=limit(60),
    )
    assert (done.returncode, done.stdout) == (3, "hi\n"), done.stderr
    assert re.fullmatch(r"containerd \S+\n", done.stderr)


class Worker:
    """The executor's example as a child."""

    def __init__(self, session: Session, state: Path, *words: str) -> None:
        program = ROOT / "examples/embed-executor/worker.py"
        self.log = state.with_suffix(".log")
        with self.log.open("w") as output:
            self.child = subprocess.Popen(
                [sys.executable, program, session.containerd.address, str(state), *words],
                env=environment(None),
                stdout=output,
                stderr=output,
            )

    def until(self, text: str) -> None:
        wait_until(lambda: text in self.log.read_text() or self.child.poll() is not None, text)
        assert text in self.log.read_text(), self.log.read_text()

    def end(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()


def test_the_executors_example_leaves_its_container_and_finds_it_again(session: Session, tmp_path: Path) -> None:
    state = tmp_path / "state"
    words = ("sh", "-c", "echo begun; while ! test -e /go; do sleep 0.05; done; echo done; exit 5")
    workers = []
    try:
        workers.append(first := Worker(session, state, *words))
        first.until("[stdout] begun")
        first.until("started it")  # output may come before create returns, and an interrupt then undoes it
        first.child.send_signal(signal.SIGINT)
        assert first.child.wait(limit(30)) == 0
        assert "keeps running" in first.log.read_text()
        workers.append(second := Worker(session, state, *words))
        second.until("found it running")
        (state / "root/go").touch()
        assert second.child.wait(limit(30)) == 5
    finally:
        (state / "root/go").touch()
        for worker in workers:
            worker.end()
    assert "[stdout] done" in second.log.read_text()
    assert "Traceback" not in second.log.read_text()
    assert not [*Path("/sys/fs/cgroup").glob("moorage-example*"), *Path("/sys/fs/cgroup").glob("*/moorage-example*")]


def test_hello_volume_runs_as_the_readme_says(machine: Machine) -> None:
    run = machine.start("examples/hello-volume", wrapper=IN_CHECKOUT)
    assert run.until("ready")["implements"] == ["VolumeDriver"]
    assert run.end(signal.SIGINT) == 130
    assert run.stderr == ""


# ---- docs/reference/run.md


def test_the_reference_names_every_event_and_field_of_a_run(machine: Machine, tmp_path: Path) -> None:
    run = machine.start("--keep", make_plugin(tmp_path / "it", "print('said', flush=True)\n" + ANSWER))
    run.until("output")
    run.until("ready")
    assert run.end(signal.SIGINT) == 130
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|.*\|$", (ROOT / "docs/reference/run.md").read_text(), re.MULTILINE)
    documented = {event: re.findall(r"`(\w+)`", fields) for event, fields in rows}
    watching = {event: documented.pop(event) for event in ("changed", "waiting")}  # real/test_run_watch.py
    assert all(watching.values())
    assert list(documented) == ["starting", "started", "output", "ready", "exit", "kept", "gone"]
    seen = {event["event"]: [name for name in event if name != "event"] for event in run.events}
    assert seen == documented
    machine.do(f"rm -r {Path(run.all('kept')[0]['changes']).parent}")


def test_the_reference_names_every_option(machine: Machine) -> None:
    page = (ROOT / "docs/reference/run.md").read_text()
    options = set(re.findall(r"--[a-z-]+", machine.moorage("run", "--help").stdout)) - {"--help"}
    assert options == set(re.findall(r"^\| `(--[a-z-]+)", page, re.MULTILINE))
