"""What a report opens with: whether each stage works, over all and class by class."""

from __future__ import annotations

from typing import Any

from cim.evaluation.verdicts import Verdict, load_verdicts, worst
from cim.report.numbers import Absent, Source


def verdicts(source: Source) -> dict[str, Any]:
    """The worst level, one line a stage, and a table of the classes that any stage has something to say of."""
    found = load_verdicts(source.run / "verdicts.json")
    if not found:
        raise Absent("no stage has been judged yet", "cim run, or cim prm, cim labels and cim score --split train")
    names = sorted({name for verdict in found.values() for name in verdict.classes})
    table = [(name, [_cell(verdict.classes.get(name)) for verdict in found.values()]) for name in names]
    return {
        "level": worst([verdict.level for verdict in found.values()]),
        "stages": [(stage, verdict.level, verdict.reason, verdict.advice) for stage, verdict in found.items()],
        "columns": list(found),
        "classes": sorted(table, key=lambda line: -max(_RANK[level] for level, _ in line[1])),
    }


_RANK = {"": -1, "fine": 0, "doubtful": 1, "failed": 2}


def _cell(verdict: Verdict | None) -> tuple[str, str]:
    return ("", "") if verdict is None else (verdict.level, verdict.reason)
