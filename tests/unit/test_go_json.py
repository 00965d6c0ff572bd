"""JSON errors in Go's words. The expected texts are what Go 1.23's json.NewDecoder(...).Decode says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.api.http.go_json import find_json_error, json_type_error
from moorage.api.http.query import json_body, texts

CASES = [
    ("invalid", "invalid character 'i' looking for beginning of value"),
    ("{invalid json", "invalid character 'i' looking for beginning of object key string"),
    ("[", "unexpected EOF"),
    ('["A', "unexpected EOF"),
    ('{"a"', "unexpected EOF"),
    ('{"a":', "unexpected EOF"),
    ("[1,", "unexpected EOF"),
    ("t", "unexpected EOF"),
    ("-", "unexpected EOF"),
    ("[1,]", "invalid character ']' looking for beginning of value"),
    ('{"a":1,}', "invalid character '}' looking for beginning of object key string"),
    ("[1 2]", "invalid character '2' after array element"),
    ('{"a" 1}', "invalid character '1' after object key"),
    ('{"a":1 "b":2}', "invalid character '\"' after object key:value pair"),
    ("{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
    ("[True]", "invalid character 'T' looking for beginning of value"),
    ("[NaN]", "invalid character 'N' looking for beginning of value"),
    ("[Infinity]", "invalid character 'I' looking for beginning of value"),
    ("[-Infinity]", "invalid character 'I' in numeric literal"),
    ("[trux]", "invalid character 'x' in literal true (expecting 'e')"),
    ("[nul1]", "invalid character '1' in literal null (expecting 'l')"),
    ("[01]", "invalid character '1' after array element"),
    ("[1.]", "invalid character ']' after decimal point in numeric literal"),
    ("[1e+]", "invalid character ']' in exponent of numeric literal"),
    ("[1ex]", "invalid character 'x' in exponent of numeric literal"),
    ('["\t"]', "invalid character '\\t' in string literal"),
    ('["\x01"]', "invalid character '\\x01' in string literal"),
    ('["\\q"]', "invalid character 'q' in string escape code"),
    ('["\\u12x4"]', "invalid character 'x' in \\u hexadecimal character escape"),
    ("\ufeff[]", "invalid character 'ï' looking for beginning of value"),
    ("<html>", "invalid character '<' looking for beginning of value"),
    ("[}", "invalid character '}' looking for beginning of value"),
    ("{]", "invalid character ']' looking for beginning of object key string"),
    ("[[]}", "invalid character '}' after array element"),
    ("[" * 10_001, "exceeded max depth"),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[repr(text)[:30] for text, _ in CASES])
def test_case_253_a_body_is_refused_in_gos_words(text: str, expected: str) -> None:
    assert find_json_error(text) == expected
    with pytest.raises(errors.Invalid, match="invalid JSON: ") as raised:
        json_body(text.encode(), "application/json", has_body=True)
    assert str(raised.value) == f"invalid JSON: {expected}"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(DOCUMENTS, st.sampled_from([None, 1]))
def test_case_253_what_is_valid_has_no_error(document: object, indent: int | None) -> None:
    assert find_json_error(json.dumps(document, indent=indent)) == ""


@given(st.text(alphabet='[]{},:"\\u0123456789truefalsn.eE+- \n', max_size=12))
def test_case_253_the_scanner_and_python_agree_on_what_is_valid(text: str) -> None:
    try:
        json_body(text.encode(), "application/json", has_body=True)
        is_valid = True
    except errors.Invalid as error:
        is_valid = "unexpected content" in str(error) or "surrogate" in str(error)
    assert is_valid is (text.strip() != "" and find_json_error(text) == "")


@pytest.mark.parametrize(
    ("value", "kind"), [("a", "string"), (1, "number"), (1.5, "number"), (True, "bool"), ({}, "object"), ([], "array")]
)
def test_case_253_a_wrong_type_is_named_as_go_names_it(value: object, kind: str) -> None:
    assert json_type_error(value, "[]string") == f"json: cannot unmarshal {kind} into Go value of type []string"


def test_case_253_null_is_an_empty_list_and_an_empty_text() -> None:
    assert (texts(None, ""), texts(["A=b", None], "")) == ([], ["A=b", ""])
    with pytest.raises(errors.Invalid, match="cannot unmarshal number into Go value of type string"):
        texts([1], "a list")
