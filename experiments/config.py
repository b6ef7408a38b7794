"""The config of a study: YAML groups in conf/ composed by Hydra once, checked, and turned into frozen dataclasses.

Nothing below this module sees Hydra or a DictConfig.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, TypeAdapter, ValidationError

from experiments.axes import as_overrides, combinations, expand_parts, refuse_set_axes, setting_name
from pipelines.attention import WISHES
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.needles import NeedleBenchmark
from pipelines.benchmarks.niah import NiahBenchmark
from pipelines.benchmarks.ruler import RulerBenchmark
from pipelines.data_stages import DatasetConfig
from pipelines.dataset_folder import FolderDataset
from pipelines.finetune import Recipe
from pipelines.models import RandomModel
from pipelines.pretrained import PretrainedModel

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("study", "model", "recipe", "dataset", "benchmark", "cluster")
ANY_SHAPE = ("study.axes", "study.parts", "study.search.scales")  # a mapping given to these takes the old one's place
PUBLISHED, EQUAL, SEARCHED = "published", "equal", "searched"
SCALE_RULES = (PUBLISHED, EQUAL, SEARCHED)

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
        if not 0 < self.low < self.high:
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
            not self.scales or min(self.scales) <= 0 or len(set(self.scales)) != len(self.scales)
        ):
            raise ValueError(
                f"study.search.scales is {list(self.scales)}; give numbers above 0, each once, or low, high and trials"
            )
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
        for field in ("variants", "seeds", "contexts_frames", "scale_rules"):
            if not getattr(self, field):
                raise ValueError(f"study.{field} is empty; give at least one")
        names = [entry.name for entry in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"study.variants is {names}; give each name once")
        if self.baseline not in names:
            raise ValueError(f"study.baseline is {self.baseline!r}; it must be one of {', '.join(names)}")
        for rule in self.scale_rules:
            if rule not in SCALE_RULES:
                raise ValueError(f"study.scale_rules has {rule!r}; allowed are {', '.join(SCALE_RULES)}")
        for field in ("seeds", "contexts_frames", "scale_rules"):
            if len(set(getattr(self, field))) != len(getattr(self, field)):
                raise ValueError(f"study.{field} is {list(getattr(self, field))}; give each value once")


@dataclass(frozen=True)
class TrainingConfig:
    """How each training is spread: see FinetunePlacement and its Placement. With GPUs, a worker trains on them."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    micro_batch_size: int | None
    checkpoint_steps: int | None
    gradient_checkpointing: bool
    fsdp: bool
    attention: str

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker", "micro_batch_size", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"cluster.training.{name} is {value}; it must be 1 or more")
        if self.gpus_per_worker not in (0, 1):
            raise ValueError(f"cluster.training.gpus_per_worker is {self.gpus_per_worker}; allowed are 0 and 1")
        if self.fsdp and self.workers == 1:
            raise ValueError("cluster.training.fsdp shards a model over workers; set cluster.training.workers above 1")
        if self.attention not in WISHES:
            raise ValueError(f"cluster.training.attention is {self.attention!r}; allowed are {', '.join(WISHES)}")


