"""All targets, by name."""

from fuzz import answers, api, documents, packages, registries, signatures
from fuzz.harness import Target

__all__ = ("TARGETS",)

TARGETS: dict[str, Target] = {
    each.name: each for module in (documents, packages, registries, signatures, api, answers) for each in module.TARGETS
}
