"""What ``scripts/diagrams`` runs: pages of docs/ that show tables of the code, between marks."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moorage.api.openapi import make_document
from moorage.api.routes import ROUTES
from moorage.engine.lifecycle import TRANSITIONS, Event, State

REFERENCE = Path(__file__).parent.parent / "docs/reference"
BEGIN, END = "<!-- made by scripts/diagrams -->", "<!-- end -->"


def states() -> str:
    """The state table of a plugin, as a diagram and as a table."""
    events = list(Event)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> disabled"]
    lines += [
        f"    {state.value} --> {to.value}: {event.value}"
        for state in State
        for event, to in TRANSITIONS[state].items()
    ]
    lines += ["```", "", f"| state | {' | '.join(event.value for event in events)} |", f"|---|{'---|' * len(events)}"]
    for state in State:
        row = TRANSITIONS[state]
        cells = (row[event].value if event in row else "" for event in events)
        lines.append(f"| **{state.value}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def calls() -> str:
    """Every call of the API, from its OpenAPI document: Docker's, then ours."""
    document = make_document(ROUTES)
    operations = [
        (path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    lines: list[str] = []
    for title, is_ours in (("Docker's calls", False), ("Calls of our own", True)):
        lines += [f"### {title}", "", "| call | what it does | query | body | success |", "|---|---|---|---|---|"]
        lines += [
            f"| `{method.upper()} {path}` | {operation['summary']} | {', '.join(_query(operation))} "
            f"| {_body(operation)} | {min(operation['responses'])} |"
            for path, method, operation in operations
            if path.startswith("/moorage/") is is_ours
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def _query(operation: dict[str, Any]) -> Iterator[str]:
    for each in operation["parameters"]:
        if each["in"] == "query":
            yield f"`{each['name']}`"


def _body(operation: dict[str, Any]) -> str:
    return ", ".join(f"`{kind}`" for kind in operation.get("requestBody", {}).get("content", ()))


MADE: dict[str, Callable[[], str]] = {"lifecycle.md": states, "api.md": calls}


def main() -> int:
    """Write the pages, or only compare them."""
    status = 0
    for name, make in MADE.items():
        page = REFERENCE / name
        before = page.read_text()
        head, _, rest = before.partition(BEGIN)
        after = f"{head}{BEGIN}\n\n{make()}\n\n{END}{rest.partition(END)[2]}"
        if "--check" not in sys.argv:
            page.write_text(after)
        elif before != after:
            print(f"diagrams: {page} is not what the code says; run scripts/diagrams and commit", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
