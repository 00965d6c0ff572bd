"""The form for the token."""

from moorage.ui.markup import el
from moorage.ui.pages.layout import document

__all__ = ("login_page",)


def login_page(problem: str = "") -> str:
    """The form; ``problem`` says why the last token was not taken. ``static/page.js`` fills in the one of a link."""
    form = el(
        "form",
        {"method": "post", "action": "/login", "id": "login"},
        el("label", {"for": "token"}, "Token"),
        el(
            "input",
            {
                "id": "token",
                "name": "token",
                "type": "password",
                "autocomplete": "off",
                "required": True,
                "aria-describedby": "help",
                "aria-invalid": "true" if problem else None,
            },
        ),
        el("button", {"class": "main"}, "Sign in"),
    )
    where = (
        "It was printed when the page was started: by moorage ui, or for a service into the file that its log names."
    )
    return document(
        "Sign in",
        el(
            "main",
            {"id": "main", "class": "narrow"},
            el("h1", {}, "Moorage"),
            el("p", {"id": "help"}, where),
            el("p", {"role": "alert", "class": "bad"}, problem) if problem else None,
            form,
        ),
    )
