"""Every page with commands has a test that runs them, and every page is reached from README."""

import re
from pathlib import Path

from support.pages import commands

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/README.md")]
}

# Pages that are written as a walk (``support.pages``), and the test that walks through them.
WALKED = {
    "README.md": "tests/peers/test_consumer_guides.py",
    "docs/guide/migrate-from-docker.md": "tests/peers/test_docker_cli.py",
    "docs/guide/plugins-for-dockerd.md": "tests/peers/test_consumer_guides.py",
    "docs/guide/volumes-for-programs.md": "tests/peers/test_consumer_guides.py",
    "docs/guide/volumes-with-podman.md": "tests/peers/test_consumer_guides.py",
    "docs/guide/plugin-kit.md": "tests/real/test_tutorial.py",
    "docs/guide/write-a-plugin.md": "tests/real/test_tutorial.py",
    "docs/reference/api.md": "tests/real/test_tutorial.py",
    "docs/reference/serve.md": "tests/real/test_tutorial.py",
    "docs/tutorial.md": "tests/real/test_tutorial.py",
}

# Other pages with commands in indented lines: README and the guides are run by tests/real/test_examples_docs.py, which
# finds them by itself.
INDENTED = {
    "docs/development.md": "how versions are renewed: by hand, from the network, and not for users",
    "docs/reference/commands.md": "tests/real/test_examples_docs.py",
    "docs/reference/oci-spec.md": "a call that tests/real/test_engine.py makes",
    "docs/reference/run.md": "the synopsis; tests/real/test_examples_docs.py compares the page with a run",
    "examples/hello-static/README.md": "tests/real/test_examples.py",
    "examples/hello-volume/README.md": "tests/real/test_examples.py",
    "examples/json-lines/README.md": "tests/real/test_kit_examples.py",
    "examples/rule-file/README.md": "tests/real/test_kit_examples.py",
}
COMMAND = re.compile(
    r"^    (?:\.venv/bin/|/tmp/renew/bin/)?(?:moorage|docker|curl|python3?|pip|systemctl|scripts/\w+)\b", re.M
)


def test_every_page_that_is_a_walk_is_walked_through() -> None:
    assert {name for name, text in PAGES.items() if commands(text)} == set(WALKED)
    for page, test in WALKED.items():
        assert page.removeprefix("docs/").rpartition("/")[2] in (ROOT / test).read_text()


def test_every_other_page_with_commands_is_run_or_gives_its_reason() -> None:
    found = {name for name, text in PAGES.items() if COMMAND.search(text)}
    assert {name for name in found if name != "README.md" and not name.startswith("docs/guide/")} == set(INDENTED)


def test_every_page_is_reached_from_readme() -> None:
    reached, todo = set(), ["README.md"]
    while todo:
        name = todo.pop()
        if name in PAGES and name not in reached:
            reached.add(name)
            links = re.findall(r"\]\(([^)#]+)", PAGES[name])
            todo += [
                str((ROOT / name).parent.joinpath(link).resolve().relative_to(ROOT))
                for link in links
                if "//" not in link
            ]
    decisions = {name for name in PAGES if name.startswith("docs/adr/")}  # README links to their folder
    assert set(PAGES) - reached - decisions == set()


def test_every_page_says_whom_it_is_for() -> None:
    plain = {name: text.partition("\n\n")[2] for name, text in PAGES.items() if re.match("docs/(?!adr/)", name)}
    assert [name for name, text in plain.items() if not text.startswith("For ")] == []


def test_the_architecture_has_every_room() -> None:
    page = PAGES["docs/architecture.md"]
    rooms = [
        path for path in (ROOT / "src/moorage").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    names = {path.name if path.suffix else f"{path.name}/" for path in rooms} - {
        "__init__.py",
        "__main__.py",
        "_version.py",
    }
    assert {name for name in names if f"`{name}`" not in page} == set()


def headings(text: str) -> set[str]:
    """The anchors of a page, as they are made of its headings."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in found}


def test_links_to_a_part_of_a_page_lead_to_a_heading() -> None:
    wrong = []
    for name, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            page = (ROOT / name).parent.joinpath(target).resolve() if target else ROOT / name
            if anchor not in headings(page.read_text()):
                wrong.append(f"{name}: {target}#{anchor}")
    assert wrong == []
