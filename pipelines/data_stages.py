"""The two stages that all trials of a study share: the data set's files, and their decoded frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines import preprocess
from pipelines.engine import Artifact, Resources, Stage, StageConfig
from pipelines.preprocess import MediaSource, PreprocessIdentity, PreprocessPlacement
from pipelines.video.budget import FrameBudget
from pipelines.video.synthetic import write_needle_benchmark, write_training_set

DATASET = "dataset"


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
    kind: Literal["drawn"] = "drawn"


def dataset_stage(config: DatasetConfig) -> Stage:
    return Stage(
        name="dataset", code_version=1, run=draw, config=StageConfig(config), label=f"draw data set {config.name}"
    )


def frames_stage(dataset: Stage, budget: FrameBudget, placement: PreprocessPlacement) -> Stage:
    """Decode every video and picture of the data set once; ids are "dataset/PATH"."""
    source = MediaSource(name=DATASET, records=("train.json",), files=("haystack/*.mp4", "needles/*.png"))
    return Stage(
        name="frames",
        code_version=2,
        run=preprocess.run,
        config=StageConfig(PreprocessIdentity(budget=budget, sources=(source,)), placement),
        inputs={DATASET: dataset},
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
