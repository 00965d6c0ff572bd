"""Templates of --format, conditions of --filter, and columns that fit a terminal."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.cli.format.column_fit import cell_width, cut, fit_columns
from moorage.cli.format.filters import matches, name_matches, parse_filters, parse_flag
from moorage.cli.format.template import Template

pytestmark = pytest.mark.quick

DOCUMENT = {
    "ID": "abc",
    "Name": "vol:latest",
    "Enabled": True,
    "Types": ["volume", "log"],
    "Labels": {"tier": "one"},
    "Nothing": None,
    "Count": 3,
    "Text": "a\x1b[2J\nb",
}


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{.ID}}\\t{{.Name}}", "abc\tvol:latest"),
        ("{{.Id}}", "abc"),
        ("{{ .Enabled }} {{.Count}}", "true 3"),
        ("{{.Types}} {{.Labels}} {{.Nothing}}", "[volume log] map[tier:one] <no value>"),
        ("{{json .Types}}", '["volume", "log"]'),
        ("{{.Types | json}}", '["volume", "log"]'),
        ("{{json .Text}}", '"a\\u001b[2J\\nb"'),
        ("{{.Text}}", r"a\u001b[2J\u000ab"),
        ("{{range .Types}}<{{.}}>{{else}}none{{end}}", "<volume><log>"),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ("{{range $i, $each := .Types}}{{$i}}={{$each}};{{end}}", "0=volume;1=log;"),
        ("{{range $key, $value := .Labels}}{{$key}}={{$value}}{{end}}", "tier=one"),
        ("{{range .Types}}{{println .}}{{end}}", "volume\nlog\n"),
        ("{{range .Types}}{{$.ID}}{{end}}", "abcabc"),
        ("{{if .Enabled}}on{{else}}off{{end}}", "on"),
        ("{{if .Nothing}}a{{else if .Enabled}}b{{else}}c{{end}}", "b"),
        ("{{with .Labels}}{{.tier}}{{end}}", "one"),
        ("{{.Labels.absent}}|", "|"),
        ("{{index .Labels `tier`}}{{index .Types 1}}", "onelog"),
        ('{{join .Types ", " | upper}}', "VOLUME, LOG"),
        ('{{printf "%s/%d %v" .ID .Count .Enabled}}', "abc/3 true"),
        ('{{if and .Enabled (eq .ID "x" "abc")}}yes{{end}}', "yes"),
        ("{{len .Types}} {{not .Enabled}} {{gt .Count 2}}", "2 false true"),
        ("{{truncate .Name 3}} {{title .ID}} {{slice .ID 1 2}}", "vol Abc b"),
        ("a {{- .ID -}} b{{/* a comment */}}", "aabcb"),
        ('{{$x := .ID}}{{$x}}{{"}}"}}', "abc}}"),
    ],
)
def test_h01_a_template_is_gos(template: str, shown: str) -> None:
    assert Template(template).execute(DOCUMENT) == shown


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{{.Nme}}", r"there is no field \.Nme; did you mean \.Name\?"),
        ("{{.Xyzzy}}", r"there is no field \.Xyzzy; there are \.ID, \.Name"),
        ("{{.ID.More}}", "can't evaluate field More in abc"),
        ("{{jsn .}}", r"function 'jsn' is not defined; did you mean json\?"),
        ("{{.ID", r"unclosed action: \{\{\.ID"),
        ("{{if .ID}}x", r"\{\{if \.ID\}\} has no \{\{end\}\}"),
        ("{{end}}", r"\{\{end\}\} without a block"),
        ("{{}}", "it is empty"),
        ("{{.ID .Name}}", "a value is no function"),
        ("{{range .ID}}{{end}}", "range can't iterate over abc"),
        ("{{upper .Types}}", r"cannot call upper with \[volume log\]"),
        ("{{$y}}", r"undefined variable \$y"),
        ("{{(.ID}}", "unclosed parenthesis"),
        ("{{.ID ? 1}}", r"unexpected '\? 1'"),
    ],
)
def test_h01_what_is_no_template_is_refused_with_the_reason(template: str, cause: str) -> None:
    with pytest.raises(errors.Invalid, match=f"cannot use --format: .*{cause}"):
        Template(template).execute(DOCUMENT)


@given(st.text(alphabet='{}.$|()"`- \\abIDif end range := json', max_size=40))
def test_h01_any_text_is_a_template_or_is_refused(text: str) -> None:
    with suppress(errors.Invalid):
        Template(text).execute(DOCUMENT)


def test_h02_of_one_filter_any_value_may_match_and_of_several_all_must() -> None:
    tests = {"name": name_matches("vol:latest"), "state": lambda value: value == "ready"}
    assert matches(parse_filters(["name=vol", "name=nothing"], ("name", "state")), tests)
    assert matches(parse_filters(["name=^v.l", "state=ready"], ("name", "state")), tests)
    assert not matches(parse_filters(["name=vol", "state=failed"], ("name", "state")), tests)
    assert not matches({"name": ["("]}, tests)
    assert (parse_flag("enabled", "TRUE"), parse_flag("enabled", "0")) == (True, False)
    for texts, cause in ((["stat=x"], r"unknown key stat; did you mean state\?"), (["name"], "it is not KEY=VALUE")):
        with pytest.raises(errors.Invalid, match=cause):
            parse_filters(texts, ("name", "state"))
    with pytest.raises(errors.Invalid, match="give true or false"):
        parse_flag("enabled", "perhaps")


@given(st.lists(st.tuples(st.integers(2, 16), st.integers(0, 120)), min_size=1, max_size=10), st.integers(4, 250))
def test_h04_columns_fit_and_none_is_wider_than_it_needs(columns: list[tuple[int, int]], room: int) -> None:
    heads = [head for head, _ in columns]
    widths = [max(head, more) for head, more in columns]
    found = fit_columns(heads, widths, room, 2)
    shown = [each for each in found if each]
    assert sum(shown) + 2 * (len(shown) - 1) <= room
    assert all(min(width, 2) <= each <= width or each == 0 for each, width in zip(found, widths, strict=True))
    if sum(widths) + 2 * (len(widths) - 1) <= room:
        assert found == widths


@given(st.text(max_size=30), st.integers(1, 40))
def test_h04_a_text_is_cut_with_an_ellipsis_where_it_is_too_wide(text: str, width: int) -> None:
    shown = cut(text, width)
    assert cell_width(shown) <= width
    assert shown == text or shown.endswith("…")


def test_h04_wide_characters_take_two_cells_and_accents_none() -> None:
    assert (cell_width("日本"), cell_width("e\u0301"), cut("日本語", 4)) == (4, 1, "日…")
