"""What plugins, packages and registries say, shown by our command: nothing of it may act on the terminal.

Each of these reached the terminal as it was at 70b8c43.
"""

import http.server
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.engines import EngineProcess, Refused, actor, config
from support.layouts import Layout, layer_tar
from support.limits import limit
from support.packages import make, push
from support.registries import Served

pytestmark = [
    pytest.mark.real,
    pytest.mark.needs("static-cc", "docker-registry"),
    pytest.mark.usefixtures("nothing_else"),
]

HOSTILE = "x\x1b[1A\x1b[2K\x1b]0;t\x07\x9b2J\u202ey\u200b\x7fz"
SHOWN = r"x\u001b[1A\u001b[2K\u001b]0;t\u0007\u009b2J\u202ey\u200b\u007fz"
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}


def moorage(house: EngineProcess, *words: str) -> tuple[int, str]:
    """Our command without a terminal: its status and all that it prints."""
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        timeout=limit(90),
    )
    return done.returncode, done.stdout.decode()


def on_terminal(house: EngineProcess, words: Sequence[str], answer: str) -> tuple[int, str]:
    """The same on a terminal, where a person types an answer when prompted."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    child = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True
    )
    os.close(slave)
    printed, has_answered = b"", False
    try:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if not piece:
                break
            printed += piece
            if b"[y/N]" in printed and not has_answered:
                has_answered = True
                os.write(master, answer.encode())
        return child.wait(limit(60)), printed.decode()
    finally:
        os.close(master)
        if child.poll() is None:
            child.kill()
            child.wait()


def assert_harmless(text: str) -> None:
    plain = text.replace("\r\n", "\n")  # a terminal's
    assert not ACTING.search(plain), repr(plain)


TALKER = config(args={"name": "args", "settable": ["value"], "value": []})


def talker(house: EngineProcess, *arguments: str) -> None:
    house.create("p", TALKER)
    house.set("p", "args=" + " ".join(arguments))


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "fields",
    [
        {"description": HOSTILE},
        {"description": "harmless\n + mount: nothing\r"},
        {"documentation": "\x1b]8;;http://evil\x07"},
        {"mounts": [{"source": "/\x1b[1A\x1b[2K", "destination": "/x", "type": "bind"}]},
        {"mounts": [{"source": "/\nmoorage: fine", "destination": "/x", "type": "bind"}]},
        {"mounts": [{"source": "/etc", "destination": "/x\u202e", "type": "bind"}]},
        {"mounts": [{"source": "/etc", "destination": "/x", "type": "bind", "options": ["rw\x9b"]}]},
        {"mounts": [{"name": "m\u200bn", "source": "/etc", "destination": "/x", "type": "bind"}]},
        {"linux": {"capabilities": ["CAP_SYS_ADMIN\x1b[8m"]}},
        {"linux": {"devices": [{"path": "/dev/\x08\x08null"}]}},
        {"env": [{"name": "A\x1b", "value": "1"}]},
        {"interface": {"socket": "p.sock", "types": ["docker.volumedriver/1.0\x1b[2K"]}},
        {"workdir": "/\x7f"},
        {"entrypoint": ["/actor", "\x1b[2J"]},
    ],
)
def test_s04_a_config_with_control_characters_is_refused_at_create_and_pull(
    house: EngineProcess, registry: Served, fields: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match=r"400: .*must not have the control character") as caught:
        house.create("p", config(**fields) | fields)
    assert_harmless(caught.value.message)
    push(registry.host, "t/hostile", "v1", make(config(**fields) | fields))
    name = f"{registry.host}/t/hostile:v1"
    for words in (["privileges", name], ["install", "--grant-all-permissions", name]):
        status, text = moorage(house, *words)
        assert status == 1
        assert "must not have the control character" in text
        assert_harmless(text)


def test_s04_a_set_does_not_put_control_characters_into_a_path(house: EngineProcess) -> None:
    house.create(
        "p", config(mounts=[{"name": "m", "settable": ["source"], "source": "", "destination": "/x", "type": "bind"}])
    )
    with pytest.raises(Refused, match=r"400: .*must not have the control character"):
        house.set("p", "m.source=/\x1b[2K")


# ------------------------------------------------------------------------------------------------- what is shown


def test_s04_logs_call_and_inspect_escape_what_a_plugin_says(house: EngineProcess) -> None:
    talker(house, f"'out=\x1b[31mred\x1b[0m {HOSTILE}'")
    house.enable("p")
    house.wait_until(lambda: house.logs("p"), "the plugin wrote")
    for words in (
        ["logs", "p"],
        ["call", "p", "args"],
        ["inspect", "p"],
        ["ls", "--no-trunc"],
        ["logs", "--json", "p"],
    ):
        status, text = moorage(house, *words)
        assert status == 0, text
        assert_harmless(text)
    assert rf"\u001b[31mred\u001b[0m {SHOWN}" in moorage(house, "logs", "p")[1]
    assert SHOWN in moorage(house, "call", "p", "args")[1]
    raw = moorage(house, "logs", "--raw", "p")[1]
    assert f"\x1b[31mred\x1b[0m {SHOWN}\x1b[0m" in raw, "colours, and nothing else"
    assert not ACTING.search(re.sub("\x1b\\[[0-9;]*m", "", raw))


def test_s04_a_failed_enable_escapes_the_last_lines_and_marks_each_of_them(house: EngineProcess) -> None:
    talker(house, f"'err={HOSTILE}'", "end=3")
    status, text = moorage(house, "enable", "p")
    assert status == 1
    assert_harmless(text)
    first, *others = text.splitlines()
    assert first.startswith("moorage: cannot enable plugin p:latest")
    assert f"  {SHOWN}" in others
    assert all(each.startswith("  ") for each in others), text
    with pytest.raises(Refused) as caught:
        house.enable("p")
    assert_harmless(caught.value.message)


def test_s04_probe_escapes_what_a_plugin_implements(house: EngineProcess) -> None:
    house.create("p", config())
    house.enable("p")
    status, text = moorage(house, "probe", "p")
    assert (status, "VolumeDriver" in text) == (0, True)
    assert_harmless(text)


def test_s04_run_escapes_the_output_of_a_plugin(tmp_path: Path) -> None:
    directory = tmp_path / "plugin"
    (directory / "rootfs").mkdir(parents=True)
    (directory / "rootfs/actor").write_bytes(actor())
    (directory / "rootfs/actor").chmod(0o755)
    (directory / "config.json").write_text(json.dumps(config("end=0@200", args=TALKER["args"])))
    both: list[tuple[list[str], str]] = [([], r"\u001b[31m"), (["--raw"], "\x1b[31m")]
    for options, colour in both:
        done = subprocess.run(
            [sys.executable, "-m", "moorage", "run", *options, directory, f"args='out=\x1b[31m{HOSTILE}'"],
            stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=limit(90), check=False,
        )  # fmt: skip
        out = done.stdout.decode()
        assert f"{colour}{SHOWN}" in out, done.stderr
        assert not ACTING.search(out.replace("\x1b[31m", "").replace("\x1b[0m", "")), repr(out)


class HostileRegistry(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"errors": [{"code": "DENIED", "message": f"{HOSTILE}\nmoorage: all is well"}]}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the base class names it

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def hostile_registry() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HostileRegistry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_s04_what_a_registry_says_is_escaped(house: EngineProcess) -> None:
    with hostile_registry() as host:
        for words in (["privileges", f"{host}/t/x:1"], ["install", "--grant-all-permissions", f"{host}/t/x:1"]):
            status, text = moorage(house, *words)
            assert status == 1
            assert_harmless(text)
            assert "\nmoorage: all is well" not in text


# ------------------------------------------------------------------------------------- the question, on a real terminal

NEEDY = config(mounts=[{"source": "/", "destination": "/host", "type": "bind", "options": ["rbind"]}])
PROC = config(mounts=[{"source": "tmpfs", "destination": "/x", "type": "proc"}])


def test_s03_s04_the_question_of_an_install_shows_what_is_granted(house: EngineProcess, registry: Served) -> None:
    name = f"{registry.host}/t/needy"
    for tag, document, parts in (
        ("v1", NEEDY, ("mount: /", "bind mount: / on /host, read-write (rbind)")),
        ("v2", PROC, ("mount: tmpfs", "file system: mount of type proc from tmpfs on /x")),
    ):
        push(registry.host, "t/needy", tag, make(document))
        status, text = on_terminal(house, ["install", "--alias", "p", f"{name}:{tag}"], "n\n")
        assert status == 1
        assert all(f" + {part}\r\n" in text for part in parts), text
        assert house.plugins() == []
    status, text = on_terminal(house, ["install", "--alias", "p", f"{name}:v1"], "y\n")
    assert (status, house.inspect("p")["Enabled"]) == (0, True), text
    status, text = on_terminal(house, ["upgrade", "--restart", "p", f"{name}:v2"], "n\n")
    assert status == 1
    assert " + file system: mount of type proc from tmpfs on /x\r\n" in text
    assert " - bind mount: / on /host, read-write (rbind)\r\n" in text
    assert house.more("p")["Privileges"][0]["Value"] == ["/"], "nothing has changed"


def test_s13_create_shows_what_it_grants_and_prompts_a_person(house: EngineProcess, tmp_path: Path) -> None:
    directory = tmp_path / "plugin"
    (directory / "rootfs").mkdir(parents=True)
    (directory / "rootfs/actor").write_bytes(actor())
    (directory / "rootfs/actor").chmod(0o755)
    (directory / "config.json").write_text(json.dumps(NEEDY))
    status, text = on_terminal(house, ["create", "p", str(directory)], "n\n")
    assert (status, house.plugins()) == (1, [])
    assert " + bind mount: / on /host, read-write (rbind)\r\n" in text
    assert on_terminal(house, ["create", "p", str(directory)], "y\n")[0] == 0
    house.enable("p")
    house.remove("p", force=True)
    status, text = moorage(house, "create", "p", str(directory))
    assert status == 0
    assert " + bind mount: / on /host, read-write (rbind)\n" in text, "it is shown where nobody can be asked, too"
    house.enable("p")


def test_s13_load_and_enable_show_and_prompt(house: EngineProcess, tmp_path: Path) -> None:
    layout = Layout()
    layout.list(layout.plugin(NEEDY, [layer_tar({"actor": (actor(), 0o755)})]), "docker.io/t/p:1")
    file = tmp_path / "p.tar"
    file.write_bytes(layout.tar())
    status, text = on_terminal(house, ["load", "-i", str(file)], "n\n")
    assert status == 0, text
    assert " + bind mount: / on /host, read-write (rbind)\r\n" in text
    assert "has no privileges yet: moorage enable t/p:1 asks for them" in text
    status, text = moorage(house, "enable", "t/p:1")
    assert status == 1
    assert "give --grant-all-permissions" in text
    status, text = on_terminal(house, ["enable", "t/p:1"], "n\n")
    assert (status, house.inspect("t/p:1")["Enabled"]) == (1, False)
    status, text = on_terminal(house, ["enable", "t/p:1"], "y\n")
    assert (status, house.inspect("t/p:1")["Enabled"]) == (0, True), text
    house.remove("t/p:1", force=True)
    assert moorage(house, "load", "-y", "-i", str(file))[0] == 0
    assert moorage(house, "enable", "t/p:1")[0] == 0


# -------------------------------------------------------------------------------------------------- apply and docker


def test_s03_apply_requires_the_privileges_that_settings_add(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    off = {"name": "m", "settable": ["source"], "source": "", "destination": "/x", "type": "bind", "options": ["rbind"]}
    push(registry.host, "t/applied", "v1", make(config(mounts=[off])))
    push(registry.host, "t/applied", "v2", make(config(mounts=[off | {"options": ["rbind", "ro"]}])))
    file = tmp_path / "plugins.yaml"

    def write(tag: str, source: str, *grants: tuple[str, str]) -> None:
        lines = "".join(f"  - {{name: {name}, value: ['{value}']}}\n" for name, value in grants) or " []\n"
        file.write_text(
            f"plugins:\n- reference: {registry.host}/t/applied:{tag}\n  name: p\n  settings: {{m.source: {source}}}\n"
            f"  privileges:{lines if lines == ' []' + chr(10) else chr(10) + lines}"
        )

    def apply(*options: str) -> tuple[int, str]:
        return moorage(house, "apply", "-f", str(file), *options)

    write("v1", "/usr")
    for options in (["--dry-run"], []):
        status, text = apply(*options)
        assert status == 1
        assert "requests mount: /usr; bind mount: /usr on /x, read-write (rbind), and the file grants" in text
    assert house.plugins() == []
    both = ("mount", "/usr"), ("bind mount", "/usr on /x, read-write (rbind)")
    write("v1", "/usr", *both)
    assert apply("--dry-run")[0] == 0
    assert apply()[0] == 0, apply()
    write("v1", "/etc", *both)
    for options in (["--dry-run"], []):
        assert apply(*options)[0] == 1, "another source is another privilege"
    write("v2", "/usr", *both)
    status, text = apply()
    assert (status, "read-only (rbind,ro)" in text) == (1, True)
    assert house.inspect("p")["Enabled"], "nothing was stopped"
    write("v2", "/usr", ("mount", "/usr"), ("bind mount", "/usr on /x, read-only (rbind,ro)"))
    status, text = apply()
    assert (status, house.inspect("p")["Enabled"]) == (0, True), text


@pytest.mark.needs("docker")
def test_s03_the_docker_command_still_installs_upgrades_creates_and_enables(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    def docker(*words: str) -> str:
        home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "DOCKER_HOST": f"unix://{house.socket}"}
        done = subprocess.run(["docker", "plugin", *words], capture_output=True, text=True, env=home, timeout=limit(90))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    overlay = {"source": "overlay", "destination": "/o", "type": "overlay", "options": ["lowerdir=/usr:/opt"]}
    push(registry.host, "t/docker", "v1", make(NEEDY))
    push(registry.host, "t/docker", "v2", make(config(mounts=[*NEEDY["mounts"], overlay])))
    name = f"{registry.host}/t/docker"
    docker("install", "--grant-all-permissions", "--alias", "p", f"{name}:v1")
    docker("disable", "p")
    docker("upgrade", "--grant-all-permissions", "--skip-remote-check", "p", f"{name}:v2")
    docker("enable", "p")
    values = [each["Value"][0] for each in house.more("p")["Privileges"]]
    assert "mount of type overlay on /o with options lowerdir=/usr:/opt" in values
    directory = tmp_path / "plugin"
    (directory / "rootfs").mkdir(parents=True)
    (directory / "rootfs/actor").write_bytes(actor())
    (directory / "rootfs/actor").chmod(0o755)
    (directory / "config.json").write_text(json.dumps(NEEDY))
    docker("create", "q", str(directory))
    docker("enable", "q")
