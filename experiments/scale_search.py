"""The scale search stage: Optuna picks one trial's inference scale on validation questions, never on test questions.

Points are asked for in batches, measured (as Ray tasks where there are workers for them) and told in the order of
asking. So the choice depends on the seed and the batch size, and not on how many points were measured at once or on
kills.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.config import ScaleRange
from experiments.scale_points import Answering, Reference, key_of, measure, summary
from pipelines.asked import Asked
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.engine import Artifact, Resources, Stage, StageConfig, encode, fingerprint
from pipelines.evaluators import open_split

OBJECTIVE = "mean accuracy over validation questions, every context and kind weighted alike"
RANDOM_POINTS = 5  # of a range, before TPE has enough to go by


@dataclass(frozen=True)
class SearchIdentity:
    """`batch`: points asked for at once, each knowing the answers of the batches before it.

    `prune_p`: a point whose answers are worse than the best point's to the same questions, with this p, is left
    unfinished; None asks every question of every point.
    """

    benchmark: Asked | ChoiceBenchmark
    contexts: tuple[int, ...]
    scales: tuple[float, ...] | ScaleRange
    seed: int
    batch: int = 1
    prune_p: float | None = None

    @property
    def num_points(self) -> int:
        return self.scales.trials if isinstance(self.scales, ScaleRange) else len(self.scales)


@dataclass(frozen=True)
class SearchPlacement:
    """`num_workers` points are measured at once, each on `gpus_per_worker`; `storage_url`: an RDB for Optuna instead of
    the stage's journal; `chunk_tokens` as in EvaluatePlacement."""

    chunk_tokens: int
    num_workers: int = 1
    storage_url: str | None = None
    gpus_per_worker: int = 0


