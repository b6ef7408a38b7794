"""The recipe: everything of a training that its result depends on, beside variant, model, data and seed."""

import math
from dataclasses import dataclass, field
from typing import Literal

from pipelines.engine.fingerprint import ADDED_LATER


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the language model's linear layers named in `targets`; merged when training ends."""

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise ValueError(f"recipe.lora has rank {self.rank} and targets {self.targets}; give 1 or more of each")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"recipe.lora.dropout is {self.dropout}; allowed is 0 to below 1")


@dataclass(frozen=True)
class HeldOut:
    """`rows` that are not trained on: the mean loss of their answers is measured every `every_steps` and at the end.

    `keep`: the checkpoint holds the weights of the "last" step, as the papers' do, or of the "best" measurement.
    """

    rows: int
    every_steps: int
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        for name in ("rows", "every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe.held_out.{name} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True)
class Recipe:
    """How a trial is trained: AdamW, linear warm-up, cosine to `final_lr_share` of the peak.

    Its length is `steps` or `epochs`, its warm-up `warmup_steps` or a share of the steps; give one of each pair. The
    cosine begins with the first step, or, with `cosine_after_warmup`, at the warm-up's end (as transformers has it).
    `equal_lengths`: batches of rows of one length. `cutoff_len`: tokens of a row. `train_vision` false freezes the
    vision tower and its merger. `precision` bf16: weights and optimiser in float32 (the frozen ones under LoRA in
    bfloat16), products in bfloat16.
    """

    name: str
    steps: int | None
    batch_size: int
    lr: float
    warmup_steps: int | None
    final_lr_share: float
    weight_decay: float
    beta1: float
    beta2: float
    max_grad_norm: float
    epochs: int | None = None
    warmup_share: float | None = None
    cosine_after_warmup: bool = True
    equal_lengths: bool = False
    cutoff_len: int | None = None
    train_vision: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    lora: Lora | None = None
    held_out: HeldOut | None = field(default=None, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "batch_size", "lr", "max_grad_norm", "cutoff_len"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"recipe.{name} is {value}; it must be above 0")
        for one, other in (("steps", "epochs"), ("warmup_steps", "warmup_share")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                values = f"recipe.{one} is {getattr(self, one)} and recipe.{other} {getattr(self, other)}"
                raise ValueError(f"{values}; give one of the two, the other is null")
        if self.warmup_steps is not None and not 0 <= self.warmup_steps <= (self.steps or math.inf):
            raise ValueError(f"recipe.warmup_steps is {self.warmup_steps}; allowed is 0 to recipe.steps, {self.steps}")
        if self.warmup_share is not None and not 0 <= self.warmup_share <= 1:
            raise ValueError(f"recipe.warmup_share is {self.warmup_share}; allowed is 0 to 1")
        if self.equal_lengths and self.epochs is not None:
            raise ValueError(
                "recipe.equal_lengths leaves rows out, so its epochs have no known length; give recipe.steps"
            )
        if self.lora is not None and self.train_vision:
            raise ValueError("recipe.lora leaves the vision tower frozen; set recipe.train_vision=false")

    @property
    def weights_precision(self) -> Literal["fp32", "bf16"]:
        """In which weights are loaded and saved."""
        return self.precision if self.lora is not None else "fp32"

    def measures_after(self, step: int, num_steps: int) -> bool:
        """Whether the held-out loss is measured after a step, from 0."""
        held_out = self.held_out
        return held_out is not None and ((step + 1) % held_out.every_steps == 0 or step + 1 == num_steps)

    def num_steps(self, num_samples: int) -> int:
        """How many batches `num_samples` rows are trained for; a rest below a batch is left out of each epoch."""
        return self.steps if self.steps is not None else (self.epochs or 0) * (num_samples // self.batch_size)

    def lr_at(self, step: int, num_steps: int) -> float:
        """The learning rate of a step, from 0."""
        first = self.warmup_steps if self.warmup_steps is not None else round((self.warmup_share or 0) * num_steps)
        start = first if self.cosine_after_warmup else 0
        share = min(1.0, max(0, step - start) / max(1, num_steps - start))
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        warmup = min(1.0, (step + 1) / first) if first else 1.0
        return self.lr * warmup * (self.final_lr_share + (1 - self.final_lr_share) * cosine)
