"""One point of a scale search: a checkpoint at one scale, pruned against the best point so far."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import WilcoxonPruner
from optuna.trial import create_trial

from pipelines.question_lines import append_lines, whole_lines

QUESTIONS_PER_ROUND = 20
Key = tuple[int, str]  # context and question id
Reference = Mapping[Key, tuple[str, bool]]  # the best point's (video, correct)


class Answering(Protocol):
    """What a benchmark's evaluator offers: one record per question of a context at a scale, but for those to skip."""

    def answers(
        self, context: int, scale: float | None, *, skip: frozenset[str] = frozenset()
    ) -> Iterator[dict[str, Any]]: ...


def measure(
    evaluator: Answering,
    contexts: Sequence[int],
    scale: float,
    path: Path,
    *,
    reference: Reference | None = None,
    prune_p: float | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """Ask every question, each answer a line of `path`, and return the lines and whether the point was pruned.

    With a reference, questions come in rounds of whole videos, every context and kind of a video together; after each,
    Optuna's WilcoxonPruner compares the answers so far with the reference's to the same questions. A restart goes on
    after the last line and prunes at the same question.
    """
    lines = {key_of(line): line for line in whole_lines(path)}
    pruned = False
    for later in _questions_of_later_rounds(reference or {}):
        for context in contexts:
            skip = frozenset(question for at, question in {*lines, *later} if at == context)
            for line in append_lines(path, evaluator.answers(context, scale, skip=skip)):
                lines[key_of(line)] = line
        if later and reference and prune_p is not None and _is_worse(lines, reference, later, prune_p):
            pruned = True
            lines = {key: line for key, line in lines.items() if key not in later}
            break
    return list(lines.values()), pruned


def key_of(line: Mapping[str, Any]) -> Key:
    return line["context"], line["id"]


def summary(scale: float, lines: Sequence[Mapping[str, Any]], pruned: bool) -> dict[str, Any]:
    """One point of the scale-response curve; `low` and `high` are Wilson's 95 % interval of the accuracy."""

    def accuracies(field: str) -> dict[str, float]:
        groups: dict[str, list[bool]] = {}
        for line in lines:
            groups.setdefault(str(line[field]), []).append(line["correct"])
        return {key: sum(group) / len(group) for key, group in sorted(groups.items())}

    correct = sum(line["correct"] for line in lines)
    from scipy.stats import binomtest  # here, as a search is planned without it, and it takes most of a second

    interval = binomtest(correct, len(lines)).proportion_ci(method="wilson")
    return {
        "scale": scale,
        "accuracy": correct / len(lines),
        "low": float(interval.low),
        "high": float(interval.high),
        "questions": len(lines),
        "correct": correct,
        "state": "pruned" if pruned else "complete",
        "per_kind": accuracies("kind"),
        "per_context": accuracies("context"),
    }


def _questions_of_later_rounds(reference: Reference) -> Iterator[set[Key]]:
    """For each round the questions that are not yet its turn. Videos go in an order of their own, not by depth."""
    by_video: dict[str, set[Key]] = {}
    for key, (video, _) in reference.items():
        by_video.setdefault(video, set()).add(key)
    later, asked = set(reference), 0
    for video in sorted(by_video, key=lambda name: hashlib.sha256(name.encode()).digest()):
        later = later - by_video[video]
        asked += len(by_video[video])
        if asked >= QUESTIONS_PER_ROUND and later:
            yield later
            asked = 0
    yield set()


def _is_worse(
    lines: Mapping[Key, Mapping[str, Any]], reference: Reference, later: set[Key], p_threshold: float
) -> bool:
    """Whether the pruner would stop here: a study of two trials, one step per question in the reference's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        pruner = WilcoxonPruner(p_threshold=p_threshold, n_startup_steps=QUESTIONS_PER_ROUND)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    best = {step: float(correct) for step, (_, correct) in enumerate(reference.values())}
    study.add_trial(create_trial(value=sum(best.values()) / len(best), intermediate_values=best))
    trial = study.ask()
    for step, key in enumerate(reference):
        if key not in later:
            trial.report(float(lines[key]["correct"]), step)
    return trial.should_prune()
