"""Configuration of the documentation site; scripts/docs builds it, scripts/_docs.py lays the pages out."""

import importlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _docs import public_modules
from _docstrings import to_rst

import moorage

project = "Moorage"
author = "The Moorage authors"
copyright = author
release = version = moorage.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["files"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # pages may begin with a level that a table of contents does not know

html_theme = "furo"
html_title = f"Moorage {release}"
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {"footer_icons": []}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
nitpick_ignore_regex = [("py:.*", ".*")]  # annotations also name what is not public; links in pages stay checked


def plain_docstring(_app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Called by Sphinx with each docstring, which it reads as reStructuredText."""
    lines[:] = to_rst(lines)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    for name in public_modules():  # some packages import what they export when it is first used
        module = importlib.import_module(name)
        for each in module.__all__:
            setattr(module, each, getattr(module, each))
    app.connect("autodoc-process-docstring", plain_docstring)
