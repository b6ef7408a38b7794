"""Variants inside real (tiny, random) models of the three families."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, Qwen2VLForConditionalGeneration

from hope_core import compute_positions, draw_scales, get_variant, make_variant
from hope_core.modeling import (
    export_stock,
    install,
    load,
    set_scale,
    variant_of,
    vision_tokens,
)
from tests.hope_core.tiny import (
    END,
    FAMILIES,
    IMAGE,
    PATCH,
    START,
    assert_generates_as_without_cache,
    grow,
    kinds_of,
    tiny_config,
    tiny_inputs,
    tiny_model,
    video_tokens,
)

HOPE = get_variant("hope").at_scale(0.75)
# fractional, doubled, head-wise, derived fourth index
SOME = [HOPE, get_variant("tad_rope"), get_variant("mhrope"), get_variant("vrope")]
every_family = pytest.mark.parametrize("family", FAMILIES)
some_variants = pytest.mark.parametrize("variant", SOME, ids=lambda variant: variant.name)


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def with_variant(family: str, variant: Any) -> Any:
    model = tiny_model(family)
    install(model, variant)
    return model


@pytest.mark.parametrize(
    ("family", "name", "frames", "extra"),
    [
        ("qwen2_vl", "m_rope", 2, {}),
        ("qwen2_vl", "m_rope_hf5", 7, {}),
        ("qwen2_5_vl", "qwen2_5_time", 2, {"second_per_grid_ts": torch.tensor([1.0])}),
        ("qwen3_vl", "mrope_interleave", 7, {}),
    ],
)
def test_the_stock_model_is_one_of_the_variants(family: str, name: str, frames: int, extra: dict[str, Tensor]) -> None:
    # two frames, at most two positions apart, are fewer than four columns: there stock and m_rope resume alike
    inputs = tiny_inputs(family, frames=frames, columns=4) | extra
    stock = logits(tiny_model(family), inputs)
    torch.testing.assert_close(logits(with_variant(family, get_variant(name)), inputs), stock, rtol=0, atol=1e-5)


def test_a_long_video_is_not_indexed_as_transformers_5_does() -> None:
    inputs = tiny_inputs("qwen2_vl", frames=7)
    stock = tiny_model("qwen2_vl")
    assert (logits(with_variant("qwen2_vl", get_variant("m_rope")), inputs) - logits(stock, inputs)).abs().max() > 0.1


@every_family
def test_install_changes_one_instance_only(family: str) -> None:
    config = tiny_config(family)
    torch.manual_seed(0)
    kind = type(tiny_model(family))
    first, other = kind(config).eval(), kind(config).eval()
    inputs, before = tiny_inputs(family), logits(other, tiny_inputs(family))
    install(first, HOPE)
    assert type(other) is kind
    assert other.config is config
    assert not hasattr(config, "rope_variant")
    assert torch.equal(logits(other, inputs), before)
    assert torch.equal(logits(tiny_model(family), inputs), logits(tiny_model(family), inputs))


@every_family
def test_variants_follow_each_other_in_one_model_without_a_trace(family: str) -> None:
    model, inputs = tiny_model(family), tiny_inputs(family)
    seen: dict[str, Tensor] = {}
    for name in ("hope", "m_rope", "mhrope", "hope", "tad_rope", "m_rope", "vrope", "mhrope"):
        install(model, get_variant(name).at_scale(0.75) if name == "hope" else get_variant(name))
        now = logits(model, inputs)
        assert torch.equal(seen.setdefault(name, now), now)
    assert len({float(value.sum()) for value in seen.values()}) == 5


@every_family
@some_variants
def test_generation_with_left_padding_and_no_padding_agree(family: str, variant: Any) -> None:
    model = with_variant(family, variant)
    plain, padded = tiny_inputs(family), tiny_inputs(family, left_pad=3)
    torch.testing.assert_close(logits(model, padded)[:, 3:], logits(model, plain), rtol=0, atol=1e-4)
    assert_generates_as_without_cache(model, plain)
    assert_generates_as_without_cache(model, padded)


def batch_of_three(family: str) -> dict[str, Tensor]:
    """Left-padded rows: video, text only, image and video (pixels follow in that order)."""
    video = video_tokens(family, 3, 2, 2)
    rows = [[3, *video, 4, 5], [6, 7], [8, START, *[IMAGE] * 6, END, 9, *video]]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    image, videos = torch.tensor([[1, 4, 6]]), torch.tensor([[3, 4, 4]] * 2)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(24, PATCH),
        "image_grid_thw": image,
        "pixel_values_videos": torch.randn(96, PATCH),
        "video_grid_thw": videos,
        "mm_token_type_ids": kinds_of(ids),
    }


@every_family
@some_variants
def test_a_mixed_batch_generates_as_without_cache(family: str, variant: Any) -> None:
    assert_generates_as_without_cache(with_variant(family, variant), batch_of_three(family), steps=3)


@every_family
@some_variants
def test_beams_keep_every_row_s_own_positions(family: str, variant: Any) -> None:
    model, inputs = with_variant(family, variant), tiny_inputs(family)
    with torch.no_grad():
        made = model.generate(
            **inputs, max_new_tokens=3, num_beams=2, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        whole = dict(inputs)
        score = torch.zeros(())
        for token in made.sequences[0, inputs["input_ids"].shape[1] :]:
            score = score + model(**whole).logits[0, -1].log_softmax(-1)[token]
            whole = grow(whole, token.view(1, 1))
    torch.testing.assert_close(made.sequences_scores[0], score / 3, rtol=0, atol=1e-4)


@every_family
@some_variants
@pytest.mark.parametrize("masked", [True, False])
def test_cached_steps_by_hand_equal_the_whole_forward(family: str, variant: Any, masked: bool) -> None:
    model, inputs = with_variant(family, variant), tiny_inputs(family)
    whole = grow(grow(inputs, torch.tensor([[11]])), torch.tensor([[12]]))
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        for step in (11, 12):
            count = cache.get_seq_length() + 1
            mask = {"attention_mask": torch.ones(1, count, dtype=torch.long)} if masked else {}
            out = model(input_ids=torch.tensor([[step]]), past_key_values=cache, use_cache=True, **mask)
    torch.testing.assert_close(out.logits[:, -1], logits(model, whole)[:, -1], rtol=0, atol=1e-4)


@every_family
@some_variants
def test_text_alone_generates_as_without_cache(family: str, variant: Any) -> None:
    ids = torch.tensor([[3, 4, 5, 6], [0, 7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "mm_token_type_ids": torch.zeros_like(ids)}
    model = with_variant(family, variant)
    assert_generates_as_without_cache(model, inputs)
    del inputs["mm_token_type_ids"]
    assert logits(model, inputs).isfinite().all()


@every_family
@some_variants
def test_generation_goes_on_from_the_cache_of_an_earlier_turn(family: str, variant: Any) -> None:
    model, inputs = with_variant(family, variant), tiny_inputs(family)
    with torch.no_grad():
        first = model.generate(**inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
        turn = torch.cat((first.sequences, torch.tensor([[21, 22, 23]])), 1)
        again = {"input_ids": turn, "attention_mask": torch.ones_like(turn), "mm_token_type_ids": kinds_of(turn)}
        vision = {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw")}
        fresh = model.generate(**again, **vision, max_new_tokens=3, do_sample=False)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)  # leaves rope_deltas as after the first turn
        continued = model.generate(**again, past_key_values=first.past_key_values, max_new_tokens=3, do_sample=False)
    assert continued.tolist() == fresh.tolist()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@every_family
@some_variants
def test_gradient_checkpointing_changes_no_gradient(family: str, variant: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = with_variant(family, variant).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = tiny_inputs(family)
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append(model.model.language_model.layers[0].self_attn.q_proj.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@every_family
@some_variants
def test_two_packed_samples_do_not_see_each_other(family: str, variant: Any) -> None:
    model = with_variant(family, variant)
    sample = tiny_inputs(family)
    ids, grid = sample["input_ids"], sample["video_grid_thw"]
    rows = compute_positions(variant, ids, tokens=vision_tokens(model.config), video_grid_thw=grid).position_ids
    text = torch.arange(ids.shape[1], dtype=torch.float32).expand(1, 1, -1)
    one = torch.cat((text, rows))
    packed = {
        "input_ids": ids.repeat(1, 2),
        "pixel_values_videos": sample["pixel_values_videos"].repeat(2, 1),
        "video_grid_thw": grid.repeat(2, 1),
        "position_ids": torch.cat((one, one), -1),
    }
    with torch.no_grad():
        both = model(**packed, use_cache=False).logits  # with a cache transformers does not look for packing
    alone = logits(model, sample)
    torch.testing.assert_close(both[:, ids.shape[1] :], alone, rtol=0, atol=1e-4)


@every_family
def test_a_copy_of_a_model_is_independent(family: str) -> None:
    model, inputs = with_variant(family, get_variant("mhrope")), tiny_inputs(family)
    twin = copy.deepcopy(model)
    before = logits(twin, inputs)
    with torch.no_grad():
        model.model.language_model.layers[0].self_attn.q_proj.weight.zero_()
    install(model, HOPE)
    assert torch.equal(logits(twin, inputs), before)
    assert variant_of(twin) == get_variant("mhrope")


@every_family
def test_bfloat16_models_rotate_with_float32_angles(family: str) -> None:
    model = with_variant(family, HOPE).to(torch.bfloat16)
    rotary = model.model.language_model.rotary_emb
    place = torch.full((3, 1, 1), 300.37)
    cos, _ = rotary(torch.zeros(1, dtype=torch.bfloat16), place)
    assert cos.dtype == torch.bfloat16
    assert cos[0, 0, 0] == place[0, 0, 0].cos().to(torch.bfloat16)
    assert cos[0, 0, 0] != torch.tensor(300.0).cos().to(torch.bfloat16)
    assert logits(model, tiny_inputs(family)).isfinite().all()


@every_family
def test_autocast_rotates_with_float32_angles(family: str) -> None:
    model, place = with_variant(family, HOPE), torch.full((3, 1, 1), 300.37)
    rotary = model.model.language_model.rotary_emb
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cos, _ = rotary(torch.zeros(1), place)
    assert torch.equal(cos, rotary(torch.zeros(1), place)[0])


def test_a_dynamic_variant_refuses_to_run_without_a_factor_and_says_what_to_do() -> None:
    model, inputs = with_variant("qwen2_vl", get_variant("hope")), tiny_inputs("qwen2_vl")
    with pytest.raises(
        ValueError, match=r"hope: .* in eval mode; choose a factor for inference: set_scale\(model, a\)"
    ):
        model(**inputs)
    with pytest.raises(ValueError, match="in eval mode"):
        model.generate(**inputs, max_new_tokens=1)
    model.train()
    with pytest.raises(ValueError, match=r"in training mode; pass position_ids from compute_positions.*draw_scales"):
        model(**inputs)


def test_a_dynamic_variant_trains_with_the_positions_of_its_drawn_factors() -> None:
    model, inputs = with_variant("qwen2_vl", get_variant("hope")), tiny_inputs("qwen2_vl")
    factors = draw_scales(get_variant("hope"), 1, seed=0, epoch=0, sample_id="a")
    positions = compute_positions(
        get_variant("hope"),
        inputs["input_ids"],
        tokens=vision_tokens(model.config),
        video_grid_thw=inputs["video_grid_thw"],
        attention_mask=inputs["attention_mask"],
        scales=factors,
    )
    model.train()
    given = model(**inputs, position_ids=positions.position_ids).logits
    install(model, get_variant("hope").at_scale(factors[0]))
    torch.testing.assert_close(model(**inputs).logits, given)


def test_set_scale_changes_the_positions_and_nothing_else() -> None:
    model, inputs = with_variant("qwen2_vl", get_variant("hope")), tiny_inputs("qwen2_vl")
    set_scale(model, 0.5)
    half = logits(model, inputs)
    set_scale(model, 1.5)
    assert (logits(model, inputs) - half).abs().max() > 0.1
    set_scale(model, 0.5)
    assert torch.equal(logits(model, inputs), half)
    assert variant_of(model) == get_variant("hope").at_scale(0.5)


def test_a_factor_has_no_effect_on_qwen3_vl() -> None:
    inputs = tiny_inputs("qwen3_vl")
    model = with_variant("qwen3_vl", HOPE)
    before = logits(model, inputs)
    set_scale(model, 2.0)
    assert torch.equal(logits(model, inputs), before)


def test_models_and_sizes_that_cannot_hold_a_variant_are_refused_and_left_alone() -> None:
    with pytest.raises(ValueError, match="Linear cannot hold a variant; known: Qwen2VLForConditionalGeneration"):
        install(nn.Linear(2, 2), HOPE)  # type: ignore[arg-type]
    model = tiny_model("qwen2_vl")
    with pytest.raises(ValueError, match="Qwen2VLForConditionalGeneration holds no variant; use install"):
        variant_of(model)
    heads = make_variant("h", positions="corner", frequencies={"kind": "headwise", "heads": [2, 3, 3]})
    with pytest.raises(ValueError, match="need 8 key/value heads, have 4"):
        install(model, heads)
    assert type(model) is Qwen2VLForConditionalGeneration
    model.config.text_config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ValueError, match="rope_type 'linear' changes the frequencies itself"):
        install(model, HOPE)


@every_family
def test_a_checkpoint_keeps_a_dynamic_variant_and_auto_classes_find_it(family: str, tmp_path: Path) -> None:
    model = with_variant(family, get_variant("hope"))
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("*model*")] == [".safetensors"]
    for loaded in (load(tmp_path), AutoModelForImageTextToText.from_pretrained(tmp_path)):
        assert variant_of(loaded) == get_variant("hope")
        set_scale(loaded, 0.75)
        set_scale(model, 0.75)
        assert torch.equal(logits(loaded.eval(), tiny_inputs(family)), logits(model, tiny_inputs(family)))


@every_family
def test_a_model_that_came_from_disk_comes_back_from_there_with_its_own_weights(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / "stock")  # under the names of the released checkpoints
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "stock").eval()
    install(model, get_variant("m_rope"))
    model.save_pretrained(tmp_path / "ours")
    loaded = load(tmp_path / "ours").eval()
    assert torch.equal(logits(loaded, tiny_inputs(family)), logits(model, tiny_inputs(family)))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    with_variant("qwen2_vl", HOPE).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(dict(sorted(weights.items())[1:]), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of the weights"):
        load(tmp_path)


def test_load_passes_options_on(tmp_path: Path) -> None:
    with_variant("qwen2_vl", HOPE).save_pretrained(tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert logits(model.eval(), tiny_inputs("qwen2_vl")).isfinite().all()


def test_a_checkpoint_opened_without_this_package_fails_loudly(tmp_path: Path) -> None:
    with_variant("qwen2_vl", HOPE).save_pretrained(tmp_path)
    code = "import sys; from transformers import AutoModelForImageTextToText as A; A.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "hope_lab_qwen2_vl" in done.stderr


def test_a_checkpoint_without_a_variant_is_refused(tmp_path: Path) -> None:
    tiny_model("qwen2_vl").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a qwen2_vl checkpoint without a variant"):
        load(tmp_path)


@every_family
def test_an_exported_model_is_plain_and_the_loss_of_the_variant_is_said(family: str, tmp_path: Path) -> None:
    model, inputs = with_variant(family, get_variant("mhrope")), tiny_inputs(family)
    before = logits(model, inputs)
    with pytest.warns(UserWarning, match="exported without its variant mhrope"):
        export_stock(model, tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(plain) is type(tiny_model(family))
    assert "rope_variant" not in (tmp_path / "config.json").read_text()
    torch.testing.assert_close(logits(plain, inputs), logits(tiny_model(family), inputs), rtol=0, atol=1e-6)
    assert torch.equal(logits(model, inputs), before)  # the model itself keeps its variant
    assert variant_of(model) == get_variant("mhrope")


def test_a_video_after_a_cache_is_refused_without_positions() -> None:
    model, inputs = with_variant("qwen2_vl", HOPE), tiny_inputs("qwen2_vl")
    cache = model(input_ids=torch.tensor([[3, 4]]), use_cache=True).past_key_values
    names = ("input_ids", "pixel_values_videos", "video_grid_thw")
    with pytest.raises(ValueError, match="after a cache: pass position_ids"):
        model(**{name: inputs[name] for name in names}, past_key_values=cache)


@every_family
@some_variants
def test_a_video_in_the_second_turn_is_placed_after_the_first(family: str, variant: Any) -> None:
    model, inputs = with_variant(family, variant), tiny_inputs(family)
    with torch.no_grad():
        first = model.generate(
            torch.tensor([[3, 4, 5]]), max_new_tokens=2, do_sample=False, return_dict_in_generate=True
        )
        turn = torch.cat((first.sequences, inputs["input_ids"]), 1)
        again = inputs | {
            "input_ids": turn,
            "attention_mask": torch.ones_like(turn),
            "mm_token_type_ids": kinds_of(turn),
        }
        fresh = model.generate(**again, max_new_tokens=3, do_sample=False)
        continued = model.generate(**again, past_key_values=first.past_key_values, max_new_tokens=3, do_sample=False)
    assert continued.tolist() == fresh.tolist()


def test_embeddings_with_grids_but_without_ids_are_refused() -> None:
    model, inputs = with_variant("qwen2_vl", HOPE), tiny_inputs("qwen2_vl")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="positions need input_ids, or pass position_ids"):
        model(inputs_embeds=embeddings, video_grid_thw=inputs["video_grid_thw"])
