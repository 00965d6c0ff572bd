"""What ``scripts/diagrams`` runs: tables in pages of docs/, between marks, and the pictures in docs/images/.

Both are made from code. A picture is drawn by graphviz, whose layout differs from version to version, so an SVG
contains the source that it was drawn from, and is current when that source is.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _command_reference import fill

from moorage.api.routes import ROUTES
from moorage.api.schema.openapi import make_document
from moorage.engine.lifecycle import TRANSITIONS, Event, State

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = DOCS / "reference"
IMAGES = DOCS / "images"
BEGIN, END = "<!-- made by scripts/diagrams -->", "<!-- end -->"


FONT = 'fontname="Helvetica,Arial,sans-serif"'
COLORS = {State.READY: "#dafbe1", State.FAILED: "#ffebe9"}  # the rest: in between, or nothing runs


def states() -> str:
    """The state table of a plugin, as a diagram and as a table."""
    events = list(Event)
    lines = ["![The states of a plugin and what leads from one to another](../images/lifecycle.svg)"]
    lines += ["", f"| state | {' | '.join(event.value for event in events)} |", f"|---|{'---|' * len(events)}"]
    for state in State:
        row = TRANSITIONS[state]
        cells = (row[event].value if event in row else "" for event in events)
        lines.append(f"| **{state.value}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def state_diagram() -> str:
    """The state table as a graph; events that lead from one state to the same other share an arrow."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for state in State:
        for event, to in TRANSITIONS[state].items():
            arrows.setdefault((state, to), []).append(event.value)
    lines = [
        "digraph lifecycle {",
        f"    graph [bgcolor=white, {FONT}, pad=0.2, nodesep=0.5, ranksep=0.6]",
        f'    node [shape=box, style="rounded,filled", color="#57606a", {FONT}, fontsize=13, margin="0.18,0.08"]',
        f'    edge [color="#57606a", {FONT}, fontsize=11, fontcolor="#24292f", arrowsize=0.7]',
        '    begin [shape=circle, label="", width=0.15, fillcolor="#57606a"]',
        "    begin -> disabled",
    ]
    lines += [f'    {state.value} [fillcolor="{COLORS.get(state, "#eaeef2")}"]' for state in State]
    lines += [
        f'    {state.value} -> {to.value} [label=" {", ".join(events)} "]' for (state, to), events in arrows.items()
    ]
    return "\n".join([*lines, "}"]) + "\n"


def room_diagram() -> str:
    """The rooms in the order of the import contract: each imports from rows below it."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())
    (layers,) = (each["layers"] for each in project["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    rows = [[name.strip().removeprefix("moorage.") for name in layer.split("|")] for layer in layers]
    cell = '<td bgcolor="#eaeef2" style="rounded">{}</td>'
    table = '<tr><td><table border="0" cellspacing="3" cellpadding="6"><tr>{}</tr></table></td></tr>'
    lines = [
        "digraph rooms {",
        f'    graph [bgcolor=white, pad=0.2, label="each row imports only from rows below it", {FONT}, fontsize=11]',
        f"    node [shape=plain, {FONT}, fontsize=13]",
        '    rooms [label=<<table border="0" cellspacing="0">',
        *(table.format("".join(map(cell.format, row))) for row in rows),
        "    </table>>]",
    ]
    return "\n".join([*lines, "}"]) + "\n"


def calls() -> str:
    """Every call of the API, from its OpenAPI document: Docker's, then the additions."""
    document = make_document(ROUTES)
    operations = [
        (path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    lines: list[str] = []
    for title, is_extension in (("Docker's calls", False), ("Calls of our own", True)):
        lines += [f"### {title}", "", "| call | what it does | query | body | success |", "|---|---|---|---|---|"]
        lines += [
            f"| `{method.upper()} {path}` | {operation['summary']} | {', '.join(_query(operation))} "
            f"| {_body(operation)} | {_success(operation)} |"
            for path, method, operation in operations
            if path.startswith("/moorage/") is is_extension
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def _query(operation: dict[str, Any]) -> Iterator[str]:
    for each in operation["parameters"]:
        if each["in"] == "query":
            yield f"`{each['name']}`"


def _success(operation: dict[str, Any]) -> str:
    return ", ".join(status for status in operation["responses"] if status != "default")


def _body(operation: dict[str, Any]) -> str:
    return ", ".join(f"`{kind}`" for kind in operation.get("requestBody", {}).get("content", ()))


PAGES: dict[str, Callable[[], str]] = {"lifecycle.md": states, "api.md": calls}
PICTURES: dict[str, Callable[[], str]] = {
    "lifecycle.svg": state_diagram,
    "rooms.svg": room_diagram,
    **{f"{path.stem}.svg": path.read_text for path in IMAGES.glob("*.dot")},
}


def page_text(name: str) -> str:
    """A page as it should be."""
    if name not in PAGES:
        return fill((REFERENCE / name).read_text())
    head, _, rest = (REFERENCE / name).read_text().partition(BEGIN)
    return f"{head}{BEGIN}\n\n{PAGES[name]()}\n\n{END}{rest.partition(END)[2]}"


def _comment(source: str) -> str:
    """A graph as the comment of an SVG: an XML comment has no two hyphens in a row."""
    return f"<!-- drawn by scripts/diagrams from:\n{source.replace('--', '-&#45;')}-->"


def draw(source: str) -> str:
    """The SVG of a graph, with its source. Raises: SystemExit where graphviz is missing."""
    try:
        done = subprocess.run(["dot", "-Tsvg"], input=source, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise SystemExit("diagrams: graphviz is missing; run scripts/setup test") from None
    drawing = done.stdout[done.stdout.index("<svg") :]
    drawing = re.sub(r"<!--.*?-->\n?", "", drawing, flags=re.S)
    return f"{_comment(source)}\n{drawing}"


def main() -> int:
    """Write pages and pictures, or only compare them."""
    pages = [*PAGES, "commands.md"]
    old = [REFERENCE / name for name in pages if (REFERENCE / name).read_text() != page_text(name)]
    undrawn = [
        name
        for name, make in PICTURES.items()
        if not (IMAGES / name).exists() or not (IMAGES / name).read_text().startswith(_comment(make()))
    ]
    if "--check" in sys.argv:
        for path in [*old, *(IMAGES / name for name in undrawn)]:
            print(f"diagrams: {path} is not what the code says; run scripts/diagrams and commit", file=sys.stderr)
        return 1 if old or undrawn else 0
    for path in old:
        path.write_text(page_text(path.name))
    for name in undrawn:
        (IMAGES / name).write_text(draw(PICTURES[name]()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
