"""A small study's stages, for tests: real clips, a real model of 20 thousand parameters, a few steps."""

from collections.abc import Iterable
from pathlib import Path

from hope_core import Variant, get_variant
from pipelines.benchmarks.needles import FILM_PREFIX, NEEDLE_PREFIX, NeedleBenchmark
from pipelines.data_stages import DatasetConfig, dataset_stage, drawn_frames_stage
from pipelines.engine import Artifact, LocalRunner, Stage, Store
from pipelines.features import features_stage
from pipelines.finetune import Recipe, finetune_stage
from pipelines.models import RandomModel
from pipelines.preprocess import PreprocessPlacement
from pipelines.video.budget import FrameBudget

MODEL = RandomModel(
    kind="random",
    name="test",
    hidden_size=32,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    rope_theta=1e4,
    initializer_range=0.05,
    vision_depth=1,
    vision_embed_dim=16,
    vision_num_heads=1,
    patch_size=8,
    spatial_merge_size=2,
    temporal_patch_size=2,
)
RECIPE = Recipe(
    name="test",
    steps=4,
    batch_size=4,
    lr=1e-3,
    warmup_steps=1,
    final_lr_share=0.1,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.98,
    max_grad_norm=1.0,
    cosine_after_warmup=False,
    equal_lengths=True,
    train_vision=True,
)
DATASET = DatasetConfig(
    name="test",
    num_train_videos=48,
    train_cells_min=8,
    train_cells_max=9,
    num_needles=6,
    num_twins=2,
    num_films=4,
    film_frames=80,
    frame_size=32,
    fps=2.0,
    seed=0,
)
BUDGET = FrameBudget(fps=2.0, frame_size=(32, 32), patch_size=8)


def benchmark(period_frames: int = 16, videos_per_depth: int = 2) -> NeedleBenchmark:
    return NeedleBenchmark(
        kind="needles",
        name="v_niah_d" if period_frames else "v_niah",
        depths=(0.0, 0.5, 1.0),
        videos_per_depth=videos_per_depth,
        distractor_period_frames=period_frames,
        num_validation_films=1,
        seed=0,
    )


def data_stages(root: Path) -> tuple[Stage, Stage]:
    dataset = dataset_stage(DATASET)
    placement = PreprocessPlacement(cache_dir=str(root / "cache"), num_workers=0, timeout_s=600)
    return dataset, drawn_frames_stage(dataset, BUDGET, placement)


def trained(root: Path, variant: Variant | None = None, *, seed: int = 0) -> tuple[Stage, Stage]:
    """The fine-tune and the features stage of one trial (hope, if no variant is given)."""
    dataset, frames = data_stages(root)
    tuned = finetune_stage(
        variant or get_variant("hope"), MODEL, RECIPE, seed, dataset=dataset, frames=frames, group="trial"
    )
    return tuned, features_stage(tuned, frames, media=(FILM_PREFIX, NEEDLE_PREFIX), group="trial")


def run(root: Path, stages: Iterable[Stage]) -> dict[str, Artifact]:
    """Run stages in this process; artifacts by stage name and by fingerprint. Fails the test on a failed stage."""
    summary = LocalRunner(Store(root / "store")).run(list(stages))
    assert summary.ok, [failure.traceback for _, failure in summary.failed]
    return dict(summary.artifacts) | {artifact.stage: artifact for artifact in summary.artifacts.values()}
