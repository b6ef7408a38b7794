"""What a simulated study is made of."""

from dataclasses import dataclass, field
from typing import Any

STARTED_MS = 1_760_000_000_000
TRAIN_LENGTH = 16
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
KINDS = ("retrieval", "order")


@dataclass(frozen=True)
class Variant:
    """One simulated variant; effect is its gain over the baseline at the longest context, in accuracy."""

    name: str
    positions: str = "diagonal"
    frequencies: str = "temporal_low"
    scaling: str = "none"
    published_scale: float | None = None
    effect: float = 0.0

    @property
    def scalable(self) -> bool:
        return self.published_scale is not None

    def record(self, baseline: str, setting: str) -> dict[str, Any]:
        """Its entry in study.json; with axes, one for each setting."""
        at = f" · {setting}" if setting else ""
        frames = [1, 10, 100, 1000]
        axes = {"contiguous": [0] * 8 + [1] * 12 + [2] * 12, "temporal_zero": [1, 2] * 12 + [-1] * 8}
        return {
            "name": self.name,
            "label": f"{self.name}{at}",
            "variant": self.name,
            "setting": setting,
            "baseline": f"{baseline}{at}",
            "positions": self.positions,
            "frequencies": self.frequencies,
            "scaling": self.scaling,
            "published_scale": self.published_scale,
            "scalable": self.scalable,
            "slot_axes": axes.get(self.frequencies, [1, 2] * 12 + [0] * 8),
            "preference": {"frames": frames, "values": [32 - 10 * self.effect - i for i in range(len(frames))]},
        }


QUICKSTART = (
    Variant("vanilla", "sequential", "one_axis", "none", effect=-0.05),
    Variant("m_rope", "corner", "contiguous", "none"),
    Variant("videorope", "diagonal", "temporal_low", "fixed 2.0", 2.0, effect=0.1),
    Variant("hope", "diagonal", "temporal_zero", "dynamic", 1.0, effect=0.3),
    Variant("low_dynamic", "diagonal", "temporal_low", "dynamic", 1.0, effect=0.3),
    Variant("zero_fixed2", "diagonal", "temporal_zero", "fixed 2.0", 2.0, effect=0.1),
)
PAIR = (QUICKSTART[1], QUICKSTART[3])


@dataclass(frozen=True)
class Design:
    """What to simulate.

    failed holds (variant, seed, benchmark, context, scale rule) of cells that fail, excluded of those that are not run.
    """

    name: str = "simulated"
    question: str = "Does zeroing the temporal frequencies help on long video?"
    variants: tuple[Variant, ...] = PAIR
    baseline: str = "m_rope"
    seeds: tuple[int, ...] = (0, 1)
    benchmarks: tuple[str, ...] = ("v_niah",)
    contexts: tuple[int, ...] = (16, 64)
    # Of single benchmarks: their own contexts and entries of study.json.
    contexts_of: dict[str, tuple[int, ...]] = field(default_factory=dict)
    record_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Combinations of the study's axes; the second gains 5 points.
    settings: tuple[str, ...] = ("",)
    scale_rules: tuple[str, ...] = ("published", "searched")
    videos: int = 4
    questions: int = 20
    seed_sd: float = 0.02
    steps: int = 20
    rng_seed: int = 0
    failed: frozenset[tuple[str, int, str, int, str]] = frozenset()
    excluded: frozenset[tuple[str, int, str, int, str]] = frozenset()
    # (variant, context) of cells whose first three questions end in an error.
    unanswered: frozenset[tuple[str, int]] = frozenset()
    quarantine: tuple[dict[str, Any], ...] | None = None
    cell_tags: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    answer: str = "7"
    error: str = "ValueError: no frame could be decoded"
    started_ms: int = STARTED_MS

    @property
    def columns(self) -> list[tuple[str, int]]:
        """Every benchmark with each of its contexts."""
        return [(name, context) for name in self.benchmarks for context in self.contexts_of.get(name, self.contexts)]
