"""The features stage: the vision tower runs once per film and needle of a trial, for every question and scale.

N visual tokens of a cell (H * W / merge**2 of its patch grid), D channels of the language model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hope_core.modeling import load
from pipelines.benchmarks.needles import Needle
from pipelines.engine import Artifact, Stage, StageConfig
from pipelines.video.budget import normalise
from pipelines.video.frames import open_frames

FILM_PREFIX, NEEDLE_PREFIX = "dataset/haystack/", "dataset/needles/"


@dataclass(frozen=True)
class FeaturesIdentity:
    """Nothing of its own: the checkpoint and the frames say all."""


@dataclass(frozen=True)
class Features:
    """Visual tokens of films (cells, N, D) and needles (N, D) by id; `grid` is a cell's (H, W) in patches."""

    films: Mapping[str, Tensor]
    needles: Mapping[str, Tensor]
    grid: tuple[int, int]
    seconds_per_cell: float


def features_stage(checkpoint: Stage, frames: Stage, *, group: str) -> Stage:
    return Stage(
        name="features",
        code_version=1,
        run=run,
        config=StageConfig(FeaturesIdentity()),
        inputs={"checkpoint": checkpoint, "frames": frames},
        label=f"features {group}",
        process_group=group,
    )


@torch.no_grad()
def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Write `features.safetensors` (float32, by media id) and `features.json` (the cells' grid and duration)."""
    model = load(inputs["checkpoint"].path / "checkpoint").eval()
    frames = open_frames(inputs["frames"].path)
    media = [name for name in frames if name.startswith((FILM_PREFIX, NEEDLE_PREFIX))]
    sizes = {frames.grid(name)[1:] for name in media}
    if len(sizes) != 1:
        raise ValueError(f"films and needles have cells of {sorted(sizes)} patches; give dataset.frame_size one size")
    ((height, width),) = sizes
    films = [frames.about(name) for name in media if name.startswith(FILM_PREFIX)]
    tensors = {}
    for name in media:
        rows = torch.from_numpy(normalise(np.asarray(frames.rows(name))))
        encoded = model.model.get_video_features(rows, torch.tensor([frames.grid(name)])).pooler_output[0]
        tensors[name] = encoded.reshape(frames.grid(name)[0], -1, encoded.shape[-1]).contiguous()
    save_file(tensors, out_dir / "features.safetensors")
    about = {
        "grid": [height, width],
        "seconds_per_cell": model.config.vision_config.temporal_patch_size / films[0].sample_fps,
    }
    (out_dir / "features.json").write_text(json.dumps(about), encoding="utf-8")
    return {"num_media": len(media), "num_cells": sum(len(tensor) for tensor in tensors.values()), **about}


def open_features(path: Path) -> Features:
    """Open what the features stage left at `path`."""
    about = json.loads((path / "features.json").read_text(encoding="utf-8"))
    tensors = load_file(path / "features.safetensors")
    height, width = about["grid"]
    return Features(
        films={name: tensor for name, tensor in tensors.items() if name.startswith(FILM_PREFIX)},
        needles={name: tensor[0] for name, tensor in tensors.items() if name.startswith(NEEDLE_PREFIX)},
        grid=(height, width),
        seconds_per_cell=about["seconds_per_cell"],
    )


def read_needles(path: Path) -> list[Needle]:
    """The needle records of a V-NIAH `needles.json` (LongVA's path, prompt, answer, and a marker)."""
    records = json.loads(path.read_text(encoding="utf-8"))
    return [
        Needle(media=f"dataset/{r['path']}", marker=r["marker"], prompt=r["prompt"], answer=r["answer"])
        for r in records
    ]
