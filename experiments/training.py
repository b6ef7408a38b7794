"""What a study trains on, where its trainings run, and what they are reckoned to cost."""

import math
import os
from dataclasses import replace

from experiments.config import Config
from pipelines.data_stages import dataset_stage, drawn_frames_stage
from pipelines.dataset_folder import FolderDataset, folder_stages
from pipelines.engine import Stage
from pipelines.finetune import FinetunePlacement, Placement
from pipelines.finetune.rows import Source
from pipelines.preprocess import PreprocessPlacement
from pipelines.pretrained import PretrainedModel
from pipelines.video.budget import FrameBudget

# FLOP/s that a GPU is reckoned to reach: at this rate the papers' 7B training (300,000 rows of 8,200 tokens) takes the
# 304 H800 hours that they give. Measured durations take its place once a like training has run in the store.
FLOPS_PER_GPU = 1.17e14
FLOPS_BASIS = (
    f"reckoned from parameters x tokens at {FLOPS_PER_GPU / 1e12:.0f} TFLOP/s a GPU, the rate of the papers' 304 H800 "
    "hours for 7B; a recorded duration counts more"
)


def training_budget(config: Config) -> FrameBudget:
    """What one video of the training data may cost."""
    data, model = config.dataset, config.model
    ours = FrameBudget(
        fps=data.fps,
        patch_size=model.patch_size,
        merge_size=model.spatial_merge_size,
        temporal_patch_size=model.temporal_patch_size,
    )
    if isinstance(data, FolderDataset):
        return replace(ours, max_frames=data.max_frames, total_pixels=data.total_pixels)
    if data.frame_size % ours.factor:
        raise ValueError(
            f"dataset.frame_size is {data.frame_size}, but a token of model {model.name} covers {ours.factor} x "
            f"{ours.factor} pixels: give a multiple, such as dataset.frame_size={2 * ours.factor}"
        )
    return replace(ours, frame_size=(data.frame_size, data.frame_size))


def cell_side(config: Config) -> int:
    """Tokens on the side of a square cell of the longest training video."""
    data, budget = config.dataset, training_budget(config)
    if isinstance(data, FolderDataset):
        tokens = data.total_pixels / data.max_frames * budget.temporal_patch_size / budget.factor**2
        return max(1, round(math.sqrt(tokens)))
    return data.frame_size // budget.factor


def about_data(config: Config) -> dict[str, int]:
    """What a report says of the training data."""
    data = config.dataset
    if isinstance(data, FolderDataset):
        return {"training_samples": data.num_samples}
    return {"training_videos": data.num_train_videos, "films": data.num_films}


def training_data(config: Config, placement: PreprocessPlacement) -> tuple[Stage, Stage]:
    """The stages of the data set and of its decoded frames."""
    data, budget = config.dataset, training_budget(config)
    if isinstance(data, FolderDataset):
        return folder_stages(data, budget, placement)
    dataset = dataset_stage(data)
    return dataset, drawn_frames_stage(dataset, budget, placement)


def training_placement(config: Config) -> FinetunePlacement:
    """Where the trials of a study train."""
    training, data = config.cluster.training, config.dataset
    source = None
    if isinstance(data, FolderDataset):
        source = Source(data.folder, tuple(data.record_files()), data.quarantine_limit)
    return FinetunePlacement(
        model=config.model,
        source=source,
        num_workers=training.workers,
        cpus_per_worker=training.cpus_per_worker,
        gpus_per_worker=training.gpus_per_worker,
        max_failures=config.cluster.max_retries,
        loop=Placement(
            device="cuda" if training.gpus_per_worker else "cpu",
            micro_batch_size=training.micro_batch_size,
            packed=training.packed,
            checkpoint_steps=training.checkpoint_steps,
            gradient_checkpointing=training.gradient_checkpointing,
            fsdp=training.fsdp,
            attention=training.attention,
        ),
    )


def num_samples(config: Config) -> int:
    """Rows that are trained on, as far as known before the data is read."""
    held_out = config.recipe.held_out
    return config.num_rows - (held_out.rows if held_out else 0)


def reckoned_gpu_hours(config: Config) -> float | None:
    """What one training is reckoned to cost, None for a model or rows whose size is not declared (the tiny ones).

    8 FLOPs a parameter and token (forward 2, backward 4, recomputed 2) at `FLOPS_PER_GPU`, every row at its full
    length: an upper estimate, without the vision tower and without attention's square.
    """
    recipe, model = config.recipe, config.model
    if not isinstance(model, PretrainedModel) or recipe.cutoff_len is None:
        return None
    tokens = recipe.num_steps(num_samples(config)) * recipe.batch_size * recipe.cutoff_len
    return 8 * model.num_parameters * tokens / FLOPS_PER_GPU / 3600


def missing(config: Config) -> str | None:
    """Why a study's training cannot run here, if it cannot; it can be planned."""
    data, model = config.dataset, config.model
    if isinstance(data, FolderDataset) and not data.record_files():
        return (
            f"dataset.root is {data.root!r}: no file matches {', '.join(data.files)} there; set dataset.root to the "
            f"folder of {data.name}"
        )
    if isinstance(model, PretrainedModel) and os.environ.get("HF_HUB_OFFLINE") == "1":
        return model.absent_offline()
    return None
