"""The pictures of the documents, drawn again by graphviz."""

import xml.etree.ElementTree
from pathlib import Path

import pytest
from _diagrams import IMAGES, PICTURES, draw

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.needs("dot")
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_from_its_source_and_shows_the_same(name: str) -> None:
    def texts(svg: str) -> list[str]:
        root = xml.etree.ElementTree.fromstring(svg)
        return sorted(each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text"))

    source = PICTURES[name]()
    assert source.replace("--", "-&#45;") in draw(source)
    assert texts(draw(source)) == texts((IMAGES / name).read_text())
