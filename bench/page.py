"""Writes a result into docs/reference/performance.md: tables and chart. Called by scripts/bench.

scripts/bench page bench/results/FILE.json
scripts/bench page --check      only compare, with the result that the page names
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from bench.chart import chart
from bench.report import LINES, growth_table, judge, table

__all__ = ("CHART", "PAGE", "differing", "main")

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reference/performance.md"
CHART = ROOT / "docs/images/performance.svg"
_GENERATED = re.compile(r"<!-- from (\S+), by scripts/bench page -->\n.*?<!-- end -->\n", re.DOTALL)


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(prog="scripts/bench page", description="Write a result into the documentation.")
    parser.add_argument("result", type=Path, nargs="?", help="of a run of everything, in bench/results")
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for path, text in differing(options.result).items():
        if options.check:
            sys.exit(f"{path} is not what its result gives; run: scripts/bench page RESULT")
        path.write_text(text)
        print(f"written to {path}")


def differing(result: Path | None = None) -> dict[Path, str]:
    """The files that differ from what a result gives, with their new text; of the result that the page names if None.

    Raises:
        ValueError: the page has no part for it
    """
    page = PAGE.read_text()
    found = _GENERATED.search(page)
    if found is None:
        raise ValueError(f"{PAGE} has no part that scripts/bench page writes")
    path = result.resolve() if result is not None else ROOT / found[1]
    made: dict[str, Any] = json.loads(path.read_text())
    plugins, measured = int(made.get("plugins", 30)), judge(LINES, made["figures"])
    texts = {
        PAGE: page.replace(found[0], _part(path, made, table(measured, plugins))),
        CHART: chart(measured, plugins),
    }
    return {file: text for file, text in texts.items() if not file.exists() or file.read_text() != text}


def _part(path: Path, made: dict[str, Any], lines: str) -> str:
    load = made["load"]["before"][0]
    grown = growth_table(made["figures"])
    return (
        f"<!-- from {path.relative_to(ROOT)}, by scripts/bench page -->\n"
        f"`{made['command']}` at {made['commit'].removesuffix('+')}, on {made['machine']['cores']} cores, "
        f"load {load:.1f} before.\n\n{lines}\n" + (f"\n{grown}\n" if grown else "") + "<!-- end -->\n"
    )
