import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage._lib.escapes import escape, find_control, is_printable

pytestmark = pytest.mark.quick

briefly = settings(database=None, deadline=None, max_examples=200)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ümläute, 漢字", "plain text, ümläute, 漢字"),
        ("\x1b[1A\x1b[2K", "\\u001b[1A\\u001b[2K"),
        ("a\x00b\x07c\x7fd", "a\\u0000b\\u0007c\\u007fd"),
        ("\x9b2K", "\\u009b2K"),
        ("evil\u202etxt.exe", "evil\\u202etxt.exe"),
        ("a\u200bb\u2066c\ufeffd", "a\\u200bb\\u2066c\\ufeffd"),
        ("\u2028\u2029\u00a0", "\\u2028\\u2029\\u00a0"),
        ("\u3164\u115f\u2800\ufe0f", "\\u3164\\u115f\\u2800\\ufe0f"),
        ("\U000e0041", "\\udb40\\udc41"),
        ("\udcff", "\\udcff"),
        ("a\nb\tc\r", "a\\u000ab\\u0009c\\u000d"),
    ],
)
def test_s04_what_does_not_show_itself_is_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_s04_what_is_to_stay_stays_and_only_colours_pass_as_sequences() -> None:
    assert escape("a\nb\tc\r", keep="\n\t") == "a\nb\tc\\u000d"
    coloured = escape("\x1b[31mred\x1b[2Jx\x1b]0;title\x07", colours=True)
    assert coloured == "\x1b[31mred\\u001b[2Jx\\u001b]0;title\\u0007\x1b[0m"
    assert escape("plain\x1b[2K", colours=True) == "plain\\u001b[2K"


@briefly
@given(st.text(max_size=20))
def test_s04_the_result_is_printable_and_repeating_changes_nothing(text: str) -> None:
    shown = escape(text)
    assert is_printable(shown)
    assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert escape(shown) == shown
    assert shown.encode().decode() == shown


@briefly
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_s04_json_stays_json_with_the_same_values(text: str) -> None:
    assert json.loads(escape(json.dumps(text, ensure_ascii=False))) == text


def test_s04_a_control_character_is_found_where_it_is_not_allowed() -> None:
    assert find_control("/srv/data") is None
    assert find_control("a\tb") == "\\u0009"
    assert find_control("a\tb\n", lines=True) is None
    assert find_control("a\u202eb", lines=True) == "\\u202e"
    assert find_control("a\u200db", lines=True) is None
    assert find_control("a\u200db") == "\\u200d"