@dataclass(frozen=True)
class ClusterConfig:
    """Where stages run; no part of any result's identity. Null means all that the machine has, or no address.

    search_workers: scales of one trial that are measured at once. search_storage: a database for Optuna's trials (an
    SQLAlchemy URL), else a journal in the search's own folder.
    """

    address: str | None
    num_cpus: int | None
    num_gpus: int | None
    max_retries: int
    decode_workers: int
    chunk_tokens: int  # of a row that an evaluation reads in one forward: bounds its memory
    decode_timeout_s: float
    training: TrainingConfig
    search_workers: int
    search_storage: str | None


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
        if self.recipe.batch_size % self.cluster.training.workers:
            raise ValueError(
                f"recipe.batch_size is {self.recipe.batch_size}, no multiple of cluster.training.workers "
                f"{self.cluster.training.workers}; change one of them"
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

    def at(self, setting: Setting) -> "Config":
        """This config at one of its settings."""
        return replace(
            self, model=setting.model, recipe=setting.recipe, dataset=setting.dataset, settings=(), setting=setting.name
        )

    @property
    def tracking(self) -> str:
        """The MLflow tracking URI, resolved."""
        return self.tracking_uri or f"sqlite:///{Path(self.store).resolve() / 'mlflow.db'}"

    @property
    def report_dir(self) -> Path:
        return Path(self.store) / "reports" / self.study.name


def choices(group: str) -> list[str]:
    """The names of a config group's files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def load_config(overrides: Sequence[str]) -> tuple[Config, str]:
    """Compose `study=NAME group=choice key=value ...`; return the config and its resolved YAML.

    `benchmark=NAME`, which may be given several times, adds a benchmark to the study's own.
    Raises ValueError in one line for an unknown study, group, choice or key, an addition, or a value of a wrong type.
    """
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is no override; write key=value, for example study=quickstart")
        if override.startswith(("+", "~")):
            key = override.split("=", 1)[0].lstrip("+~")
            raise ValueError(f"{override!r} adds or removes a key; only known keys can be set: {key}=...")
    if not any(override.startswith("study=") for override in overrides):
        raise ValueError(f"no study given; add study=NAME, one of {', '.join(choices('study'))}")
    config, resolved = _compose(overrides)
    refuse_set_axes(config.study.axes, overrides)
    settings = []
    for values in combinations(config.study.axes):
        here, _ = _compose([*overrides, *as_overrides(values)]) if values else (config, resolved)
        settings.append(Setting(setting_name(values), values, here.model, here.recipe, here.dataset))
    return replace(config, settings=tuple(settings)), resolved


def _compose(overrides: Sequence[str]) -> tuple[Config, str]:
    """One config and its YAML, without its settings."""
    for key, value in (override.split("=", 1) for override in overrides):
        if key in GROUPS and value not in choices(key):
            raise ValueError(f"unknown {key} {value!r}; there are {', '.join(choices(key))} (conf/{key}/*.yaml)")
    added = named_benchmarks(overrides)
    own = "" if not added else (CONF / "study" / f"{_study_name(overrides)}.yaml").read_text(encoding="utf-8")
    composing = [override for override in overrides if not override.startswith("benchmark=")]
    composing += [f"+benchmark@benchmarks.{name}={name}" for name in added if f"@benchmarks.{name}:" not in own]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=[text for override in composing for text in _replacing(override)])
        values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_line(error)) from None
    if isinstance(values["study"].get("variants"), list):  # a bare name is short for {name: NAME}
        entries, _ = expand_parts(values["study"]["parts"])
        entries = values["study"]["variants"] + entries
        values["study"]["variants"] = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    _refuse_unknown(values, Config, "")
    try:
        config = TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        # Of a union's errors, the one that our own dataclass raised says most.
        first = min(error.errors(), key=lambda found: found["type"] != "value_error")
        place = ".".join(str(part) for part in first["loc"] if part not in BENCHMARK_KINDS)
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            reason if first["type"] == "value_error" else f"{place} is {first['input']!r}: {reason}"
        ) from None
    return config, OmegaConf.to_yaml(composed, resolve=True)


def named_benchmarks(overrides: Sequence[str]) -> tuple[str, ...]:
    """The benchmarks that `benchmark=NAME` overrides name, each once."""
    found = (override.removeprefix("benchmark=") for override in overrides if override.startswith("benchmark="))
    return tuple(dict.fromkeys(found))


def _study_name(overrides: Sequence[str]) -> str:
    return [override.removeprefix("study=") for override in overrides if override.startswith("study=")][-1]


def _replacing(override: str) -> list[str]:
    """The override as Hydra needs it, which cannot put a mapping with other keys in the place of a value."""
    key, _, value = override.partition("=")
    return [f"{key}=null", f"++{override}"] if key in ANY_SHAPE and value.startswith("{") else [override]


def _one_line(error: Exception) -> str:
    """Hydra's message in one line; for an unknown key, without its advice to add it."""
    text = " ".join(str(error).split())
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        return f"unknown key {unknown[1]}; {_known_keys(unknown[1])}"
    return text.split(" full_key:")[0].split(" See https:")[0]


def _known_keys(key: str) -> str:
    """What the deepest part of the config on the way to `key` has."""
    kind: Any = Config
    place = []
    for part in key.split(".")[:-1]:
        hint = typing.get_type_hints(kind).get(part)
        found = _dataclass_in(hint, {})
        if found is None:
            break
        kind = found
        place.append(part)
    fields = ", ".join(sorted(field.name for field in dataclasses.fields(kind)))
    return f"{'.'.join(place) or 'the config'} has {fields}"


def _dataclass_in(hint: Any, value: Mapping[str, Any]) -> type | None:
    """The dataclass that a field of this type holds; of several, the one whose `kind` the value names."""
    members = [hint, *typing.get_args(hint)]
    found = [cast(type, member) for member in members if dataclasses.is_dataclass(member)]
    if len(found) > 1:
        kinds = {typing.get_args(typing.get_type_hints(member)["kind"])[0]: member for member in found}
        return kinds.get(value.get("kind"))
    return found[0] if found and typing.get_origin(hint) is not dict else None


def _refuse_unknown(values: Mapping[str, Any], kind: type, place: str) -> None:
    """Raise for a key that no field of the dataclass `kind` reads (a value of one type alone is pydantic's work)."""
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise ValueError(f"unknown key {place}{key}; {place.rstrip('.') or 'the config'} has {known}")
        hint = hints[key]
        found = _dataclass_in(hint, value) if isinstance(value, Mapping) else None
        if found is not None:
            _refuse_unknown(value, found, f"{place}{key}.")
        elif hint == tuple[VariantEntry, ...]:
            for entry in value or ():
                _refuse_unknown(entry, VariantEntry, "study.variants.")
        elif kind is Config and key == "benchmarks":
            for name, inner in value.items():
                if inner.get("kind") not in BENCHMARK_KINDS:
                    known = ", ".join(BENCHMARK_KINDS)
                    raise ValueError(f"{place}{key}.{name}.kind is {inner.get('kind')!r}; allowed are {known}")
                _refuse_unknown(inner, BENCHMARK_KINDS[inner["kind"]], f"{place}{key}.{name}.")
