"""What ``scripts/diagrams`` runs: the state table of a plugin as a table and as a diagram."""

import sys
from pathlib import Path

from moorage.engine.lifecycle import TRANSITIONS, Event, State

PAGE = Path(__file__).parent.parent / "docs/reference/lifecycle.md"
BEGIN, END = "<!-- made by scripts/diagrams -->", "<!-- end -->"


def made() -> str:
    """What stands between the marks."""
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


def main() -> int:
    """Write the page, or only compare it."""
    before = PAGE.read_text()
    head, _, rest = before.partition(BEGIN)
    after = f"{head}{BEGIN}\n\n{made()}\n\n{END}{rest.partition(END)[2]}"
    if "--check" not in sys.argv:
        PAGE.write_text(after)
    elif before != after:
        print(f"diagrams: {PAGE} is not what the code says; run scripts/diagrams and commit", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
