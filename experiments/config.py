"""The config of a study as frozen dataclasses, one a group of conf/. `experiments.compose` makes them of the YAML."""

import math
import re
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from experiments.cluster import ClusterConfig
from hope_core.variants import get_variant
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.needles import NeedleBenchmark
from pipelines.benchmarks.niah import NiahBenchmark
from pipelines.benchmarks.ruler import RulerBenchmark
from pipelines.data_stages import DatasetConfig
from pipelines.dataset_folder import FolderDataset
from pipelines.engine import hide_passwords
from pipelines.finetune import Recipe
from pipelines.models import RandomModel
from pipelines.pretrained import PretrainedModel

PUBLISHED, EQUAL, SEARCHED = "published", "equal", "searched"
SCALE_RULES = (PUBLISHED, EQUAL, SEARCHED)
LARGEST_SEED = 2**31 - 1  # a training makes seeds of 64 bits of it
LONGEST_NAME = 60
# A study's name is that of a folder and of an MLflow experiment.
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")
FIRINGS = "schedule"  # the experiment that a schedule writes to
TAKEN_NAMES = (FIRINGS, "Default")
# SQLite's address has no sign for a # ? or % of a path.
TRACKING = re.compile(r"https?://[^\s/]\S*|sqlite:///[^#?%]+")

# The kinds of benchmarks, told apart by their field `kind`.
Benchmark = typing.Annotated[
    NeedleBenchmark | NiahBenchmark | RulerBenchmark | ChoiceBenchmark, Field(discriminator="kind")
]
BENCHMARK_KINDS = {
    "needles": NeedleBenchmark,
    "niah": NiahBenchmark,
    "ruler": RulerBenchmark,
    "choice": ChoiceBenchmark,
}


@dataclass(frozen=True)
class ScaleRange:
    """Scales from `low` to `high`, on a logarithmic axis if `log`; TPE tries `trials` of them."""

    low: float
    high: float
    trials: int
    log: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(
                f"study.search.scales goes from {self.low:g} to {self.high:g}; give 0 < low < high, or a list"
            )
        if self.trials < 1:
            raise ValueError(f"study.search.scales.trials is {self.trials}; it must be 1 or more")


@dataclass(frozen=True)
class SearchConfig:
    """The scale search of each trial, on validation questions only; `contexts` in the benchmark's own unit.

    `batch` and `prune_p` as in SearchIdentity.
    """

    benchmark: str
    contexts: tuple[int, ...]
    scales: tuple[float, ...] | ScaleRange
    seed: int
    batch: int = 1
    prune_p: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scales, ScaleRange) and (
            not self.scales
            or not all(0 < scale < math.inf for scale in self.scales)
            or len(set(self.scales)) != len(self.scales)
        ):
            raise ValueError(
                f"study.search.scales is {list(self.scales)}; give numbers above 0, each once, or low, high and trials"
            )
        if not self.contexts or min(self.contexts) < 1 or len(set(self.contexts)) != len(self.contexts):
            raise ValueError(f"study.search.contexts is {list(self.contexts)}; give lengths of 1 or more, each once")
        _check_seeds("study.search.seed", self.seed)
        if self.batch < 1:
            raise ValueError(f"study.search.batch is {self.batch}; it must be 1 or more")
        if self.prune_p is not None and not 0 < self.prune_p < 1:
            raise ValueError(f"study.search.prune_p is {self.prune_p}; give a number between 0 and 1, or null")


@dataclass(frozen=True)
class VariantEntry:
    """A variant of the grid: a registered name alone, or a new name with its parts.

    `published_scale`: the factor that papers used on these benchmarks, where it is not the variant's own.
    """

    name: str
    positions: str | dict[str, Any] | None = None
    frequencies: str | dict[str, Any] | None = None
    scaling: str | dict[str, Any] | None = None
    published_scale: float | None = None

    def __post_init__(self) -> None:
        if (self.positions is None) != (self.frequencies is None) or (self.scaling and self.positions is None):
            raise ValueError(
                f"study.variants: {self.name} has some parts only; give positions, frequencies and, if any, scaling, "
                "or the name of a registered variant alone"
            )
        if self.published_scale is not None:
            _check_scale(f"study.variants: published_scale of {self.name}", self.published_scale)
        if self.positions is None:
            get_variant(self.name)  # a name that no variant has is said before a baseline that is not among them


