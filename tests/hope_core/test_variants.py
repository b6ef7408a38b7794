"""The registry, parts by name, legal and illegal combinations, and variants as JSON."""

import json
from typing import Any

import pytest

from hope_core import (
    AbsoluteTime,
    Dynamic,
    Fixed,
    NoScaling,
    Variant,
    draw_scales,
    get_variant,
    list_variants,
    make_variant,
)
from hope_core.designs import POSITIONS
from hope_core.frequencies import FREQUENCIES

NAMES = [
    "vanilla",
    "tad_rope",
    "m_rope",
    "m_rope_hf5",
    "qwen2_5_time",
    "videorope",
    "hope",
    "hope_x",
    "mrope_interleave",
    "mrope_interleave_reset",
    "mhrope",
    "mhrope_reset",
    "vrope",
    "v2pe",
    "circlerope",
    "ilrope",
    "omnirope",
    "mmrope",
    "videorope_pp",
]

GRID = [
    (positions, frequencies, scaling)
    for positions in ("corner", "diagonal", "frame", "spatial_reset", "sequential", "tad", "corner_time")
    for frequencies in (
        "one_axis",
        "contiguous",
        "temporal_high",
        "temporal_low",
        "temporal_zero",
        "interleaved",
        "headwise",
    )
    for scaling in ("none", "fixed", "dynamic", "absolute_time")
]


def cell(positions: str, frequencies: Any, scaling: str) -> Variant:
    spec = {"kind": "fixed", "factor": 2.0} if scaling == "fixed" else scaling
    return make_variant("cell", positions=positions, frequencies=frequencies, scaling=spec)


def test_every_published_variant_is_registered_under_its_name() -> None:
    assert set(NAMES) <= set(list_variants())
    assert [get_variant(name).name for name in NAMES] == NAMES


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown variant 'rope9'; known: vanilla, tad_rope, m_rope"):
        get_variant("rope9")


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_survives_json(name: str) -> None:
    variant = get_variant(name)
    assert Variant.from_dict(json.loads(json.dumps(variant.to_dict()))) == variant
    assert hash(Variant.from_dict(variant.to_dict())) == hash(variant)


@pytest.mark.parametrize(("positions", "frequencies", "scaling"), GRID)
def test_every_cell_of_the_grid_is_a_variant_or_says_why_not(positions: str, frequencies: str, scaling: str) -> None:
    still = positions in ("sequential", "tad")
    legal = scaling == "absolute_time" if positions == "corner_time" else not still or scaling == "none"
    if legal:
        variant = cell(positions, frequencies, scaling)
        assert Variant.from_dict(variant.to_dict()) == variant
    else:
        with pytest.raises(ValueError, match=r"cannot go together; .*: use scaling") as error:
            cell(positions, frequencies, scaling)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("scope", ["all", "vision"])