def search_stage(
    identity: SearchIdentity,
    placement: SearchPlacement,
    inputs: Mapping[str, Stage],
    *,
    group: str,
) -> Stage:
    """`inputs`: what the benchmark's evaluation of the trial rests on."""
    return Stage(
        name="scale_search",
        code_version=4,
        run=run,
        config=StageConfig(identity, placement),
        inputs=inputs,
        # Where tasks measure, they hold the CPUs; the one that drives them must not.
        resources=Resources(num_cpus=0) if placement.num_workers > 1 else Resources(num_gpus=placement.gpus_per_worker),
        label=f"scale search {group}",
        resumable=True,
        process_group=group,
        work_units=sum(identity.contexts) * identity.num_points,
    )


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Try the scales; write `journal.log` (Optuna's storage), `answers/` and `scale_search.json` (the curve).

    Of scales with equal objective the one nearest to 1 wins (on a log axis), then the smaller.
    """
    identity: SearchIdentity = config.identity
    placement: SearchPlacement = config.placement
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made_of = {name: artifact.fingerprint for name, artifact in sorted(inputs.items())}
    study = optuna.create_study(
        study_name=fingerprint(encode([identity, made_of])),
        storage=_storage(placement, out_dir),
        direction="maximize",
        load_if_exists=True,
    )
    _fail_open_trials(study)
    (out_dir / "answers").mkdir(exist_ok=True)
    while batch := _ask_batch(study, identity):
        reference = _reference(study) if identity.prune_p is not None else None
        found = _measure_batch(config, inputs, out_dir, batch, reference)
        for trial, (lines, pruned) in zip(batch, found, strict=True):
            if identity.prune_p is not None:
                trial.set_user_attr("answers", [[*key_of(line), line["video"], line["correct"]] for line in lines])
            _tell(study, trial, lines, pruned)
    points = sorted((trial.user_attrs["point"] for trial in _ended(study)), key=lambda point: point["scale"])
    chosen = _best(study).user_attrs["point"]
    curve = {"chosen": chosen["scale"], "objective": OBJECTIVE, "points": points}
    (out_dir / "scale_search.json").write_text(json.dumps(curve, indent=1), encoding="utf-8")
    return {
        "chosen": chosen["scale"],
        "accuracy": chosen["accuracy"],
        "scales": len(points),
        "pruned": sum(point["state"] == "pruned" for point in points),
        "questions": chosen["questions"],
        "questions_asked": sum(point["questions"] for point in points),
    }


def _storage(placement: SearchPlacement, out_dir: Path) -> BaseStorage:
    if placement.storage_url:
        return RDBStorage(placement.storage_url)
    return JournalStorage(JournalFileBackend(str(out_dir / "journal.log")))


def _fail_open_trials(study: optuna.Study) -> None:
    """Tell what a killed attempt left as failed; its points are asked for again."""
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for stale in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(stale.number, state=TrialState.FAIL)


def _ask_batch(study: optuna.Study, identity: SearchIdentity) -> list[Trial]:
    """The trials of the first batch with points that have not ended; none when every point has."""
    ended = {trial.user_attrs["index"] for trial in _ended(study)}
    missing = [index for index in range(identity.num_points) if index not in ended]
    # Where no point depends on another, all are one batch.
    alone = identity.prune_p is None and not isinstance(identity.scales, ScaleRange)
    size = identity.num_points if alone else identity.batch
    return [_ask(study, identity, index) for index in missing if index // size == missing[0] // size]


def _ask(study: optuna.Study, identity: SearchIdentity, index: int) -> Trial:
    """Ask for a point, with the value that it had if a killed attempt asked for it before.

    The sampler's seed depends on the index, so that a restarted search asks what an uninterrupted one would.
    """
    asked = [t.params for t in study.get_trials(deepcopy=False) if t.user_attrs.get("index") == index]
    study.sampler = _sampler(identity, index)
    if asked:
        study.enqueue_trial(asked[0])
    elif not isinstance(identity.scales, ScaleRange):
        study.enqueue_trial({"scale": in_order(identity.scales)[index]})
    trial = study.ask({"scale": _distribution(identity.scales)})
    trial.set_user_attr("index", index)
    return trial


def in_order(scales: Sequence[float]) -> list[float]:
    """Nearest to 1 first: the likely best is then the one that others are pruned against."""
    return sorted(scales, key=lambda scale: (abs(math.log(scale)), scale))


def _sampler(identity: SearchIdentity, index: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([identity.seed, index]).generate_state(1)[0])
    if index < RANDOM_POINTS:
        return RandomSampler(seed=seed)
    # Points of one batch do not know each other's answers: the liar keeps them apart.
    return TPESampler(seed=seed, n_startup_trials=RANDOM_POINTS, constant_liar=identity.batch > 1)


def _distribution(scales: tuple[float, ...] | ScaleRange) -> BaseDistribution:
    if isinstance(scales, ScaleRange):
        return FloatDistribution(scales.low, scales.high, log=scales.log)
    return CategoricalDistribution(scales)


def _measure_batch(
    config: StageConfig,
    inputs: Mapping[str, Artifact],
    out_dir: Path,
    batch: Sequence[Trial],
    reference: Reference | None,
) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """The answers of each point, in the order of the batch; over Ray where it is up and several may be measured."""
    points = [
        (trial.params["scale"], out_dir / "answers" / f"{trial.user_attrs['index']:03d}.jsonl") for trial in batch
    ]
    num_workers = config.placement.num_workers
    if num_workers > 1 and "ray" in sys.modules and sys.modules["ray"].is_initialized():
        import ray

        task = ray.remote(num_cpus=1, num_gpus=config.placement.gpus_per_worker)(measure_point)
        refs: list[Any] = []
        for scale, path in points:
            if len(refs) >= num_workers:
                ray.wait(refs, num_returns=len(refs) - num_workers + 1)
            refs.append(task.remote(config, inputs, scale, path, reference))
        yield from map(ray.get, refs)
    else:
        evaluator = open_evaluator(config, inputs)
        for scale, path in points:
            yield measure_point(config, inputs, scale, path, reference, evaluator)


def open_evaluator(config: StageConfig, inputs: Mapping[str, Artifact]) -> Answering:
    """The checkpoint on the validation questions, the only ones that the search may see."""
    chunk_tokens = config.placement.chunk_tokens
    return open_split(inputs, config.identity.benchmark, split="validation", chunk_tokens=chunk_tokens)


def measure_point(
    config: StageConfig,
    inputs: Mapping[str, Artifact],
    scale: float,
    path: Path,
    reference: Reference | None,
    evaluator: Answering | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    identity: SearchIdentity = config.identity
    evaluator = evaluator or open_evaluator(config, inputs)
    return measure(evaluator, identity.contexts, scale, path, reference=reference, prune_p=identity.prune_p)


def _tell(study: optuna.Study, trial: Trial, lines: Sequence[Mapping[str, Any]], pruned: bool) -> None:
    point = summary(trial.params["scale"], lines, pruned)
    trial.set_user_attr("point", point)
    trial.report(point["accuracy"], point["questions"])
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, point["accuracy"])


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _best(study: optuna.Study) -> FrozenTrial:
    def rank(trial: FrozenTrial) -> tuple[float, float, float]:
        scale = trial.params["scale"]
        return trial.user_attrs["point"]["accuracy"], -abs(math.log(scale)), -scale

    return max(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=rank)


def _reference(study: optuna.Study) -> Reference | None:
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    return {(at, name): (video, correct) for at, name, video, correct in _best(study).user_attrs["answers"]}
