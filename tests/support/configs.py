"""Configs of plugins for tests."""

import json
from typing import Any

from moorage.plugins import Config, parse_config


def parsed(**fields: Any) -> Config:
    """The smallest config, with these fields."""
    minimal = {"entrypoint": ["/p"], "interface": {"socket": "p.sock"}}
    return parse_config(json.dumps(minimal | fields).encode()).config