def test_unrotated_slots_for_vision_only_against_all_tokens_is_a_parameter(scope: str) -> None:
    variant = cell("diagonal", {"kind": "temporal_zero", "scope": scope}, "none")
    assert variant.slot_axes(128)[-1] == (-1 if scope == "all" else 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"positions": "diag"}, "positions: unknown kind 'diag'; known: sequential, frame, tad, corner"),
        ({"frequencies": "low"}, "frequencies: unknown kind 'low'; known: one_axis, contiguous"),
        ({"scaling": "double"}, "scaling: unknown kind 'double'; known: none, fixed, dynamic, absolute_time"),
        ({"scaling": {"kind": "fixed", "faktor": 2}}, "scaling fixed: unknown parameter faktor; known: factor"),
        ({"scaling": "fixed"}, "scaling fixed: give .*factor"),
        ({"scaling": {"factor": 2}}, "scaling: unknown kind 'None'"),
        ({"scaling": {"kind": "fixed", "factor": -1}}, "factor is -1; it must be a finite number above zero"),
        ({"scaling": {"kind": "fixed", "factor": "2"}}, "factor is '2'; it must be a finite number"),
        ({"scaling": {"kind": "fixed", "factor": True}}, "factor is True"),
        ({"scaling": {"kind": "dynamic", "choices": []}}, "choices is .*one factor or more"),
        ({"scaling": {"kind": "dynamic", "choices": 0.5}}, "choices is 0.5; it must be a list"),
        ({"scaling": {"kind": "dynamic", "choices": [1, 0]}}, "choices is 0; it must be"),
        ({"frequencies": {"kind": "temporal_zero", "scope": "text"}}, "scope is 'text'; known: all, vision"),
        ({"frequencies": {"kind": "headwise", "heads": [1, 2]}}, "heads is .*; expected three counts"),
        ({"positions": {"kind": "corner", "strides": [1, 2]}}, "strides is .*; expected three numbers"),
        ({"scaling": {"kind": "dynamic", "inference": 0}}, "inference is 0; it must be"),
        ({"scaling": {"kind": "absolute_time", "tokens_per_second": 0}}, "tokens_per_second is 0; it must be"),
        ({"frequencies": {"kind": "headwise", "heads": [2, -1, 2]}}, "heads is .*; expected three counts"),
        ({"frequencies": {"kind": "headwise", "heads": [0, 0, 0]}}, "heads is .*; expected three counts"),
        ({"frequencies": {"kind": "temporal_low_extended", "extension": 0}}, "extension is 0; it must be"),
        ({"frequencies": {"kind": "temporal_low_extended", "trained_tokens": 1}}, "trained_tokens - 1 is 0"),
        ({"positions": {"kind": "corner", "strides": [1, 1, 0]}}, "strides is 0; it must be"),
        ({"positions": {"kind": "small_step", "span": -1}}, "span is -1; it must be"),
        ({"positions": {"kind": "ring", "radius": 0}}, "radius is 0; it must be another number"),
        ({"positions": "symmetric"}, "symmetric holds VRoPE's four indices and only four_way reads them"),
        ({"frequencies": "four_way"}, "symmetric holds VRoPE's four indices and only four_way reads them"),
        ({"positions": "temporal_low"}, "positions: unknown kind 'temporal_low'"),
        ({"positions": Fixed(2.0)}, "is no positions part; known: sequential"),
        ({"name": ""}, "variant name is ''"),
    ],
)
def test_a_wrong_part_is_refused_in_one_line(spec: dict[str, Any], message: str) -> None:
    good = {"name": "cell", "positions": "diagonal", "frequencies": "temporal_low", "scaling": "none"}
    with pytest.raises(ValueError, match=message) as error:
        make_variant(**(good | spec))
    assert "\n" not in str(error.value)


def test_a_name_in_the_place_of_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="positions: 'diagonal' is no positions part"):
        Variant("cell", "diagonal", FREQUENCIES["temporal_low"](), NoScaling())  # type: ignore[arg-type]


def test_from_dict_refuses_other_keys() -> None:
    value = get_variant("hope").to_dict()
    with pytest.raises(ValueError, match="expected name, positions, frequencies, scaling"):
        Variant.from_dict(value | {"colour": "red"})
    with pytest.raises(ValueError, match="expected name, positions, frequencies, scaling"):
        Variant.from_dict({"name": "hope"})


def test_a_mixed_cell_takes_one_line() -> None:
    scaling = {"kind": "dynamic", "choices": [0.5, 0.75, 1, 1.25, 1.5]}
    variant = make_variant("low_dynamic", positions="diagonal", frequencies="temporal_low", scaling=scaling)
    assert variant == Variant("low_dynamic", POSITIONS["diagonal"](), FREQUENCIES["temporal_low"](), Dynamic())
    assert get_variant("hope").replace(name="low_dynamic", frequencies="temporal_low", scaling=Dynamic()) == variant


@pytest.mark.parametrize(
    ("axis", "whole", "decimal"),
    [
        ("scaling", {"kind": "fixed", "factor": 2}, {"kind": "fixed", "factor": 2.0}),
        (
            "scaling",
            {"kind": "dynamic", "choices": [1, 2], "inference": 1},
            {"kind": "dynamic", "choices": [1.0, 2.0], "inference": 1.0},
        ),
        (
            "scaling",
            {"kind": "absolute_time", "tokens_per_second": 2},
            {"kind": "absolute_time", "tokens_per_second": 2.0},
        ),
        ("positions", {"kind": "corner", "strides": [4, 8, 8]}, {"kind": "corner", "strides": [4.0, 8.0, 8.0]}),
    ],
)
def test_a_whole_number_is_written_as_the_decimal_that_it_equals(axis: str, whole: Any, decimal: Any) -> None:
    one, other = (get_variant("hope").replace(**{axis: spec}).to_dict() for spec in (whole, decimal))
    assert json.dumps(one) == json.dumps(other)


