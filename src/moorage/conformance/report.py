"""The results as text, and as JUnit's XML for continuous integration."""

from collections.abc import Sequence
from xml.etree import ElementTree

from moorage.conformance.suite import CheckResult

__all__ = ("junit_xml", "result_line", "summary")

_MARKS = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}
_UNPRINTABLE = {number: "?" for number in range(32) if number not in (9, 10)}  # which XML 1.0 does not allow


def result_line(result: CheckResult) -> str:
    """One line for a check, and its reason in a second one."""
    line = f"{_MARKS[result.outcome]}  {result.id}  {result.title}"
    return f"{line}\n           {result.text}" if result.text else line


def summary(results: Sequence[CheckResult]) -> str:
    """How many checks passed, failed and were skipped."""
    counts = [f"{sum(each.outcome == name for each in results)} {name}" for name in ("passed", "failed", "skipped")]
    return f"{len(results)} checks: {', '.join(counts)}, in {sum(each.seconds for each in results):.1f} s"


def junit_xml(name: str, results: Sequence[CheckResult]) -> bytes:
    """The results as a test suite of this name."""
    failures = sum(each.outcome == "failed" for each in results)
    skipped = sum(each.outcome == "skipped" for each in results)
    suite = ElementTree.Element(
        "testsuite",
        name=name,
        tests=str(len(results)),
        failures=str(failures),
        errors="0",
        skipped=str(skipped),
        time=f"{sum(each.seconds for each in results):.3f}",
    )
    for each in results:
        title = f"{each.id} {each.title}"
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"{name}.{each.kind}", name=title, time=f"{each.seconds:.3f}"
        )
        if each.outcome != "passed":
            text = each.text.translate(_UNPRINTABLE)
            ElementTree.SubElement(case, "failure" if each.outcome == "failed" else "skipped", message=text)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
