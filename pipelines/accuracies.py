"""A cell's numbers from its lines of `questions.jsonl`.

An error row counts as not correct, as an unparsed answer does, and both are counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.benchmarks.choice import ChoiceBenchmark

Lines = Sequence[Mapping[str, Any]]


def summary(lines: Lines) -> dict[str, Any]:
    """What every benchmark's cell has."""
    return {
        "questions": len(lines),
        "errors": sum(line["error"] is not None for line in lines),
        "unparsed": sum(line.get("unparsed", False) for line in lines),
        "accuracy": mean(lines),
        "kinds": _by(lines, "correct", [line["kind"] for line in lines]),
        "duration_s": round(sum(line["duration_s"] for line in lines), 3),
    }


def choice_summary(lines: Lines, benchmark: ChoiceBenchmark) -> dict[str, Any]:
    """`accuracy` is by the benchmark's scoring; the means by our rule and by the published one stand beside it."""
    names = sorted({name for line in lines for name in line["groups"]})
    published = benchmark.published.mean == "macro"
    micro, macro = mean(lines), _macro(lines, "correct")
    return summary(lines) | {
        "accuracy": macro if published and benchmark.scoring == "published" else micro,
        "groups": {name: _by(lines, "correct", [line["groups"][name] for line in lines]) for name in names},
        "means": {
            "micro": micro,
            "macro": macro,
            "published": (_macro if published else mean)(lines, "published_correct"),
        },
    }


def mean(lines: Lines, field: str = "correct") -> float:
    """The share of lines in which a field is true."""
    return sum(line[field] for line in lines) / len(lines)


def _macro(lines: Lines, field: str) -> float:
    means = _by(lines, field, [line["kind"] for line in lines])
    return sum(means.values()) / len(means)


def _by(lines: Lines, field: str, keys: Sequence[str]) -> dict[str, float]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for key, line in zip(keys, lines, strict=True):
        groups.setdefault(key, []).append(line)
    return {key: mean(groups[key], field) for key in sorted(groups)}
