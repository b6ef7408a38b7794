"""The fine-tune stage: in its own task on one worker, else a driver of Ray Train's workers."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hope_core import Variant
from pipelines.engine import Artifact, Resources, Stage, StageConfig, Workers
from pipelines.finetune.placement import PROGRESS, Placement
from pipelines.finetune.recipe import Recipe
from pipelines.finetune.rows import Rows, Source, make_rows
from pipelines.models import RandomModel
from pipelines.pretrained import PretrainedIdentity, PretrainedModel
from pipelines.video.frames import FrameStore, open_frames

DRAWN = "train.json"  # the records of a drawn data set, in its artifact
WORKER_RESULT = "worker_result.json"


@dataclass(frozen=True)
class FinetuneIdentity:
    variant: Variant
    model: RandomModel | PretrainedIdentity
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class FinetunePlacement:
    """Where a training runs. `source` and `model` are the folders of a data set and a checkpoint that are no artifact.

    With several workers each holds `cpus_per_worker` CPUs and `gpus_per_worker` GPUs, and a group that lost one is
    started again up to `max_failures` times, from the last checkpoint.
    """

    model: RandomModel | PretrainedModel
    source: Source | None = None
    num_workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0
    max_failures: int = 3
    loop: Placement = field(default_factory=Placement)


def finetune_stage(
    variant: Variant,
    model: RandomModel | PretrainedModel,
    recipe: Recipe,
    seed: int,
    *,
    dataset: Stage,
    frames: Stage,
    group: str,
    placement: FinetunePlacement | None = None,
    num_samples: int = 1,
) -> Stage:
    """`num_samples` of the data set, as far as known: it scales durations where the recipe counts epochs."""
    placement = placement or FinetunePlacement(model)
    alone = placement.num_workers == 1
    each = Resources(num_cpus=placement.cpus_per_worker, num_gpus=placement.gpus_per_worker)
    return Stage(
        name="finetune",
        code_version=3,
        run=run,
        config=StageConfig(
            FinetuneIdentity(variant, model.identity if isinstance(model, PretrainedModel) else model, recipe, seed),
            placement,
        ),
        inputs={"dataset": dataset, "frames": frames},
        # Ray Train's workers hold what they need; the task that drives them must not.
        resources=each if alone else Resources(num_cpus=0),
        workers=None if alone else Workers(placement.num_workers, each),
        label=f"finetune {group}",
        resumable=True,
        process_group=group,
        work_units=recipe.batch_size * max(1, recipe.num_steps(num_samples)),
    )


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Train and write `checkpoint/` and `history.jsonl` (a line per step: loss, accuracy over answers, lr, speed)."""
    placement: FinetunePlacement = config.placement
    if placement.num_workers == 1:
        result = train_here(config, inputs, out_dir)
    else:
        result = _train_on_ray(config, inputs, out_dir)
    shutil.rmtree(out_dir / PROGRESS, ignore_errors=True)  # only a restart would need it
    return result


def train_here(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """What each worker runs; the result is of the first one, the others have none."""
    from pipelines.finetune.loop import train  # torch and transformers: seconds that planning a study need not spend

    identity: FinetuneIdentity = config.identity
    placement: FinetunePlacement = config.placement
    frames = open_frames(inputs["frames"].path)
    rows = _rows(placement, identity.recipe, inputs, frames)
    return train(
        placement.model,
        identity.variant,
        identity.recipe,
        identity.seed,
        rows=rows,
        frames=frames,
        placement=placement.loop,
        out_dir=out_dir,
    )


def _rows(placement: FinetunePlacement, recipe: Recipe, inputs: Mapping[str, Artifact], frames: FrameStore) -> Rows:
    model = placement.model
    return make_rows(
        placement.source or Source(inputs["dataset"].path, (DRAWN,), quarantine_limit=0.0),
        frames,
        recipe,
        tokenizer=model.tokenizer() if isinstance(model, PretrainedModel) else None,
        timestamps=model.timestamps,
        merge_size=model.spatial_merge_size,
        temporal_patch_size=model.temporal_patch_size,
    )


def _train_on_ray(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    # Ray reads its environment at import, and the runner that starts it sets that first. A trial may wait for others
    # to leave their GPUs, and a large model for its weights: Ray's own limit of a minute would end both.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "86400")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    placement: FinetunePlacement = config.placement
    resources: dict[str, float] = {"CPU": placement.cpus_per_worker}
    if placement.gpus_per_worker:
        resources["GPU"] = placement.gpus_per_worker
    (out_dir / WORKER_RESULT).unlink(missing_ok=True)
    TorchTrainer(
        _work,
        train_loop_config={"config": config, "inputs": dict(inputs), "out_dir": str(out_dir)},
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(out_dir / PROGRESS),
            failure_config=FailureConfig(max_failures=placement.max_failures),
        ),
    ).fit()
    told = json.loads((out_dir / WORKER_RESULT).read_text(encoding="utf-8"))
    (out_dir / WORKER_RESULT).unlink()
    if "error" in told:
        raise ValueError(told["error"])
    return dict(told["result"])


def _work(job: dict[str, Any]) -> None:
    """One worker of Ray Train. What all workers find wrong alike is told, not raised: Ray would only try again."""
    from ray.train import get_context

    out_dir = Path(job["out_dir"])
    told: dict[str, Any] = {}
    try:
        told["result"] = train_here(job["config"], job["inputs"], out_dir)
    except (ValueError, FloatingPointError) as error:
        told["error"] = str(error)
    if get_context().get_world_rank() == 0:
        (out_dir / WORKER_RESULT).write_text(json.dumps(told), encoding="utf-8")
