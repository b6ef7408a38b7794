"""The scale search stage: Optuna picks one trial's inference scale on validation questions, never on test questions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pipelines.benchmarks.needles import NeedleBenchmark
from pipelines.engine import Artifact, Stage, StageConfig
from pipelines.evaluate import Evaluator

OBJECTIVE = "mean accuracy over validation questions, every context and kind weighted alike"


@dataclass(frozen=True)
class SearchIdentity:
    benchmark: NeedleBenchmark
    contexts: tuple[int, ...]
    scales: tuple[float, ...]
    seed: int


def search_stage(identity: SearchIdentity, *, checkpoint: Stage, features: Stage, dataset: Stage, group: str) -> Stage:
    return Stage(
        name="scale_search",
        code_version=1,
        run=run,
        config=StageConfig(identity),
        inputs={"checkpoint": checkpoint, "features": features, "dataset": dataset},
        label=f"scale search {group}",
        resumable=True,
        process_group=group,
        work_units=sum(identity.contexts) * len(identity.scales),
    )


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Try every scale of the list; write `journal.log` (Optuna's storage) and `scale_search.json`.

    Of scales with equal objective the one nearest to 1 wins (on a log axis), then the smaller.
    """
    identity: SearchIdentity = config.identity
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="scale",
        storage=JournalStorage(JournalFileBackend(str(out_dir / "journal.log"))),
        sampler=optuna.samplers.RandomSampler(seed=identity.seed),
        direction="maximize",
        load_if_exists=True,
    )
    for stale in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(stale.number, state=TrialState.FAIL)  # a killed attempt left it; its scale is asked for again
    evaluator = Evaluator(inputs, identity.benchmark, split="validation")
    tried = {trial.params["scale"] for trial in study.get_trials(states=(TrialState.COMPLETE,))}
    for scale in identity.scales:
        if scale in tried:
            continue
        study.enqueue_trial({"scale": scale})
        trial = study.ask({"scale": optuna.distributions.CategoricalDistribution(identity.scales)})
        point = _measure(evaluator, identity.contexts, scale)
        trial.set_user_attr("point", point)
        study.tell(trial, point["accuracy"])
    done = study.get_trials(states=(TrialState.COMPLETE,))
    points = sorted((trial.user_attrs["point"] for trial in done), key=lambda point: point["scale"])
    best = max(points, key=lambda point: (point["accuracy"], -abs(math.log(point["scale"])), -point["scale"]))
    found = {"chosen": best["scale"], "objective": OBJECTIVE, "points": points}
    (out_dir / "scale_search.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return {
        "chosen": best["scale"],
        "accuracy": best["accuracy"],
        "scales": len(points),
        "questions": best["questions"],
    }


def _measure(evaluator: Evaluator, contexts: Sequence[int], scale: float) -> dict[str, Any]:
    """One point of the scale-response curve."""
    lines = [line for context in contexts for line in evaluator.answers(context, scale)]

    def accuracies(field: str) -> dict[str, float]:
        groups: dict[str, list[bool]] = {}
        for line in lines:
            groups.setdefault(str(line[field]), []).append(line["correct"])
        return {key: sum(group) / len(group) for key, group in groups.items()}

    correct = sum(line["correct"] for line in lines)
    return {
        "scale": scale,
        "accuracy": correct / len(lines),
        "questions": len(lines),
        "correct": correct,
        "state": "complete",
        "per_kind": accuracies("kind"),
        "per_context": accuracies("context"),
    }
