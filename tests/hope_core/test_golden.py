"""hope_core against numbers recorded from the released code: HoPE's and 'Multimodal-RoPEs'."""

from typing import Any

import numpy as np
import pytest
import torch

from hope_core import Variant, apply_rotary, compute_positions, get_variant, make_variant, rotary_tables
from hope_core.modeling import install
from tests.hope_core.golden import case_inputs, read_arrays, read_json, tiny_official_inputs, tiny_official_model

CASES = {case["name"]: case for case in read_json("cases.json")["cases"]}
TOKENS = read_json("cases.json")["tokens"]
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
METHODS: dict[str, Variant] = {
    "vanilla": get_variant("vanilla"),
    "tad": get_variant("tad_rope"),
    "tad_time_part": make_variant("frame", positions="frame", frequencies="one_axis"),
    "m_rope": get_variant("m_rope"),
    "videorope": get_variant("videorope"),
    **{f"hope_{scale}": get_variant("hope").at_scale(scale) for scale in SCALES},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_positions_of_real_tokens_are_the_official_ones(case: str, method: str) -> None:
    inputs = case_inputs(CASES[case], TOKENS)
    expected = read_arrays("official_positions.npz")[f"{case}/{method}/position_ids"]
    got = compute_positions(METHODS[method], **inputs).position_ids
    mask = inputs["attention_mask"]
    real = torch.ones(got.shape[1:], dtype=torch.bool) if mask is None else mask.bool()
    assert np.array_equal(got[:, real].numpy(), expected[:, real.numpy()])


@pytest.mark.parametrize(("case", "factors"), read_json("hope_per_segment_factors.json").items())
def test_a_factor_per_image_and_video_gives_the_official_positions(case: str, factors: list[float]) -> None:
    inputs = case_inputs(CASES[case], TOKENS)
    expected = read_arrays("official_positions.npz")[f"{case}/hope_per_segment/position_ids"]
    got = compute_positions(get_variant("hope"), **inputs, scales=factors).position_ids
    real = inputs["attention_mask"].bool()
    assert np.array_equal(got[:, real].numpy(), expected[:, real.numpy()])


@pytest.mark.parametrize(
    ("key", "variant"),
    [("contiguous/m_rope", "m_rope"), ("videorope/videorope", "videorope"), ("hope/hope_0.75", "hope")],
)
def test_rotated_queries_and_keys_are_the_official_ones(key: str, variant: str) -> None:
    data = {name: torch.from_numpy(array) for name, array in read_arrays("official_rotation.npz").items()}
    cos, sin = rotary_tables(get_variant(variant), data[f"{key}/position_ids"], head_dim=128, rope_theta=1e6)
    q, k = apply_rotary(data["q"], data["k"], cos, sin)
    torch.testing.assert_close(q, data[f"{key}/q_out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(k, data[f"{key}/k_out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head_dim", [128, 32])
@pytest.mark.parametrize(("name", "variant"), [("contiguous", "m_rope"), ("videorope", "videorope"), ("hope", "hope")])
def test_slots_and_frequencies_are_the_official_ones(name: str, variant: str, head_dim: int) -> None:
    data = read_arrays("official_rotation.npz")
    assert get_variant(variant).slot_axes(head_dim).tolist() == data[f"slot_axis/{name}/d{head_dim}"].tolist()
    frequencies = get_variant(variant).inverse_frequencies(head_dim, 1e6)
    assert np.array_equal(frequencies.numpy(), data[f"inv_freq/d{head_dim}"])


@pytest.mark.parametrize(
    ("method", "variant"),
    [
        ("vanilla_rope", get_variant("vanilla")),
        ("tad_rope", get_variant("tad_rope")),
        ("m_rope", get_variant("m_rope")),
        ("videorope", get_variant("videorope")),
        ("hope_0.75", get_variant("hope").at_scale(0.75)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_logits_of_the_tiny_model_are_the_official_ones(method: str, variant: Variant) -> None:
    expected = read_arrays("model_logits_445.npz")[f"{method}/A/logits"]
    model = tiny_official_model()
    install(model, variant)
    with torch.no_grad():
        logits = model(**tiny_official_inputs()).logits
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=0, atol=5e-5)


def with_parts(name: str, **parts: Any) -> Variant:
    return get_variant(name).replace(**parts)


# Names and settings of mmropes.json. Its videorope and hope have other slots: only their positions are compared.
OTHERS: dict[str, Variant] = {
    "vanilla-rope": get_variant("vanilla"),
    "mrope_stride1": get_variant("m_rope"),
    "mrope_stride2": get_variant("m_rope").at_scale(2.0),
    "mrope-interleave": get_variant("mrope_interleave"),
    "mrope-interleave_reset": get_variant("mrope_interleave_reset"),
    "mhrope": get_variant("mhrope"),
    "mhrope_reset": get_variant("mhrope_reset"),
    "mhrope_kv8_122": with_parts("mhrope", frequencies={"kind": "headwise", "heads": [1, 2, 2]}),
    "videorope": get_variant("videorope"),
    "hope_0.75": get_variant("hope").at_scale(0.75),
    "hope_1.0": get_variant("hope").at_scale(1.0),
    "hope_1.5": get_variant("hope").at_scale(1.5),
    "circlerope_default": with_parts(
        "circlerope", positions={"kind": "ring", "radius": -1.0, "alpha": -1.0, "centered": False}
    ),
    "circlerope_r10_a05_origin": get_variant("circlerope"),
    "circlerope_auto": with_parts("circlerope", positions={"kind": "ring", "radius": None, "positive": True}),
    "v2pe_16": with_parts("v2pe", positions={"kind": "small_step", "span": 16.0}, scaling="none"),
    "v2pe_64": with_parts("v2pe", positions={"kind": "small_step", "span": 64.0}, scaling="none"),
    "ilrope": get_variant("ilrope"),
    "omnirope": get_variant("omnirope"),
    "mmrope": get_variant("mmrope"),
    "mmrope_488": with_parts("mmrope", positions={"kind": "corner", "strides": [4.0, 8.0, 8.0]}),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("case", ["q3_video", "q2_video_mid"])
def test_positions_of_the_other_variants_are_those_of_their_released_code(case: str, name: str) -> None:
    data, about = read_arrays("mmropes.npz"), read_json("mmropes.json")
    got = compute_positions(OTHERS[name], **case_inputs(about["cases"][case], about["tokens"]))
    # float32 sums of fractions in the released V2PE and CircleRoPE; whole numbers elsewhere
    tolerance = 1e-5 if name.startswith(("v2pe", "circle")) else 0.0
    np.testing.assert_allclose(got.position_ids, data[f"{case}/{name}/position_ids"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.rope_deltas, data[f"{case}/{name}/rope_deltas"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in OTHERS if not name.startswith(("videorope", "hope"))])
def test_slots_and_tables_of_the_other_variants_are_those_of_their_released_code(name: str) -> None:
    data = read_arrays("mmropes.npz")
    axes = OTHERS[name].slot_axes(128, 8)
    assert torch.atleast_2d(axes).tolist() == data[f"{name}/slot_axis"].tolist()
    if f"q3_video/{name}/cos" in data:
        place = torch.from_numpy(data[f"q3_video/{name}/position_ids"])
        tables = rotary_tables(OTHERS[name], place, head_dim=128, rope_theta=1e6, num_key_value_heads=8)
        for table, which in zip(tables, ("cos", "sin"), strict=True):
            expected = torch.from_numpy(data[f"q3_video/{name}/{which}"])
            torch.testing.assert_close(table, torch.cat((expected, expected), -1), rtol=0, atol=1e-5)
