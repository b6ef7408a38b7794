"""The training loop, the same on one worker and on many: each takes its share of every global batch.

Every variant gets the same rows, order, steps and initial weights for one seed; only positions, rotary tables and drawn
temporal factors differ.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from hope_core import Variant
from pipelines.finetune import state
from pipelines.finetune.model import make_model, save_model, spread
from pipelines.finetune.placement import PROGRESS, Placement
from pipelines.finetune.recipe import Recipe
from pipelines.finetune.rows import Rows, batches, write_quarantine
from pipelines.finetune.trainer import Trainer
from pipelines.models import RandomModel
from pipelines.pretrained import PretrainedModel
from pipelines.video.frames import FrameStore

HISTORY, CHECKPOINT = "history.jsonl", "checkpoint"


def train(
    model_config: RandomModel | PretrainedModel,
    variant: Variant,
    recipe: Recipe,
    seed: int,
    *,
    rows: Rows,
    frames: FrameStore,
    placement: Placement,
    out_dir: Path,
) -> dict[str, Any]:
    """Train and write `checkpoint/`, `history.jsonl` and `quarantine.jsonl`; goes on from `progress/`, if it is there.

    Returns what was found, on the first worker; {} on the others.
    """
    accelerator = Accelerator(
        cpu=placement.device == "cpu",
        # Rows without a video leave a trained vision tower without gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=recipe.train_vision)],
    )
    if recipe.batch_size % accelerator.num_processes:
        raise ValueError(
            f"recipe.batch_size {recipe.batch_size} is no multiple of cluster.training.workers "
            f"{accelerator.num_processes}; change one of them"
        )
    build = functools.partial(
        make_model,
        model_config,
        variant,
        recipe,
        rows.tokenizer,
        seed=seed,
        attention=placement.attention,
        gradient_checkpointing=placement.gradient_checkpointing,
    )
    model = build(device=accelerator.device)
    num_parameters = sum(p.numel() for p in model.parameters())
    spread_model = spread(model, accelerator, recipe, fsdp=placement.fsdp)
    trainer = Trainer(
        model_config,
        variant,
        recipe,
        seed,
        model=model,
        spread_model=spread_model,
        accelerator=accelerator,
        frames=frames,
        micro_batch_size=placement.micro_batch_size,
        packs=placement.packed,
        fsdp=placement.fsdp and accelerator.num_processes > 1,
    )
    progress, history = out_dir / PROGRESS, out_dir / HISTORY
    first = state.last_step(progress)
    best: state.Best | None = None
    if first:
        trainer.used, best = state.restore(progress, first, model, trainer.optimizer)
    accelerator.wait_for_everyone()  # no worker may write before all have read
    if accelerator.is_main_process:
        state.forget(progress, history, first)
        write_quarantine(out_dir / "quarantine.jsonl", rows.quarantined)
    keeps_best = recipe.held_out is not None and recipe.held_out.keep == "best"
    every, writes = placement.checkpoint_steps, accelerator.is_main_process
    num_steps = recipe.num_steps(len(rows.samples))
    for step, (epoch, batch) in enumerate(batches(rows.samples, recipe, seed)):
        if step < first:
            continue
        if every and step > first and step % every == 0:
            state.save(progress, model, trainer.optimizer, step=step, used=trainer.used, best=best, writes=writes)
        line = trainer.step(step, epoch, batch, recipe.lr_at(step, num_steps))
        if recipe.measures_after(step, num_steps):
            line["held_out_loss"] = loss = trainer.held_out_loss(rows.held_out)
            if best is None or loss < best.loss:
                best = state.Best(step, loss)
                if keeps_best:
                    state.save_best(progress, model, step=step, writes=writes)
        if writes:
            with history.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **line}) + "\n")
    accelerator.wait_for_everyone()  # the best weights are written by one
    if best is not None and keeps_best:
        state.restore_best(progress, best, model)
    attention = model.config._attn_implementation
    if placement.fsdp and accelerator.num_processes > 1:
        weights = state.whole(model.state_dict().items(), writes=writes)
        if writes:  # adapters merge, and a model is saved, unsharded
            model = build(device=torch.device("cpu"), attention="sdpa")
            model.load_state_dict(weights)
    if accelerator.is_main_process:
        save_model(model, recipe, rows.tokenizer, model_config.normalisation, out_dir / CHECKPOINT)
        lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
        result = {
            **_summary(lines, trainer.used),
            **_held_out(rows, best),
            "num_samples": len(rows.samples),
            "quarantined": len(rows.quarantined),
            "num_parameters": num_parameters,
            "attention": attention,
            "hub_commit": getattr(model.config, "_commit_hash", None),
        }
    accelerator.wait_for_everyone()
    return result if accelerator.is_main_process else {}


def _held_out(rows: Rows, best: state.Best | None) -> dict[str, Any]:
    """What was measured on which held-out rows; steps are those of the history's lines."""
    if best is None:
        return {}
    ids = json.dumps([sample.id for sample in rows.held_out])
    return {
        "held_out_rows": len(rows.held_out),
        "held_out_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "best_step": best.step,
        "best_held_out_loss": best.loss,
    }


def _summary(lines: Sequence[dict[str, Any]], used: state.Used) -> dict[str, Any]:
    last = lines[-min(20, len(lines)) :]
    return {
        "steps": len(lines),
        "final_loss": sum(line["loss"] for line in last) / len(last),
        "final_accuracy": sum(line["accuracy"] for line in last) / len(last),
        "samples_sha256": used.samples_sha256,
        "position_ids_sha256": used.position_ids_sha256,
        "drawn_scales": {str(scale): count for scale, count in used.scales},
        "tokens_per_s": sum(line["tokens_per_s"] for line in lines) / len(lines),
        "peak_memory_gib": max(line["peak_memory_gib"] for line in lines),
    }
