"""The features stage: the vision tower runs once per film and needle, for every question and scale.

A variant changes the positions of the language model alone. So a tower that no training changes gives the same
features in every trial, and the stage is then one for all of them: it rests on the tower's origin and on no trial. A
trained tower is of its trial, and so are its features. A film of 3,000 cells of 144 tokens takes 3.1 GB with 7B's 3,584
channels in bfloat16, and 4.6 times that with the 4 x 4,096 of Qwen3-VL-8B, whose tower feeds three layers beside.

C cells of all media, N visual tokens of a cell (H * W / merge**2 of its patch grid), D channels of the language model,
L levels of a token: 1, or for Qwen3-VL one more than the layers of the language model that its tower feeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.attention import load_to_answer, stock_to_answer
from pipelines.engine import Artifact, Stage, StageConfig
from pipelines.finetune.recipe import Recipe
from pipelines.pretrained import Normalisation, PretrainedModel, normalisation_of
from pipelines.video.budget import normalise
from pipelines.video.frames import FrameStore, open_frames

# The stage is declared, and its study planned, without torch, which takes two seconds to import: what runs brings it.
if TYPE_CHECKING:
    from torch import Tensor

# Patches that the vision tower reads at once: bounds its memory, whatever the length of a film.
PATCHES_PER_BATCH = 32768


@dataclass(frozen=True)
class FeaturesIdentity:
    """`media`: the beginnings of the ids that are encoded, by the tower of the checkpoint."""

    media: tuple[str, ...]


@dataclass(frozen=True)
class FrozenTower:
    """A vision tower that no training changes; its origin alone: `weights` by content or hub name, in `precision`."""

    weights: str
    precision: str


@dataclass(frozen=True)
class FrozenFeaturesIdentity:
    media: tuple[str, ...]
    tower: FrozenTower


@dataclass(frozen=True)
class Span:
    """Where a medium's cells lie in the table, and the seconds that one of them lasts."""

    first: int
    num_cells: int
    seconds_per_cell: float


@dataclass(frozen=True)
class Features:
    """Visual tokens of all media, `table` (C, N, D); `spans` by media id; `grid` is a cell's (H, W) in patches.

    The table stays memory-mapped on the CPU: a reader takes from it what it needs. `missing`: the media that could not
    be decoded, and why.
    """

    table: Tensor
    spans: Mapping[str, Span]
    grid: tuple[int, int]
    missing: Mapping[str, str]

    @property
    def tokens_per_cell(self) -> int:
        return self.table.shape[1]

    def lengths(self, prefix: str) -> dict[str, int | None]:
        """Cells of every medium whose id begins so, None for one that could not be decoded."""
        found = {name: span.num_cells for name, span in self.spans.items()} | dict.fromkeys(self.missing)
        return {name: cells for name, cells in sorted(found.items()) if name.startswith(prefix)}


def features_stage(checkpoint: Stage, frames: Stage, *, media: tuple[str, ...], group: str) -> Stage:
    return Stage(
        name="features",
        code_version=2,
        run=run,
        config=StageConfig(FeaturesIdentity(media)),
        inputs={"checkpoint": checkpoint, "frames": frames},
        label=f"features {group}",
        process_group=group,
    )


