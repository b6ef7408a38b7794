"""Temporal scalings: the factor `a` between two frames, in position units per frame (temporal grid cell).

none: 1.
fixed: VideoRoPE's delta (2502.05173, "Adjustable Temporal Spacing").
dynamic: HoPE's gamma (2505.20444, "Dynamic Temporal Scaling").
absolute_time: seconds, as Qwen2.5-VL (2502.13923).
"""

import hashlib
import random
from dataclasses import dataclass

from hope_core.parts import Part, Registry, positive

SCALINGS: Registry["Scaling"] = Registry("scaling")


class Scaling(Part):
    """How many positions lie between two frames."""


@SCALINGS.register("none")
@dataclass(frozen=True)
class NoScaling(Scaling):
    """One position per frame."""


@SCALINGS.register("fixed")
@dataclass(frozen=True)
class Fixed(Scaling):
    """The same factor in training and inference; VideoRoPE uses 2."""

    factor: float

    def __post_init__(self) -> None:
        positive("scaling fixed", "factor", self.factor)
        object.__setattr__(self, "factor", float(self.factor))


@SCALINGS.register("dynamic")
@dataclass(frozen=True)
class Dynamic(Scaling):
    """Training draws one of `choices` per visual block of each sample; inference needs one value.

    `inference` is the published value for evaluation, if any; never used by itself, pass it to `at_scale`.
    """

    choices: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    inference: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.choices, tuple) or not self.choices:
            raise ValueError(f"scaling dynamic: choices is {self.choices!r}; it must be a list of one factor or more")
        positive("scaling dynamic", "choices", *self.choices)
        object.__setattr__(self, "choices", tuple(float(choice) for choice in self.choices))
        if self.inference is not None:
            positive("scaling dynamic", "inference", self.inference)
            object.__setattr__(self, "inference", float(self.inference))


@SCALINGS.register("absolute_time")
@dataclass(frozen=True)
class AbsoluteTime(Scaling):
    """seconds_per_frame * tokens_per_second positions per frame; Qwen2.5-VL's checkpoints use 2 tokens per second."""

    tokens_per_second: float = 2.0

    def __post_init__(self) -> None:
        positive("scaling absolute_time", "tokens_per_second", self.tokens_per_second)
        object.__setattr__(self, "tokens_per_second", float(self.tokens_per_second))


def draw(choices: tuple[float, ...], num_blocks: int, *, seed: int, epoch: int, sample_id: str | int) -> list[float]:
    """`num_blocks` independent draws that depend on (seed, epoch, sample_id) only."""
    key = hashlib.sha256(repr((int(seed), int(epoch), str(sample_id))).encode()).digest()
    source = random.Random(int.from_bytes(key, "big"))
    return [choices[source.randrange(len(choices))] for _ in range(num_blocks)]
