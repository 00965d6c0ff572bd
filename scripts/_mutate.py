"""Reads what mutmut found, and compares the survivors with the list that gives a reason for each."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

LEAST = 0.85
KILLED = ("killed", "timeout")


def results(tree: Path) -> dict[str, str]:
    """Each change that was tried, and what became of it."""
    found: dict[str, str] = {}
    for meta in (tree / "mutants").rglob("*.meta"):
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            if code is not None:
                found[name] = {0: "survived", 1: "killed", 3: "killed", 33: "no tests"}.get(code, "timeout")
    return found


def change(tree: Path, name: str) -> str:
    """The change in one line: where, what was, what became."""
    mutmut = Path(sys.executable).with_name("mutmut")
    shown = subprocess.run([mutmut, "show", name], cwd=tree, capture_output=True, text=True, check=True).stdout
    lines = [line for line in shown.splitlines() if re.match(r"[-+] ", line)]
    function = name.rpartition("__mutmut_")[0].replace("xǁ", "").replace("ǁ", ".").replace(".x_", ".")
    removed, added = ([line[1:].strip() for line in lines if line[0] == sign] for sign in "-+")
    return f"{function}: {' '.join(removed)} => {' '.join(added)}"


def reasons(path: Path) -> dict[str, str]:
    """The list: a reason, indented below it the changes that it is for."""
    found: dict[str, str] = {}
    reason = ""
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("    "):
            found[line.strip()] = reason
        elif line.strip() and not line.startswith("#"):
            reason = line.strip()
    return found


def main() -> int:
    tree, known = Path(sys.argv[1]), reasons(Path(sys.argv[2]))
    tried = results(tree)
    counts = Counter(tried.values())
    if not tried:
        print("mutate: nothing was tried")
        return 1
    survivors = [(name, change(tree, name)) for name, what in sorted(tried.items()) if what not in KILLED]
    unknown = [(name, text) for name, text in survivors if text not in known]
    share = sum(counts[what] for what in KILLED) / len(tried)
    for name, text in unknown:
        print(f"no reason is given for {name}:\n    {text}")
    for text in sorted(known.keys() - {text for _, text in survivors}):
        print(f"listed, but noticed by now:\n    {text}")
    print(
        f"{len(tried)} changes, {share:.1%} noticed; {len(survivors)} survived, {len(unknown)} of them without a reason"
    )
    return 0 if share >= LEAST and not unknown else 1


if __name__ == "__main__":
    sys.exit(main())