@dataclass(frozen=True)
class StudyConfig:
    """A grid of variants x seeds x benchmarks x context lengths x scale rules, with a baseline. Lengths in frames."""

    name: str
    question: str
    description: str
    variants: tuple[VariantEntry, ...]
    baseline: str
    seeds: tuple[int, ...]
    train_frames: int
    contexts_frames: tuple[int, ...]
    scale_rules: tuple[str, ...]
    equal_scale: float
    search: SearchConfig
    axes: dict[str, list[Any]] | None = None
    exclude: tuple[dict[str, Any], ...] = ()
    parts: dict[str, Any] | None = None
    train_tokens: int | None = None  # of a training video; null: what train_frames frames of the drawn data set are

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"study.name is {self.name!r}; give up to {LONGEST_NAME} letters, digits, - _ and ., no sign first"
            )
        if self.name in TAKEN_NAMES:
            raise ValueError(f"study.name is {self.name!r}, an experiment that MLflow has beside studies; take another")
        for field in ("variants", "seeds", "contexts_frames", "scale_rules"):
            if not getattr(self, field):
                raise ValueError(f"study.{field} is empty; give at least one")
        names = [entry.name for entry in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"study.variants is {names}; give each name once")
        if self.baseline not in names:
            raise ValueError(f"study.baseline is {self.baseline!r}; it must be one of {', '.join(names)}")
        _check_scale("study.equal_scale", self.equal_scale)
        _check_seeds("study.seeds", *self.seeds)
        if self.train_tokens is not None and self.train_tokens < 1:
            raise ValueError(f"study.train_tokens is {self.train_tokens}; it must be 1 or more, or null")
        for rule in self.scale_rules:
            if rule not in SCALE_RULES:
                raise ValueError(f"study.scale_rules has {rule!r}; allowed are {', '.join(SCALE_RULES)}")
        for field in ("seeds", "contexts_frames", "scale_rules"):
            if len(set(getattr(self, field))) != len(getattr(self, field)):
                raise ValueError(f"study.{field} is {list(getattr(self, field))}; give each value once")


Dataset = Annotated[DatasetConfig | FolderDataset, Field(discriminator="kind")]
Model = Annotated[RandomModel | PretrainedModel, Field(discriminator="kind")]


@dataclass(frozen=True)
class Setting:
    """One combination of the study's axes: `values` by key, what they make, and its name ("" without axes)."""

    name: str
    values: dict[str, Any]
    model: Model
    recipe: Recipe
    dataset: Dataset


@dataclass(frozen=True)
class Config:
    """The whole config. `store` is the folder of every output; `tracking_uri` null means mlflow.db in it.

    `settings` has one entry for each combination of study.axes; `setting` names the one that this config is of.
    """

    study: StudyConfig
    model: Model
    recipe: Recipe
    dataset: Dataset
    benchmarks: dict[str, Benchmark]
    cluster: ClusterConfig
    store: str
    tracking_uri: str | None
    on_failure: typing.Literal["continue", "stop"]
    settings: tuple[Setting, ...] = ()
    setting: str = ""

    def __post_init__(self) -> None:
        if not TRACKING.fullmatch(self.tracking):
            if self.tracking_uri is None:
                raise ValueError(
                    f"store is {str(Path(self.store).resolve())!r}; MLflow's database cannot lie below a folder with #"
                    ", ? or % in its name: take another, or give tracking_uri"
                )
            raise ValueError(
                f"tracking_uri is {hide_passwords(self.tracking_uri)!r}; give http://HOST:PORT, https://HOST, or "
                "sqlite:///FILE with no #, ? or % in it"
            )
        if self.study.train_frames < self.model.temporal_patch_size:
            raise ValueError(
                f"study.train_frames is {self.study.train_frames}; give model.temporal_patch_size "
                f"{self.model.temporal_patch_size} or more"
            )
        if isinstance(self.dataset, DatasetConfig):
            _check_seeds("dataset.seed", self.dataset.seed)
        for name, benchmark in self.benchmarks.items():
            if not isinstance(benchmark, ChoiceBenchmark):
                _check_seeds(f"benchmarks.{name}.seed", benchmark.seed)
        if self.recipe.batch_size % self.cluster.training.workers:
            raise ValueError(
                f"recipe.batch_size is {self.recipe.batch_size}, no multiple of cluster.training.workers "
                f"{self.cluster.training.workers}; change one of them"
            )
        held_out = self.recipe.held_out
        if held_out and held_out.rows > self.num_rows - self.recipe.batch_size:
            raise ValueError(
                f"recipe.held_out.rows is {held_out.rows} of dataset {self.dataset.name}'s {self.num_rows} rows; leave "
                f"recipe.batch_size {self.recipe.batch_size} of them or more to train on"
            )
        if self.study.search.benchmark not in self.benchmarks:
            known = ", ".join(self.benchmarks)
            raise ValueError(f"study.search.benchmark is {self.study.search.benchmark!r}; the study has {known}")
        searched, contexts = self.benchmarks[self.study.search.benchmark], self.study.search.contexts
        if isinstance(searched, ChoiceBenchmark) and not {*contexts} <= {*searched.contexts_tokens}:
            raise ValueError(
                f"study.search.contexts is {list(contexts)}; {self.study.search.benchmark} has "
                f"{list(searched.contexts_tokens)} tokens"
            )

    @property
    def num_rows(self) -> int:
        """Rows of the training data, as far as known before it is read."""
        data = self.dataset
        return data.num_samples if isinstance(data, FolderDataset) else data.num_train_videos

    def at(self, setting: Setting) -> "Config":
        """This config at one of its settings."""
        return replace(
            self, model=setting.model, recipe=setting.recipe, dataset=setting.dataset, settings=(), setting=setting.name
        )

    @property
    def tracking(self) -> str:
        """The MLflow tracking URI, resolved."""
        if self.tracking_uri is not None:
            return self.tracking_uri
        return f"sqlite:///{Path(self.store).resolve() / 'mlflow.db'}"

    @property
    def report_dir(self) -> Path:
        return Path(self.store) / "reports" / self.study.name


def _check_scale(key: str, scale: float) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"{key} is {scale:g}; give a finite number above 0")


def _check_seeds(key: str, *seeds: int) -> None:
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"{key}: {seed} is no seed; allowed is 0 to {LARGEST_SEED}")