def test_a_variant_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        get_variant("hope").name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_can_be_set_exactly_where_it_has_an_effect(name: str) -> None:
    variant = get_variant(name)
    assert variant.scalable == (name not in ("vanilla", "tad_rope", "qwen2_5_time"))
    if variant.scalable:
        assert variant.at_scale(0.75).scaling == Fixed(0.75)
        assert variant.at_scale(0.75).name == name
        assert variant.at_scale(0.75).at_scale(2) == variant.at_scale(2.0)
    else:
        with pytest.raises(ValueError, match=f"{name} has no scale to set: "):
            variant.at_scale(0.75)


def test_the_published_inference_scales() -> None:
    scales = {
        name: get_variant(name).inference_scale for name in ("m_rope", "videorope", "hope", "v2pe", "qwen2_5_time")
    }
    assert scales == {"m_rope": 1.0, "videorope": 2.0, "hope": 1.5, "v2pe": None, "qwen2_5_time": None}


def test_parts_without_parameters_are_the_published_ones() -> None:
    assert AbsoluteTime().tokens_per_second == 2
    assert Dynamic().choices == (0.5, 0.75, 1.0, 1.25, 1.5)
    assert POSITIONS["corner"]().to_dict()["strides"] == [1, 1, 1]
    assert POSITIONS["small_step"]().to_dict()["span"] is None
    ring = {"kind": "ring", "radius": 10, "alpha": 0.5, "centered": True, "positive": False}
    assert POSITIONS["ring"]().to_dict() == ring
    extended = {"kind": "temporal_low_extended", "extension": 4, "trained_tokens": 32768}
    assert FREQUENCIES["temporal_low_extended"]().to_dict() == extended
    assert FREQUENCIES["temporal_zero"]().to_dict() == {"kind": "temporal_zero", "scope": "all"}


def test_drawn_factors_depend_on_seed_epoch_and_sample_alone() -> None:
    hope = get_variant("hope")

    def drawn(number: int = 20, *, seed: int = 0, epoch: int = 0, sample_id: str | int = "clip-1") -> tuple[float, ...]:
        return draw_scales(hope, number, seed=seed, epoch=epoch, sample_id=sample_id)

    assert drawn() == drawn()
    assert drawn(7) == drawn(20)[:7]
    others = [drawn(seed=1), drawn(epoch=1), drawn(sample_id="clip-2"), drawn()]
    assert len(set(others)) == 4
    assert drawn(sample_id=12) == drawn(sample_id="12")


def test_drawn_factors_are_the_same_in_every_release() -> None:
    # A training that resumes under another release must go on with the factors that it began with.
    drawn = draw_scales(get_variant("hope"), 8, seed=1, epoch=2, sample_id="clip-1")
    assert drawn == (0.5, 0.5, 1.25, 1.5, 0.75, 0.5, 0.75, 1.5)


def test_drawn_factors_are_uniform_over_the_choices() -> None:
    hope = get_variant("hope")
    counts = dict.fromkeys((0.5, 0.75, 1.0, 1.25, 1.5), 0)
    for sample in range(5000):
        for factor in draw_scales(hope, 1, seed=3, epoch=1, sample_id=sample):
            counts[factor] += 1
    # 5 standard deviations of a binomial with p = 0.2
    assert all(abs(count - 1000) < 5 * (5000 * 0.2 * 0.8) ** 0.5 for count in counts.values())


def test_drawing_does_not_touch_the_process_s_generators() -> None:
    import random

    random.seed(1)
    state = random.getstate()
    draw_scales(get_variant("hope"), 5, seed=0, epoch=0, sample_id=0)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("name", "factor"), [("vanilla", 1.0), ("m_rope", 1.0), ("videorope", 2.0), ("qwen2_5_time", 1.0)]
)
def test_a_variant_that_is_not_dynamic_draws_its_own_factor(name: str, factor: float) -> None:
    assert draw_scales(get_variant(name), 3, seed=0, epoch=0, sample_id=0) == (factor,) * 3


def test_the_parts_of_the_published_variants() -> None:
    parts = {
        name: (variant.positions.kind, variant.frequencies.kind, type(variant.scaling))
        for name in NAMES
        for variant in [get_variant(name)]
    }
    assert parts["vanilla"] == ("sequential", "one_axis", NoScaling)
    assert parts["m_rope"] == ("corner", "contiguous", NoScaling)
    assert parts["qwen2_5_time"] == ("corner_time", "contiguous", AbsoluteTime)
    assert parts["videorope"] == ("diagonal", "temporal_low", Fixed)
    assert parts["hope"] == ("diagonal", "temporal_zero", Dynamic)
    assert parts["hope_x"] == ("diagonal", "temporal_zero_half", Dynamic)
    assert parts["videorope_pp"] == ("diagonal", "temporal_low_extended", Fixed)
