"""An exposition, read as Prometheus would."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from support.limits import limit

Sample = tuple[str, frozenset[tuple[str, str]]]


def sample(name: str, **labels: str) -> Sample:
    """The key of one series."""
    return name, frozenset(labels.items())


def read(text: str) -> dict[Sample, float]:
    """Series to value."""
    return {
        sample(it.name, **it.labels): it.value
        for family in text_string_to_metric_families(text)
        for it in family.samples
    }


def families(text: str) -> dict[str, tuple[str, set[str]]]:
    """Name to type and labels of every metric that has a series."""
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if family.samples:
            found[name] = family.type, {label for it in family.samples for label in it.labels if label != "le"}
    return found


def fetch(url: str, **headers: str) -> str:
    """What a URL answers."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=limit(30)) as answer:
        return str(answer.read().decode())
