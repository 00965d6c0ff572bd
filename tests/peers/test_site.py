"""The documentation site, built by scripts/docs: a warning is an error, and so is a page outside the navigation."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from _docs import pages, public_modules

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.long, pytest.mark.extensive]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run([ROOT / "scripts/docs", target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return target / "html"


class Links(HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.anchors = {"", "top"}
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.linked.append(values["href"])
        elif tag == "link" and "href" in values and values.get("rel") not in ("index", "search", "next", "prev"):
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[Path, Links]:
    return {page: Links(page) for page in site.rglob("*.html")}


def test_every_document_is_a_page(site: Path) -> None:
    documents = {page for page in pages().values() if page.endswith(".md")}
    assert {page for page in documents if not (site / page).with_suffix(".html").is_file()} == set()


def test_every_page_is_in_the_sidebar(site: Path) -> None:
    sidebar = (site / "index.html").read_text()
    sidebar = sidebar[sidebar.index('class="sidebar-tree"') :].partition("</aside>")[0]
    shown = {href.partition("#")[0] for href in re.findall(r'href="([^"]+)"', sidebar)}
    documents = {page.removesuffix(".md") + ".html" for page in pages().values() if page.endswith(".md")}
    documents |= {f"reference/python/{name}.html" for name in public_modules()}
    assert documents - shown == {"index.html"}


def test_nothing_is_loaded_from_elsewhere(site: Path, parsed: dict[Path, Links]) -> None:
    foreign = [
        (page.name, url) for page, links in parsed.items() for url in links.loaded if re.match(r"(\w+:)?//", url)
    ]
    assert foreign == []
    for sheet in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()) == [], sheet


def broken(site: Path, parsed: dict[Path, Links]) -> Iterator[str]:
    for page, links in parsed.items():
        for url in [*links.loaded, *links.linked]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file() or (target in parsed and unquote(parts.fragment) not in parsed[target].anchors):
                yield f"{page.relative_to(site)}: {url}"


def test_no_link_is_broken(site: Path, parsed: dict[Path, Links]) -> None:
    assert len(parsed) > 50
    assert list(broken(site, parsed)) == []


def test_all_text_can_be_searched(site: Path) -> None:
    text = (site / "searchindex.js").read_text()
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    found = set(index["docnames"])
    assert {"tutorial", "security", "reference/commands", "reference/python/moorage.containerd"} <= found
    assert (site / "search.html").is_file()


def test_every_public_name_is_described(parsed: dict[Path, Links]) -> None:
    described = {anchor for links in parsed.values() for anchor in links.anchors}
    for name in ("moorage.containerd.connect", "moorage.containerd.Client", "moorage.executor.Executor.create"):
        assert name in described
    text = "".join(page.read_text() for page in parsed if page.parent.name == "python")
    for module in public_modules():
        for name in sys.modules[module].__all__:
            is_described = f"{module}.{name}" in described or f">{name}<" in text  # the latter: on another page
            assert is_described or name.startswith("__"), f"{module}.{name}"


def test_everything_that_builds_the_site_is_pinned(site: Path) -> None:
    listing = "import importlib.metadata as m; print(*sorted({d.name for d in m.distributions()}))"
    done = subprocess.run([ROOT / ".venv-docs/bin/python", "-c", listing], capture_output=True, text=True, check=True)

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {plain(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().split("\n")}
    assert {plain(name) for name in done.stdout.split()} - {"moorage", "pip", "setuptools"} - pinned == set()