def frozen_features_stage(model: PretrainedModel, recipe: Recipe, frames: Stage, *, media: tuple[str, ...]) -> Stage:
    """The features of every trial of this model, whose recipe leaves the tower as it is.

    Not for a drawn model, whose tower is of its trial's seed. Raises ValueError for a folder without weights.
    """
    tower = FrozenTower(model.identity.weights, recipe.weights_precision)
    return Stage(
        name="features",
        code_version=2,
        run=run,
        config=StageConfig(FrozenFeaturesIdentity(media, tower), model),
        inputs={"frames": frames},
        label=f"features of {model.name}'s frozen tower",
    )


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Write `features.safetensors` (one table, in the model's type) and `features.json` (where each medium lies)."""
    import torch
    from safetensors.torch import save_file

    model, normalisation = _open_tower(config, inputs)
    frames = open_frames(inputs["frames"].path)
    media = sorted(name for name in frames if name.startswith(config.identity.media))
    missing = _missing(inputs["frames"].path, config.identity.media)
    sizes = {frames.grid(name)[1:] for name in media}
    if not sizes:
        raise ValueError(f"no film and no needle could be decoded: {', '.join(missing.values())}")
    if len(sizes) != 1:
        raise ValueError(f"films and needles have cells of {sorted(sizes)} patches; give dataset.frame_size one size")
    ((height, width),) = sizes
    spans: dict[str, Span] = {}
    total = 0
    for name in media:
        about = frames.about(name)
        seconds = model.config.vision_config.temporal_patch_size / about.sample_fps
        spans[name] = Span(total, about.grid[0], seconds)
        total += about.grid[0]
    num_tokens = height * width // model.config.vision_config.spatial_merge_size**2
    channels = model.config.text_config.hidden_size * num_levels(model)
    table = torch.empty(total, num_tokens, channels, dtype=model.dtype)
    with torch.no_grad():
        for name in media:
            _encode(model, normalisation, frames, name, table[spans[name].first :])
    save_file({"cells": table}, out_dir / "features.safetensors")
    spans_json = {name: asdict(span) for name, span in spans.items()}
    about_all = {"grid": [height, width], "spans": spans_json, "missing": missing}
    (out_dir / "features.json").write_text(json.dumps(about_all), encoding="utf-8")
    return {"num_media": len(media), "num_cells": total, "num_missing": len(missing), "grid": [height, width]}


def _open_tower(config: StageConfig, inputs: Mapping[str, Artifact]) -> tuple[Any, Normalisation]:
    """The model whose tower encodes, and how it wants its pixels."""
    import torch

    if isinstance(config.identity, FeaturesIdentity):
        path = inputs["checkpoint"].path / "checkpoint"
        return load_to_answer(path), normalisation_of(path)
    model: PretrainedModel = config.placement
    precision = config.identity.tower.precision
    return stock_to_answer(model, torch.bfloat16 if precision == "bf16" else torch.float32), model.normalisation


def _missing(frames: Path, prefixes: tuple[str, ...]) -> dict[str, str]:
    """Media that the frames stage could not decode, with the cause."""
    lines = map(json.loads, (frames / "quarantine.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["id"]: line["reason"] for line in lines if line["id"].startswith(prefixes)}


def _encode(model: Any, normalisation: Normalisation, frames: FrameStore, name: str, out: Tensor) -> None:
    """Run the vision tower over a medium's cells, some at a time: it does not look from one cell into another."""
    import torch

    num_cells, height, width = frames.grid(name)
    rows = frames.rows(name)
    step = max(1, PATCHES_PER_BATCH // (height * width))
    for first in range(0, num_cells, step):
        last = min(first + step, num_cells)
        patches = rows[first * height * width : last * height * width]
        pixels = torch.from_numpy(normalise(np.asarray(patches), *normalisation))
        grid = torch.tensor([[last - first, height, width]], device=model.device)
        encoded = visual_tokens(model, pixels.to(model.device, model.dtype), grid)
        out[first:last] = encoded.reshape(last - first, *out.shape[1:])


def num_levels(model: Any) -> int:
    """L of the model's visual tokens."""
    return 1 + len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))


def visual_tokens(model: Any, pixels: Tensor, grid: Tensor) -> Tensor:
    """One video's visual tokens (V, D * L): those of the row, and what Qwen3-VL's DeepStack adds in each first layer.

    `pixels`: normalised patch rows; `grid` (1, 3): T, H, W in patches.
    """
    import torch

    found = model.model.visual(pixels, grid_thw=grid, return_dict=True)
    deeper = found.deepstack_features if num_levels(model) > 1 else []
    return torch.cat([found.pooler_output, *deeper], dim=-1)


def open_features(path: Path) -> Features:
    """Open what the features stage left at `path`."""
    from safetensors.torch import load_file

    about = json.loads((path / "features.json").read_text(encoding="utf-8"))
    height, width = about["grid"]
    return Features(
        table=load_file(path / "features.safetensors")["cells"],
        spans={name: Span(**span) for name, span in about["spans"].items()},
        grid=(height, width),
        missing=about["missing"],
    )
