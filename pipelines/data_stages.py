"""The stages that all trials of a study share: a data set's files, and the decoded frames of whatever it shows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.engine import Artifact, Resources, Stage, StageConfig
from pipelines.preprocess import MediaSource, PreprocessIdentity, PreprocessPlacement
from pipelines.preprocess import run as preprocess
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


def frames_stage(
    source: MediaSource,
    budget: FrameBudget,
    placement: PreprocessPlacement,
    *,
    label: str,
    inputs: Mapping[str, Stage] | None = None,
    root: str | None = None,
    quarantine_limit: float = 0.01,
) -> Stage:
    """Decode every video and picture of a source once; it lies in the input of its name, or in the folder `root`."""
    identity = PreprocessIdentity(budget=budget, sources=(source,), quarantine_limit=quarantine_limit)
    return Stage(
        name="frames",
        code_version=2,
        run=preprocess,
        config=StageConfig(identity, placement if root is None else replace(placement, roots={source.name: root})),
        inputs=inputs or {},
        # Ray Data's actors hold the CPUs; the task that drives them must not.
        resources=Resources(num_cpus=0),
        label=label,
    )


def drawn_frames_stage(dataset: Stage, budget: FrameBudget, placement: PreprocessPlacement) -> Stage:
    """Decode every video and picture of the data set once; ids are "dataset/PATH"."""
    source = MediaSource(name=DATASET, records=("train.json",), files=("haystack/*.mp4", "needles/*.png"))
    return frames_stage(source, budget, placement, inputs={DATASET: dataset}, label="decode videos")


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
