"""A grid's further axes: settings, variants of parts, exclusions."""

import pytest

from experiments.compose import load_config
from experiments.grid import Grid, build_grid
from experiments.study import restrict
from experiments.study_record import study_record

RATES = "study.axes={recipe.lr: [0.001, 0.002]}"
TWO_AXES = "study.axes={recipe.lr: [0.001, 0.002], model.num_layers: [1, 2]}"


def grid(*overrides: str) -> Grid:
    return build_grid(load_config(["study=smoke", *overrides])[0])


def test_every_setting_has_every_trial_at_its_own_config() -> None:
    found = grid(TWO_AXES)
    assert len(found.trials) == 2 * 2 * 2
    assert len(found.cells) == 8 * len(grid().cells) // 2
    by_name = {trial.name: trial for trial in found.trials}
    trial = by_name["hope[recipe.lr=0.002, model.num_layers=1]-s0"]
    assert (trial.config.recipe.lr, trial.config.model.num_layers) == (0.002, 1)  # type: ignore[union-attr]
    assert trial.finetune.config.identity.recipe.lr == 0.002
    assert trial.label == "hope · recipe.lr=0.002, model.num_layers=1"
    assert len({cell.id for cell in found.cells}) == len(found.cells)


def test_a_setting_has_the_stages_of_a_study_without_axes_and_shares_the_data() -> None:
    plain = {stage.fingerprint for stage in grid("recipe.lr=0.002").targets}
    there = {stage.fingerprint for trial in grid(RATES).trials for stage in trial.stages() if "0.002" in trial.name}
    assert there == plain
    assert len({trial.finetune.inputs["frames"].fingerprint for trial in grid(RATES).trials}) == 1


def test_a_data_set_that_differs_asks_other_questions() -> None:
    found = grid("study.axes={dataset.num_films: [4, 5]}")
    assert len({cell.question_set for cell in found.cells}) == 2
    assert len({trial.finetune.fingerprint for trial in found.trials}) == 4


def test_each_variant_of_the_record_names_its_baseline_at_the_same_setting() -> None:
    config, _ = load_config(["study=smoke", RATES])
    entries = study_record(config, build_grid(config))["variants"]
    assert [(entry["label"], entry["baseline"]) for entry in entries] == [
        ("m_rope · recipe.lr=0.001", "m_rope · recipe.lr=0.001"),
        ("hope · recipe.lr=0.001", "m_rope · recipe.lr=0.001"),
        ("m_rope · recipe.lr=0.002", "m_rope · recipe.lr=0.002"),
        ("hope · recipe.lr=0.002", "m_rope · recipe.lr=0.002"),
    ]
    assert (entries[1]["variant"], entries[1]["setting"]) == ("hope", "recipe.lr=0.001")


def test_excluded_cells_and_what_only_they_need_are_left_out() -> None:
    found = grid(RATES, "study.exclude=[{variant: hope, recipe.lr: 0.002}, {scale_rule: searched}]")
    assert "hope[recipe.lr=0.002]-s0" not in {trial.name for trial in found.trials}
    assert {cell.scale_rule for cell in found.cells} == {"published"}
    assert not any(stage.name == "scale_search" for stage in found.targets)


def test_only_takes_names_with_brackets_as_they_are() -> None:
    found = grid(RATES)
    assert {cell.trial.name for cell in restrict(found, "hope[recipe.lr=0.001]-s0").cells} == {
        "hope[recipe.lr=0.001]-s0"
    }
    assert len(restrict(found, "*[recipe.lr=0.001]*/32/published").cells) == 2
    one = restrict(found, "hope[recipe.lr=0.001]-s0/v_niah_d/32/published")
    assert [stage.name for stage in one.targets] == ["finetune", "evaluate"]  # nothing of the other rule


def test_parts_become_variants_with_registered_names_where_there_are_any() -> None:
    parts = (
        "study.parts={positions: [sequential, corner, diagonal], frequencies: [contiguous, temporal_zero], "
        "scaling: [none, {kind: dynamic, inference: 0.75}]}"
    )
    config, _ = load_config(["study=smoke", "study.variants=[]", parts])
    names = [entry.name for entry in config.study.variants]
    assert "m_rope" in names
    assert "hope" in names
    assert "diagonal+contiguous+dynamic" in names
    assert not any(name.startswith("sequential") and name.endswith("dynamic") for name in names)
    trials = {trial.variant.name: trial for trial in build_grid(config).trials}
    assert trials["hope"].published_scale == 0.75
    assert trials["hope"].variant == next(trial for trial in grid().trials if trial.variant.name == "hope").variant
    assert trials["corner+temporal_zero+none"].variant.frequencies.kind == "temporal_zero"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([RATES, "recipe.lr=0.1"], r"recipe\.lr is an axis of this study; set study\.axes"),
        (["study.axes={seeds: [1, 2]}"], r"study\.axes has 'seeds'; allowed are model, recipe, dataset"),
        (["study.axes={recipe.lr: []}"], r"study\.axes\.recipe\.lr is \[\]; give a list"),
        (["study.axes={recipe.lr: [1, 1]}"], r"give a list of one value or more, each once"),
        (["study.axes={model: [tiny, huge]}"], r"unknown model 'huge'; there are .*tiny"),
        (["study.axes={recipe.stps: [1]}"], r"unknown key recipe\.stps"),
        (["study.exclude=[{variant: m_rope}]"], r"leaves hope seed 0 without its baseline m_rope"),
        (["study.exclude=[{varian: hope}]"], r"study\.exclude has 'varian'; allowed are variant, seed"),
        (["study.exclude=[{variant: rope}]"], r"names no cell that is left"),
        (["study.exclude=[{seed: 0}]"], r"study\.exclude leaves no cell"),
        (["study.parts={positions: [corner]}"], r"give a list for each of positions, frequencies, scaling"),
        (["study.parts={positions: [x], frequencies: [x], scaling: [x]}"], r"positions: unknown kind 'x'; known"),
        (
            ["study.axes={recipe.lr: [0.001, 0.0010000001]}"],
            r"recipe\.lr has two values called 0\.001; let them differ in",
        ),
        (["study.axes={model.num_layers: [1, 1.0]}"], r"model\.num_layers has two values called 1; let them differ"),
    ],
)
def test_axes_that_cannot_be_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        grid(*overrides)
    assert "\n" not in str(caught.value)
