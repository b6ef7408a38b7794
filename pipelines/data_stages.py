"""The two stages that all trials of a study share: the data set's files, and their decoded frames."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.datasets import Media, read_dataset
from pipelines.engine import Artifact, Resources, Stage, StageConfig
from pipelines.features import FILM_PREFIX, NEEDLE_PREFIX, read_needles
from pipelines.finetune import TRAIN_PREFIX
from pipelines.preprocess import preprocess_media
from pipelines.video.budget import FrameBudget
from pipelines.video.synthetic import write_needle_benchmark, write_training_set


@dataclass(frozen=True)
class DatasetConfig:
    """The drawn data set: training clips with conversations, films and needle pictures. Lengths in cells or frames."""

    name: str
    num_train_videos: int
    train_cells_min: int
    train_cells_max: int
    num_needles: int
    num_twins: int
    num_films: int
    film_frames: int
    frame_size: int
    fps: float
    seed: int


@dataclass(frozen=True)
class FramesPlacement:
    """Where and how frames are decoded; no part of the result's identity."""

    cache_dir: str
    num_workers: int
    timeout_s: float


def dataset_stage(config: DatasetConfig) -> Stage:
    return Stage(
        name="dataset", code_version=1, run=draw, config=StageConfig(config), label=f"draw data set {config.name}"
    )


def frames_stage(dataset: Stage, budget: FrameBudget, placement: FramesPlacement) -> Stage:
    return Stage(
        name="frames",
        code_version=1,
        run=decode,
        config=StageConfig(budget, placement),
        inputs={"dataset": dataset},
        # Ray Data's actors hold the CPUs; the task that drives them must not.
        resources=Resources(num_cpus=0),
        label="decode videos",
    )


def draw(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Draw and encode all files: `train.json` and `videos/`, `haystack/`, `needles.json` and `needles/`."""
    data: DatasetConfig = config.identity
    write_training_set(
        out_dir,
        num_videos=data.num_train_videos,
        cells_min=data.train_cells_min,
        cells_max=data.train_cells_max,
        num_needles=data.num_needles,
        num_twins=data.num_twins,
        seed=data.seed,
        size=data.frame_size,
        fps=data.fps,
    )
    write_needle_benchmark(
        out_dir,
        num_films=data.num_films,
        film_frames=data.film_frames,
        seed=data.seed,
        size=data.frame_size,
        fps=data.fps,
    )
    return {"num_train_videos": data.num_train_videos, "num_films": data.num_films}


def decode(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Decode every video and picture of the data set once; see `preprocess_media`."""
    placement: FramesPlacement = config.placement
    root = inputs["dataset"].path
    training = read_dataset(root / "train.json", media_root=root)
    media = {TRAIN_PREFIX + record.id: record.media[0] for record in training.records}
    media |= {FILM_PREFIX + path.stem: Media("video", path) for path in sorted((root / "haystack").glob("*.mp4"))}
    media |= {
        needle.media: Media("image", root / needle.media.removeprefix(NEEDLE_PREFIX))
        for needle in read_needles(root / "needles.json")
    }
    done = preprocess_media(
        media,
        config.identity,
        out_dir,
        cache_dir=Path(placement.cache_dir),
        num_workers=placement.num_workers,
        timeout_s=placement.timeout_s,
        on_progress=lambda count, total: print(f"decoded {count} of {total}", flush=True),
    )
    quarantined = {**done.quarantined, **{str(item.id): item.reason for item in training.quarantined}}
    return {**asdict(done), "quarantined": quarantined, "num_quarantined": len(quarantined)}
