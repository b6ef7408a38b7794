"""The config of a study: YAML groups in conf/ composed by Hydra once, checked, and turned into frozen dataclasses.

Nothing below this module sees Hydra or a DictConfig.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from pipelines.benchmarks.needles import NeedleBenchmark
from pipelines.data_stages import DatasetConfig
from pipelines.finetune import Recipe
from pipelines.models import ModelConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("study", "model", "recipe", "dataset", "benchmark", "cluster")
PUBLISHED, EQUAL, SEARCHED = "published", "equal", "searched"
SCALE_RULES = (PUBLISHED, EQUAL, SEARCHED)


@dataclass(frozen=True)
class SearchConfig:
    """The scale search of each trial, on validation questions only."""

    benchmark: str
    contexts_frames: tuple[int, ...]
    scales: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class StudyConfig:
    """A grid of variants x seeds x benchmarks x context lengths x scale rules, with a baseline.

    `variants` maps a name to null (a registered variant) or to its parts. `published_scales` overrides a variant's
    published factor where the papers used another one on these benchmarks. Lengths in frames.
    """

    name: str
    question: str
    description: str
    variants: dict[str, dict[str, Any] | None]
    baseline: str
    seeds: tuple[int, ...]
    train_frames: int
    contexts_frames: tuple[int, ...]
    scale_rules: tuple[str, ...]
    equal_scale: float
    published_scales: dict[str, float]
    search: SearchConfig

    def __post_init__(self) -> None:
        for field in ("variants", "seeds", "contexts_frames", "scale_rules"):
            if not getattr(self, field):
                raise ValueError(f"study.{field} is empty; give at least one")
        if self.baseline not in self.variants:
            raise ValueError(f"study.baseline is {self.baseline!r}; it must be one of {', '.join(self.variants)}")
        for rule in self.scale_rules:
            if rule not in SCALE_RULES:
                raise ValueError(f"study.scale_rules has {rule!r}; allowed are {', '.join(SCALE_RULES)}")
        for name in self.published_scales:
            if name not in self.variants:
                raise ValueError(f"study.published_scales has {name!r}; the variants are {', '.join(self.variants)}")
        for field in ("seeds", "contexts_frames", "scale_rules"):
            if len(set(getattr(self, field))) != len(getattr(self, field)):
                raise ValueError(f"study.{field} is {list(getattr(self, field))}; give each value once")


@dataclass(frozen=True)
class ClusterConfig:
    """Where stages run; no part of any result's identity. Null means all that the machine has, or no address."""

    address: str | None
    num_cpus: int | None
    num_gpus: int | None
    max_retries: int
    decode_workers: int
    decode_timeout_s: float


@dataclass(frozen=True)
class Config:
    """The whole config. `store` is the folder of every output; `tracking_uri` null means mlflow.db in it."""

    study: StudyConfig
    model: ModelConfig
    recipe: Recipe
    dataset: DatasetConfig
    benchmarks: dict[str, NeedleBenchmark]
    cluster: ClusterConfig
    store: str
    tracking_uri: str | None
    on_failure: typing.Literal["continue", "stop"]

    def __post_init__(self) -> None:
        if self.study.search.benchmark not in self.benchmarks:
            known = ", ".join(self.benchmarks)
            raise ValueError(f"study.search.benchmark is {self.study.search.benchmark!r}; the study has {known}")

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

    Raises ValueError in one line for an unknown study, group, choice or key, an addition, or a value of a wrong type.
    """
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is no override; write key=value, for example study=quickstart")
        key, value = override.split("=", 1)
        if key.startswith(("+", "~")):
            raise ValueError(f"{override!r} adds or removes a key; only known keys can be set: {key.lstrip('+~')}=...")
        if key in GROUPS and value not in choices(key):
            raise ValueError(f"unknown {key} {value!r}; there are {', '.join(choices(key))} (conf/{key}/*.yaml)")
    if not any(override.startswith("study=") for override in overrides):
        raise ValueError(f"no study given; add study=NAME, one of {', '.join(choices('study'))}")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
        values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_line(error)) from None
    _refuse_unknown(values, Config, "")
    try:
        config = TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            reason if first["type"] == "value_error" else f"{place} is {first['input']!r}: {reason}"
        ) from None
    return config, OmegaConf.to_yaml(composed, resolve=True)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(" full_key:")[0].split(" See https:")[0]


def _refuse_unknown(values: Mapping[str, Any], kind: type, place: str) -> None:
    """Raise for a key that no field of the dataclass `kind` reads (a value of one type alone is pydantic's work)."""
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise ValueError(f"unknown key {place}{key}; {place.rstrip('.') or 'the config'} has {known}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            _refuse_unknown(value, typing.cast(type, hint), f"{place}{key}.")
        elif typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            for name, inner in value.items():
                _refuse_unknown(inner, typing.get_args(hint)[1], f"{place}{key}.{name}.")
