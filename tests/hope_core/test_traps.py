"""What the published code gets wrong, each as a fact that holds here."""

from typing import Any

import pytest
import torch
from transformers.models.qwen2_vl import modeling_qwen2_vl

from hope_core import Variant, compute_positions, get_variant, make_variant, rotary_tables
from hope_core.modeling import install
from tests.hope_core.golden import case_inputs, read_arrays, read_json, tiny_official_inputs, tiny_official_model
from tests.hope_core.layouts import TOKENS, Batch
from tests.hope_core.tiny import assert_generates_as_without_cache, tiny_inputs, tiny_model

HOPE = get_variant("hope").at_scale(0.75)


def official_logits(name: str) -> torch.Tensor:
    return torch.from_numpy(read_arrays("model_logits_445.npz")[f"{name}/A/logits"])


def test_m_rope_after_hope_in_one_process_rotates_as_m_rope() -> None:
    functions = dict(vars(modeling_qwen2_vl))
    inputs = tiny_official_inputs()
    for variant, name in ((HOPE, "hope_0.75"), (get_variant("m_rope"), "m_rope"), (HOPE, "hope_0.75")):
        model = tiny_official_model()
        install(model, variant)
        with torch.no_grad():
            logits = model(**inputs).logits
        torch.testing.assert_close(logits, official_logits(name), rtol=0, atol=5e-5)
    assert all(vars(modeling_qwen2_vl)[name] is value for name, value in functions.items())


def test_generated_tokens_go_on_from_the_prompt_for_hope() -> None:
    model, inputs = tiny_model("qwen2_vl"), tiny_inputs("qwen2_vl")
    install(model, HOPE)
    assert_generates_as_without_cache(model, inputs)
    places = []
    rotary = model.model.language_model.rotary_emb
    rotary.register_forward_hook(lambda _, given, __: places.append(given[1][:, 0, -1].tolist()))
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert places == [[places[0][0] + step] * 3 for step in range(3)]
    assert places[0][0] == 13.5  # 3 texts and vision_start, six steps of 0.75, vision_end and 4 texts


def test_a_dynamic_variant_never_draws_in_eval_mode() -> None:
    model = tiny_model("qwen2_vl")
    install(model, get_variant("hope"))
    with pytest.raises(ValueError, match="in eval mode"):
        model(**tiny_inputs("qwen2_vl"))


def mixed_rows(**changes: Any) -> dict[str, Any]:
    rows = [[("video", 2, 1, 1), ("text", 2)], [("text", 5)]]
    return Batch(rows, [(0, 0), (1, 0)], wrap=False).inputs | changes


def test_no_mask_a_text_only_row_and_a_trailing_vision_start_are_all_fine() -> None:
    inputs = mixed_rows(attention_mask=None)
    inputs["input_ids"][0, -1] = TOKENS.vision_start
    positions = compute_positions(HOPE, **inputs)
    assert positions.position_ids[0].tolist() == [[0, 0.75, 1.75, 2.75, 3.75, 4.75], [0, 1, 2, 3, 4, 5]]


def test_left_over_grids_are_an_error() -> None:
    with pytest.raises(ValueError, match="video_grid_thw has 2 rows, the tokens hold 1"):
        compute_positions(HOPE, **mixed_rows(video_grid_thw=torch.tensor([[2, 2, 2], [2, 2, 2]])))


def test_each_name_has_its_own_frequencies_and_no_name_has_two() -> None:
    maps = {name: tuple(get_variant(name).slot_axes(128).tolist()) for name in ("m_rope", "videorope", "hope")}
    assert len(set(maps.values())) == 3
    with pytest.raises(ValueError, match="unknown variant 'mrope'"):
        get_variant("mrope")


@pytest.mark.parametrize("name", ["videorope", "hope"])
def test_slot_0_turns_with_h_and_slot_1_with_w(name: str) -> None:
    assert get_variant(name).slot_axes(128)[:2].tolist() == [1, 2]
    other = read_arrays("mmropes.npz")[f"{name if name == 'videorope' else 'hope_1.0'}/slot_axis"][0]
    assert other[:3].tolist() != [1, 2, 1]  # the other release's layout, so this test can fail


def test_stock_transformers_restarts_the_text_inside_a_long_video_and_m_rope_does_not() -> None:
    model, inputs = tiny_model("qwen2_vl"), tiny_inputs("qwen2_vl", frames=12)
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask")
    given = {name: inputs[name] for name in names}
    stock, stock_delta = model.model.get_rope_index(**given)
    install(model, get_variant("m_rope_hf5"))
    same, own_delta = model.model.get_rope_index(**given)
    install(model, get_variant("m_rope"))
    older, older_delta = model.model.get_rope_index(**given)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(stock.float(), same)
    assert (stock[0, 0, -1], stock.max()) == (10, 15)  # the last text lies among the frames
    assert older[0, 0, -1] == older.max() == 20
    # stock decodes as if the text had not been moved back
    assert [delta.item() + length for delta in (stock_delta, own_delta, older_delta)] == [16, 11, 21]


@pytest.mark.parametrize("name", ["m_rope", "m_rope_hf5", "hope"])
def test_rope_deltas_continue_after_the_last_token_of_a_row(name: str) -> None:
    case = next(case for case in read_json("cases.json")["cases"] if case["name"] == "video_long")
    inputs = case_inputs(case, read_json("cases.json")["tokens"])
    variant = get_variant(name) if name != "hope" else HOPE
    positions = compute_positions(variant, **inputs)
    last = positions.position_ids[0, 0, -1].item()
    assert positions.rope_deltas.item() + inputs["input_ids"].shape[1] == last + 1


@pytest.mark.parametrize(("factor", "paper"), [(1.0, True), (1.5, False), (0.5, False)])
def test_text_after_a_hope_video_follows_the_code_not_the_formula(factor: float, paper: bool) -> None:
    frames = 8
    inputs = Batch([[("text", 4), ("video", frames, 2, 2), ("text", 1)]], [(0, 0)], wrap=False).inputs
    after = compute_positions(get_variant("hope").at_scale(factor), **inputs).position_ids[0, 0, -1].item()
    assert after == 4 + factor * (frames - 1) + 1
    assert (after == 4 + factor * frames) == paper


def test_zeroed_slots_are_zeroed_for_text_too_unless_the_variant_says_otherwise() -> None:
    vision_only = make_variant("v", positions="diagonal", frequencies={"kind": "temporal_zero", "scope": "vision"})

    def last_slot(variant: Variant) -> list[float]:
        inputs = Batch([[("text", 3), ("video", 2, 1, 1), ("text", 1)]], [(0, 0)], wrap=False).inputs
        place = compute_positions(variant.at_scale(1.0), **inputs).position_ids
        return rotary_tables(variant, place, head_dim=32, rope_theta=2.0)[1][0, :, 15].tolist()

    assert last_slot(get_variant("hope")) == [0.0] * 6
    turned = last_slot(vision_only)
    assert turned[3:5] == [0.0, 0.0]
    assert all(value != 0 for value in (*turned[1:3], turned[5]))
