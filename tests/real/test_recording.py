"""The recording that README.md shows is what the commands print."""

import xml.etree.ElementTree

import pytest
from _recorder import PICTURE, comparable, draw, record, stored_transcript, transcript

pytestmark = pytest.mark.real


def test_the_recording_is_current() -> None:
    lines = record()
    assert comparable(transcript(lines)) == comparable(stored_transcript()), "run scripts/recording and commit"
    drawn = xml.etree.ElementTree.fromstring(draw(lines))
    shown = "".join(drawn.itertext()).replace("\xa0", " ")
    assert "moorage enable hello" in shown
    assert "SIGKILL" in shown


def test_the_picture_is_xml_and_loads_nothing() -> None:
    text = PICTURE.read_text()
    xml.etree.ElementTree.fromstring(text)
    assert "@font-face" not in text
    assert text.count("http") == 1, "only the name of the SVG namespace"
