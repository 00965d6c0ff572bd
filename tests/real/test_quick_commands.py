"""The quick commands do without click what the command line with click does, byte for byte."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.engines import EngineProcess, config, engine
from support.limits import limit
from support.terminals import show

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

QUICK = ["-m", "moorage"]
FULL = ["-c", "from moorage.cli.main import main; main()"]
SLOW = ("click", "msgspec", "http.client", "logging", "typing")
VARYING = re.compile(r'"(?:UptimeSeconds|MemoryBytes|CpuSeconds|StartedAt)": [^,\s]+|\d+ (?:se|mi)[a-z]*')

Result = tuple[int, str, str]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("p", config("out=first line", "err=second \u00e9\u4e2d", description="x" * 40))
        made.create("failing", config("listen=never", "end=3@0"))
        made.create("asking", config(network={"type": "host"}))
        made.enable("p")
        yield made
        for each in made.plugins():
            made.remove(each["Id"], force=True)


def run(program: list[str], house: EngineProcess, *words: str) -> Result:
    command = [sys.executable, *program, "--host", f"unix://{house.socket}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)
    return done.returncode, VARYING.sub("~", done.stdout), VARYING.sub("~", done.stderr)


def run_both(house: EngineProcess, *words: str) -> tuple[Result, Result]:
    """The results of both ways; again where a table became wider in between, as "9 seconds" became "10 seconds"."""
    quick, full = run(QUICK, house, *words), run(FULL, house, *words)
    for _ in range(2):
        if quick != full:
            quick, full = run(QUICK, house, *words), run(FULL, house, *words)
    return quick, full


def slow_imports(house: EngineProcess, *words: str) -> list[str]:
    """What a command line imported that a quick command does without."""
    command = [sys.executable, "-X", "importtime", "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "moorage.cli.quick.entry" in names
    return sorted(names & set(SLOW))


@pytest.mark.parametrize(
    "words",
    [
        "ls",
        "ls -q",
        "ls --no-trunc",
        "ls --quiet --json --no-trunc",
        "--json ls",
        "inspect p",
        "inspect asking failing",
        "inspect --json p failing",
        "logs p",
        "logs -n 1 p",
        "logs --tail=0 p",
        "logs -t --no-log-prefix p",
        "logs --no-log-prefix --raw p",
        "logs --json p",
        "enable p",
        "enable --json p",
    ],
)
def test_i17_a_quick_command_prints_what_the_full_command_line_prints(house: EngineProcess, words: str) -> None:
    quick, full = run_both(house, *words.split())
    assert quick == full
    assert quick[0] == 0
    assert quick[2] == ""
    assert slow_imports(house, *words.split()) == []


@pytest.mark.parametrize(
    "words",
    [
        "inspect nonsense",
        "inspect p nonsense",
        "enable nonsense",
        "disable nonsense",
        "disable --force --json nonsense",
        "logs nonsense",
        "logs -n many p",
        "logs -n",
        "enable failing",
        "enable asking",
        "disable failing",
        "ls extra",
        "ls --unknown",
        "ls -qh",
        "inspect",
        "inspect ''",
        "logs --since nonsense p",
        "ls --filter nonsense",
        "ls --format {{.Nonsense}}",
        "--host relative ls",
        "--host unix:///nonexistent/socket ls",
        "--host unix:///nonexistent/socket disable p",
        "--context nonsense ls",
    ],
)
def test_i17_failures_read_the_same_by_both_ways(house: EngineProcess, words: str) -> None:
    split = ["" if each == "''" else each for each in words.split()]
    results = []
    for program in (QUICK, FULL):
        if house.inspect("failing")["Enabled"]:  # where it was ready for an instant
            house.disable("failing", force=True)
        results.append(run(program, house, *split))
    assert results[0] == results[1]


def test_i17_disable_and_enable_do_the_same_by_both_ways(house: EngineProcess) -> None:
    results: list[list[Result]] = []
    for program in (QUICK, FULL):
        steps = ("disable p", "disable p", "disable -f --json p", "enable p", "enable p", "disable --force p")
        results.append([run(program, house, *words.split()) for words in steps])
        states = [each["Enabled"] for each in house.plugins() if each["Name"].startswith("p")]
        assert states == [False]
        house.enable("p")
    assert results[0] == results[1]
    assert slow_imports(house, "disable", "p") == []
    assert slow_imports(house, "enable", "p") == []


def test_i17_version_is_the_same_by_both_ways(house: EngineProcess) -> None:
    assert run(QUICK, house, "version") == run(FULL, house, "version")
    assert run(QUICK, house, "version", "--json") == run(FULL, house, "version", "--json")


@pytest.mark.parametrize("words", ["ls", "logs p", "logs --raw -t p", "inspect nonsense"])
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1", "COLUMNS": "60"}])
def test_i17_a_terminal_shows_the_same_by_both_ways(
    house: EngineProcess, words: str, environment: dict[str, str]
) -> None:
    call = ("--host", f"unix://{house.socket}", *words.split())
    seen = []
    for _ in range(3):  # as in run_both
        screens = [show(90, *call, program=program, **environment) for program in (QUICK, FULL)]
        seen = [(screen.status, VARYING.sub("~", screen.raw)) for screen in screens]
        if seen[0] == seen[1]:
            break
    assert seen[0] == seen[1]


@pytest.mark.parametrize("words", ["logs p | true", "ls >&-", "inspect p >/dev/full", "ls 2>&- | cat"])
def test_i17_an_output_that_cannot_be_written_gives_the_same_status(house: EngineProcess, words: str) -> None:
    host = f"--host unix://{house.socket}"
    results = []
    for program in (QUICK, FULL):
        line = f"set -o pipefail; {shlex.join([sys.executable, *program])} {host} {words}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=limit(60), check=False)
        results.append((done.returncode, VARYING.sub("~", done.stdout), done.stderr))
    assert results[0] == results[1]
