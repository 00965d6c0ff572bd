"""Templates of ``moorage volume``, in the part of Go's syntax that users write."""

import re
from typing import Any

import pytest

from moorage import errors
from moorage.cli.volumes.template import parse_template

pytestmark = pytest.mark.quick

VOLUME: dict[str, Any] = {
    "Name": "data",
    "Driver": "d:1",
    "Mountpoint": "",
    "Status": {"size": 7, "on": True},
    "Mounts": [],
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{.Name}}", "data"),
        ("{{ .Name }}", "data"),
        ("{{- .Name -}}", "data"),
        ("{{.Name}}: {{.Driver}}!", "data: d:1!"),
        (r"{{.Name}}\t{{.Driver}}\n", "data\td:1\n"),
        ("{{.Status.size}} {{.Status.on}}", "7 true"),
        ("{{json .Status}}", '{"size": 7, "on": true}'),
        ("{{json .Name}}", '"data"'),
        ("{{.Mounts}}", "[]"),
        (
            "json",
            '{"Name": "data", "Driver": "d:1", "Mountpoint": "", "Status": {"size": 7, "on": true}, "Mounts": []}',
        ),
        ("plain", "plain"),
    ],
)
def test_v01_a_template_shows_fields_as_docker_does(text: str, shown: str) -> None:
    assert parse_template(text).render(VOLUME) == shown


def test_v01_a_table_has_the_names_of_its_fields_as_head() -> None:
    form = parse_template(r"table {{.Name}}\t{{.Mountpoint}}\t{{.Status.size}}")
    assert form.is_table
    assert form.heads == ["NAME", "MOUNTPOINT", "SIZE"]
    assert form.row(VOLUME) == ["data", "", "7"]
    assert parse_template("table {{.CreatedAt}}").heads == ["CREATED AT"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{range .Mounts}}", "{{range .Mounts}} is not supported"),
        ("{{Name}}", "is not supported"),
        ("{{.Name", "is not closed"),
        ("{{.Name | upper}}", "is not supported"),
    ],
)
def test_v01_a_template_that_is_not_supported_is_refused(text: str, said: str) -> None:
    with pytest.raises(errors.Invalid, match=re.escape(said)):
        parse_template(text)


@pytest.mark.parametrize("text", ["{{.Nope}}", "{{.Name.x}}", "{{json .Status.nope}}"])
def test_v01_an_unknown_field_is_named(text: str) -> None:
    with pytest.raises(errors.Invalid, match="there is no field"):
        parse_template(text).render(VOLUME)
