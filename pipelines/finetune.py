"""The fine-tune stage: one trial's model, trained on one worker inside its stage's own task.

B rows, S tokens. Every variant gets the same rows, order, steps and initial weights for one seed; only positions,
rotary tables and drawn temporal factors differ.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hope_core import Variant, compute_positions, draw_scales
from hope_core.modeling import install, vision_tokens
from pipelines.datasets import PLACEHOLDER, Record, read_dataset
from pipelines.engine import Artifact, Stage, StageConfig
from pipelines.models import ModelConfig, build_model, build_tokenizer
from pipelines.preprocess import media_id
from pipelines.samples import IGNORED, Sample, batch_order, build_sample, stack
from pipelines.video.budget import normalise
from pipelines.video.frames import FrameStore, open_frames


@dataclass(frozen=True)
class Recipe:
    """How a trial is trained: AdamW, linear warm-up, cosine to `final_lr_share` of the peak."""

    name: str
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    final_lr_share: float
    weight_decay: float
    beta1: float
    beta2: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"recipe.{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"recipe.warmup_steps is {self.warmup_steps}; allowed is 0 to recipe.steps, {self.steps}")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.lr * warmup * (self.final_lr_share + (1 - self.final_lr_share) * cosine)


@dataclass(frozen=True)
class FinetuneIdentity:
    variant: Variant
    model: ModelConfig
    recipe: Recipe
    seed: int


def finetune_stage(
    variant: Variant, model: ModelConfig, recipe: Recipe, seed: int, *, dataset: Stage, frames: Stage, group: str
) -> Stage:
    return Stage(
        name="finetune",
        code_version=1,
        run=run,
        config=StageConfig(FinetuneIdentity(variant, model, recipe, seed)),
        inputs={"dataset": dataset, "frames": frames},
        label=f"finetune {group}",
        process_group=group,
        work_units=recipe.steps * recipe.batch_size,
    )


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Train and write `checkpoint/` and `history.jsonl` (a line per step: loss, accuracy over answers, lr)."""
    identity: FinetuneIdentity = config.identity
    frames = open_frames(inputs["frames"].path)
    root = inputs["dataset"].path
    records = read_dataset(root / "train.json", media_root=root).records
    videos = {record.id: media_id("dataset", root, record.media[0].path) for record in records}
    # A quarantined video takes its record with it.
    conversations = {record.id: _question_answers(record) for record in records if videos[record.id] in frames}
    texts = sorted({text for turns in conversations.values() for pair in turns for text in pair})
    tokenizer = build_tokenizer(texts)
    ids = dict(zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True))  # each text recurs often
    samples = {
        sample_id: build_sample(
            sample_id,
            videos[sample_id],
            turns,
            grid=frames.grid(videos[sample_id]),
            merge_size=identity.model.spatial_merge_size,
            tokenizer=tokenizer,
            encode=ids.__getitem__,
        )
        for sample_id, turns in conversations.items()
    }
    model = build_model(identity.model, tokenizer, seed=identity.seed)
    install(model, identity.variant)
    model.train()
    trainer = _Trainer(identity, model, frames)
    with (out_dir / "history.jsonl").open("w", encoding="utf-8") as history:
        for step, (epoch, batch) in enumerate(_batches(samples, identity)):
            history.write(json.dumps({"step": step, **trainer.step(step, epoch, batch)}) + "\n")
            history.flush()
    model.save_pretrained(out_dir / "checkpoint")
    tokenizer.save_pretrained(out_dir / "checkpoint")
    lines = [json.loads(line) for line in (out_dir / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    last = lines[-min(20, len(lines)) :]
    return {
        "steps": len(lines),
        "final_loss": sum(line["loss"] for line in last) / len(last),
        "final_accuracy": sum(line["accuracy"] for line in last) / len(last),
        "num_samples": len(samples),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "samples_sha256": trainer.samples_seen.hexdigest(),
        "position_ids_sha256": trainer.positions_seen.hexdigest(),
        "drawn_scales": {str(scale): count for scale, count in sorted(trainer.scales_seen.items())},
        "attention": model.config._attn_implementation,
    }


def _question_answers(record: Record) -> list[tuple[str, str]]:
    """(question, answer) of each exchange; the video stands before the first, so its placeholder goes."""
    texts = [PLACEHOLDER.sub("", turn.text).strip() for turn in record.turns]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _batches(samples: Mapping[str, Sample], identity: FinetuneIdentity) -> Iterator[tuple[int, list[Sample]]]:
    lengths = {sample_id: len(sample.input_ids) for sample_id, sample in samples.items()}
    done = epoch = 0
    while True:
        order = batch_order(lengths, batch_size=identity.recipe.batch_size, seed=identity.seed, epoch=epoch)
        if not order:
            raise ValueError(
                f"{len(samples)} samples give no batch of {identity.recipe.batch_size} rows of one length; "
                "lower recipe.batch_size or raise dataset.num_train_videos"
            )
        for batch in order:
            if done == identity.recipe.steps:
                return
            yield epoch, [samples[sample_id] for sample_id in batch]
            done += 1
        epoch += 1


class _Trainer:
    """The optimiser's state, and what was really used: samples and position ids (hashed), drawn scales (counted)."""

    def __init__(self, identity: FinetuneIdentity, model: Any, frames: FrameStore) -> None:
        self.identity, self.model, self.frames = identity, model, frames
        self.tokens = vision_tokens(model.config)
        recipe = identity.recipe
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay
        )
        self.samples_seen = hashlib.sha256()
        self.positions_seen = hashlib.sha256()
        self.scales_seen: Counter[float] = Counter()

    def step(self, step: int, epoch: int, batch: list[Sample]) -> dict[str, float]:
        identity = self.identity
        input_ids, labels, grids = stack(batch)
        scales = [
            scale
            for sample in batch
            for scale in draw_scales(identity.variant, 1, seed=identity.seed, epoch=epoch, sample_id=sample.id)
        ]
        about = [self.frames.about(sample.video) for sample in batch]
        positions = compute_positions(
            identity.variant,
            input_ids,
            tokens=self.tokens,
            video_grid_thw=grids,
            spatial_merge_size=identity.model.spatial_merge_size,
            seconds_per_frame=[identity.model.temporal_patch_size / frames.sample_fps for frames in about],
            scales=scales if identity.variant.scalable else None,
        )
        self.samples_seen.update(json.dumps([sample.id for sample in batch]).encode())
        self.positions_seen.update(positions.position_ids.numpy().tobytes())
        self.scales_seen.update(positions.scales)
        rows = torch.cat([torch.from_numpy(normalise(self.frames.rows(sample.video))) for sample in batch])
        lr = identity.recipe.lr_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        logits = self.model(
            input_ids=input_ids,
            pixel_values_videos=rows,
            video_grid_thw=grids,
            mm_token_type_ids=2 * (input_ids == self.tokens.video),
            position_ids=positions.position_ids,
            use_cache=False,
        ).logits
        loss, accuracy = answer_loss(logits, labels)
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}; lower recipe.lr or look at the positions"
            )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), identity.recipe.max_grad_norm)
        self.optimizer.step()
        return {"loss": loss.item(), "accuracy": accuracy, "lr": lr}


def answer_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Mean cross entropy and share of right argmax over the answers' tokens; logits (B, S, V), labels (B, S)."""
    answered = labels[:, 1:] != IGNORED
    predicted, wanted = logits[:, :-1][answered], labels[:, 1:][answered]
    loss = functional.cross_entropy(predicted.float(), wanted)
    return loss, (predicted.argmax(-1) == wanted).float().mean().item()
