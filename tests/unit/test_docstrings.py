"""Docstrings become valid reStructuredText, whatever is in them."""

from _docstrings import to_rst


def rst(text: str) -> str:
    return "\n".join(to_rst(text.splitlines())).strip()


def test_paragraphs_stay_and_literals_are_literal() -> None:
    assert rst("One ``x_y``.\nThe same.\n\nTwo.") == "One ``x_y``. The same.\n\nTwo."


def test_what_would_be_markup_is_escaped() -> None:
    assert rst("*args of a_ and |b| and `c`") == r"\*args of a\_ and \|b\| and \`c\`"


def test_each_label_is_a_paragraph_with_its_continuation() -> None:
    text = "What it does.\nRaises: NotFound: there is\n    none.\nRaises: Unavailable: no answer.\nSource: a file."
    assert rst(text).split("\n\n") == [
        "What it does.",
        "**Raises:** ``NotFound``: there is none.",
        "**Raises:** ``Unavailable``: no answer.",
        "**Source:** a file.",
    ]


def test_a_label_may_be_followed_by_indented_names() -> None:
    text = "Raises:\n    NotFound: no plugin\n        of this name.\n    Conflict: it runs."
    assert rst(text) == "**Raises:**\n\n- ``NotFound``: no plugin of this name.\n- ``Conflict``: it runs."


def test_an_indented_block_is_code_or_a_list_of_names() -> None:
    assert rst("So:\n\n    with a as b:\n        print(b)") == "So:\n\n::\n\n   with a as b:\n       print(b)"
    assert (
        rst("Names:\n\n    Client: calls.\n    connect: a client.")
        == "Names:\n\n- ``Client``: calls.\n- ``connect``: a client."
    )


def test_a_list_with_hyphens_stays_a_list() -> None:
    assert rst("Two:\n- one of\n  them\n- other") == "Two:\n\n- one of them\n\n- other"
