"""Cells whose questions ended in errors, told once for all cells of a benchmark that have the same causes."""

import json
from collections import defaultdict
from collections.abc import Sequence

from experiments.grid import Cell
from pipelines.engine import Artifact, Store

MOST_CAUSES = 3


def incomplete_lines(cells: Sequence[Cell], store: Store) -> list[str]:
    """What to tell of cells that are done and lack answers; nothing, if none does.

    A damaged video is missing in every trial, context and scale rule that asks of it.
    """
    stages = {cell.stage.fingerprint: cell.stage for cell in cells}
    artifacts = {key: artifact for key, stage in stages.items() if (artifact := store.get(stage))}
    causes = {key: _causes(artifact) for key, artifact in artifacts.items()}
    alike: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in cells:
        if of_cell := causes.get(cell.stage.fingerprint, {}).get(cell.context):
            alike.setdefault((cell.benchmark, tuple(sorted(of_cell))), []).append(cell)
    told = []
    for (benchmark, found), those in alike.items():
        first, others = those[0], len(those) - 1
        artifact = artifacts[first.stage.fingerprint]
        errors = artifact.result["contexts"][str(first.context)]["errors"]
        beside = f", and some of {others} more cells of {benchmark} for the same causes" if others else ""
        questions = "1 question" if errors == 1 else f"{errors} questions"
        told.append(f"incomplete {first.id}: {questions} ended in an error{beside}:")
        told += [f"  {cause}" for cause in found[:MOST_CAUSES]]
        if len(found) > MOST_CAUSES:
            told.append(f"  and {len(found) - MOST_CAUSES} more causes, all in {artifact.path / 'questions.jsonl'}")
    return told


def _causes(artifact: Artifact) -> dict[int, set[str]]:
    """Why questions have no answer, by context."""
    causes: dict[int, set[str]] = defaultdict(set)
    if any(found["errors"] for found in artifact.result["contexts"].values()):
        for line in map(json.loads, (artifact.path / "questions.jsonl").read_text(encoding="utf-8").splitlines()):
            if line["error"]:
                causes[line["context"]].add(line["error"])
    return causes
