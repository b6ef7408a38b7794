"""A trial of a study: one fine-tuning of a variant with a seed, and the stages that follow from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from experiments.asking import ChoiceStages, NeedleFolder, contexts_of
from experiments.config import EQUAL, PUBLISHED, SEARCHED, Config, VariantEntry
from experiments.scale_search import SearchIdentity, SearchPlacement, search_stage
from experiments.training import num_samples, training_placement
from hope_core import Variant, get_variant, make_variant
from pipelines.asked import Asked
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.folder import SOURCE
from pipelines.benchmarks.needles import FILM_PREFIX, NEEDLE_PREFIX, NeedleBenchmark
from pipelines.engine import Stage
from pipelines.evaluate import EvaluatePlacement, evaluate_stage
from pipelines.evaluate_choice import evaluate_choice_stage
from pipelines.features import features_stage, frozen_features_stage
from pipelines.finetune import finetune_stage
from pipelines.pretrained import PretrainedModel


@dataclass(frozen=True)
class Trial:
    """One fine-tuning and what follows from it; `evaluations` by (benchmark, scale rule).

    `config` is the study's at this trial's setting of the further axes. `scalable`: whether a scale changes anything;
    on Qwen3-VL, whose blocks are single cells, none does.
    """

    name: str
    config: Config
    variant: Variant
    seed: int
    scalable: bool
    published_scale: float | None
    finetune: Stage
    search: Stage | None
    evaluations: dict[tuple[str, str], Stage]

    @property
    def setting(self) -> str:
        """The values of the study's further axes, "" where it has none."""
        return self.config.setting

    @property
    def label(self) -> str:
        """What tables call this trial and those of other seeds."""
        return label(self.variant.name, self.setting)

    def stages(self) -> Iterator[Stage]:
        yield self.finetune
        if self.search:
            yield self.search
        yield from self.evaluations.values()


def label(variant: str, setting: str) -> str:
    return f"{variant} · {setting}" if setting else variant


def build_variant(entry: VariantEntry) -> Variant:
    """A registered variant, or one of the given parts. Raises ValueError in one line."""
    if entry.positions is None or entry.frequencies is None:
        variant = get_variant(entry.name)
    else:
        variant = make_variant(
            entry.name, positions=entry.positions, frequencies=entry.frequencies, scaling=entry.scaling or "none"
        )
    if entry.published_scale is not None and not variant.scalable:
        raise ValueError(
            f"study.variants: {entry.name} has published_scale {entry.published_scale:g}, and no scale to set: "
            f"{variant.unscalable_because}; leave it out"
        )
    return variant


def make_trial(
    config: Config,
    entry: VariantEntry,
    variant: Variant,
    seed: int,
    dataset: Stage,
    frames: Stage,
    choice: Mapping[str, ChoiceStages],
    folders: Mapping[str, NeedleFolder],
) -> Trial:
    """Make the stages of one trial. Raises ValueError for a variant without the scale that a rule asks for."""
    study = config.study
    name = f"{variant.name}[{config.setting}]-s{seed}" if config.setting else f"{variant.name}-s{seed}"
    # One process per variant and seed: nothing that a library keeps in memory can pass from one variant to another.
    finetune = finetune_stage(
        variant,
        config.model,
        config.recipe,
        seed,
        dataset=dataset,
        frames=frames,
        group=name,
        placement=training_placement(config),
        num_samples=num_samples(config),
    )
    num_gpus = config.cluster.training.gpus_per_worker  # who trains on GPUs answers on one

    def encoded(shown: Stage, *media: str) -> Stage:
        if isinstance(config.model, PretrainedModel) and not config.recipe.train_vision:
            return lend(frozen_features_stage(config.model, config.recipe, shown, media=media), num_gpus)
        return lend(features_stage(finetune, shown, media=media, group=name), num_gpus)

    drawn = encoded(frames, FILM_PREFIX, NEEDLE_PREFIX)
    made = {"checkpoint": finetune, "features": drawn, "dataset": dataset}
    asked: dict[str, Asked] = {}
    made_of: dict[str, dict[str, Stage]] = {}
    for key, found in config.benchmarks.items():
        if isinstance(found, NeedleBenchmark):
            asked[key], made_of[key] = found, made
        elif key in folders:
            shown = encoded(folders[key].frames, f"{SOURCE}/")
            asked[key], made_of[key] = folders[key].asked, {"checkpoint": finetune, "features": shown}
    search = None
    scalable = variant.scalable and not config.model.timestamps
    if scalable and SEARCHED in study.scale_rules:
        wanted = study.search
        benchmark = config.benchmarks[wanted.benchmark]
        if isinstance(benchmark, ChoiceBenchmark):
            searched: Asked | ChoiceBenchmark = benchmark.identity
            rests_on = choice[wanted.benchmark].inputs(finetune, wanted.contexts)
        else:
            searched, rests_on = asked[wanted.benchmark], made_of[wanted.benchmark]
        identity = SearchIdentity(searched, wanted.contexts, wanted.scales, wanted.seed, wanted.batch, wanted.prune_p)
        cluster = config.cluster
        where = SearchPlacement(cluster.chunk_tokens, cluster.search_workers, cluster.search_storage, num_gpus)
        search = search_stage(identity, where, rests_on, group=name)
    own = variant.inference_scale if entry.published_scale is None else entry.published_scale
    published = own if scalable else None
    if scalable and published is None and PUBLISHED in study.scale_rules:
        raise ValueError(f"variant {variant.name} has no published scale; add published_scale to it in study.variants")
    placement = EvaluatePlacement(config.cluster.chunk_tokens)
    evaluations = {}
    for benchmark_name, benchmark in config.benchmarks.items():
        for rule in study.scale_rules:
            scale = {PUBLISHED: published, EQUAL: study.equal_scale, SEARCHED: None}[rule] if scalable else None
            chosen = search if rule == SEARCHED else None
            if isinstance(benchmark, ChoiceBenchmark):
                rests_on = choice[benchmark_name].inputs(finetune, benchmark.contexts_tokens)
                evaluations[benchmark_name, rule] = evaluate_choice_stage(
                    benchmark, scale, rests_on, placement=placement, chosen_scale=chosen, group=name
                )
                continue
            evaluations[benchmark_name, rule] = evaluate_stage(
                asked[benchmark_name],
                contexts_of(config, benchmark_name),
                scale,
                placement=placement,
                chosen_scale=chosen,
                group=name,
                **made_of[benchmark_name],
            )
    evaluations = {key: lend(stage, num_gpus) for key, stage in evaluations.items()}
    return Trial(name, config, variant, seed, scalable, published, finetune, search, evaluations)


def lend(stage: Stage, num_gpus: int) -> Stage:
    """The stage, asking for so many GPUs too; no part of its identity."""
    return replace(stage, resources=replace(stage.resources, num_gpus=num_gpus))
