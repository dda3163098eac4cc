"""The gate's outcome, as people and programs read it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from evaluate.results.gate import EXIT_CODES, Finding, Outcome, Verdict
from evaluate.results.records import Records
from prompts.io import files


def exit_code(outcome: Outcome, inconclusive: Verdict) -> int:
    """inconclusive: what an inconclusive run counts as (pass, regressed, or itself)."""
    return EXIT_CODES[inconclusive if outcome.verdict == Verdict.INCONCLUSIVE else outcome.verdict]


def write_json(path: Path, outcome: Outcome, current: Records, baseline: Records, code: int) -> None:
    """Write all of it."""
    content: dict[str, Any] = {
        "verdict": outcome.verdict,
        "exit_code": code,
        "reason": outcome.reason,
        "suite": baseline.meta["suite"],
        "suite_sha256": baseline.meta["suite_sha256"],
        "current": current.meta["model"],
        "baseline": baseline.meta["model"],
        "prompts": outcome.n,
        "alpha": outcome.alpha,
        "metrics": [asdict(finding) for finding in outcome.findings],
        "notes": outcome.notes,
    }
    files.write_json(path, content)


def write_junit(path: Path, outcome: Outcome, current: Records, inconclusive: Verdict) -> None:
    """Write a JUnit test suite with one case per metric; inconclusive ones are skipped, or failures where that is
    what they count as, and what was not judged is skipped.
    """
    cases: list[tuple[str, Verdict | None, str]]
    cases = [(finding.metric, finding.verdict, tell(finding)) for finding in outcome.findings]
    cases = cases or [("records", outcome.verdict, outcome.reason)]
    cases += [(note.partition(" is not judged")[0], None, note) for note in outcome.notes]
    tags: dict[Verdict | None, str] = {
        None: "skipped",
        Verdict.REGRESSED: "failure",
        Verdict.INCOMPLETE: "error",
        Verdict.INCONCLUSIVE: "failure" if inconclusive == Verdict.REGRESSED else "skipped",
    }
    tag_of_case = [tags.get(verdict) for _, verdict, _ in cases]
    counts = {
        f"{tag}s" if tag != "skipped" else tag: str(tag_of_case.count(tag)) for tag in ("failure", "error", "skipped")
    }
    suite = ElementTree.Element("testsuite", {"name": "evaluate check", "tests": str(len(cases)), **counts})
    for (name, _, message), tag in zip(cases, tag_of_case, strict=True):
        case = ElementTree.SubElement(suite, "testcase", classname=current.meta["suite"], name=name)
        if tag:
            ElementTree.SubElement(case, tag, message=message)
    files.replace(
        path, lambda draft: ElementTree.ElementTree(suite).write(draft, encoding="utf-8", xml_declaration=True)
    )


def tell(finding: Finding) -> str:
    """One metric in a sentence."""
    return (
        f"{finding.verdict}: {finding.baseline:.4f} -> {finding.current:.4f}, difference {finding.difference:+.4f} "
        f"[{finding.low:+.4f}, {finding.high:+.4f}], margin {finding.margin:.4f}"
    )


def show(outcome: Outcome, current: Records, baseline: Records) -> None:
    """Print the table and the verdict."""
    from rich.table import Table

    from evaluate.console import printer

    console = printer()
    if outcome.findings:
        table = Table(
            title=f"{current.meta['model']} against {baseline.meta['model']} on {baseline.meta['suite']}, {outcome.n:,}"
            " prompts",
            caption=(
                f"difference with its one-sided bounds at {outcome.alpha:g}; p adjusted for {len(outcome.findings)}"
                " metrics (Holm)"
            ),
        )
        for column in ("metric", "baseline", "run", "difference", "margin", "p (drop)", "detectable", "verdict"):
            table.add_column(column, justify="left" if column in ("metric", "verdict") else "right")
        for f in outcome.findings:
            interval = f"{f.difference:+.4f} [{f.low:+.4f}, {f.high:+.4f}]"
            numbers = (
                f"{f.baseline:.4f}",
                f"{f.current:.4f}",
                interval,
                f"{f.margin:.4f}",
                f"{f.p_drop:.4f}",
                f"{f.detectable:.4f}",
            )
            table.add_row(f.metric, *numbers, f.verdict)
        console.print(table)
    for note in (*filter(None, (finding.note for finding in outcome.findings)), *outcome.notes):
        console.print(note)
    console.print(outcome.reason)
