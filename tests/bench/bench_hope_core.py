"""hope_core against the stock functions of transformers' Qwen2-VL: one row with one long video, float32, one thread."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLRotaryEmbedding, apply_rotary_pos_emb

from hope_core import VisionTokens, apply_rotary, compute_positions, get_variant, rotary_tables
from tests.bench.measure import Row, memory_row, one_thread, time_row

TOKENS = VisionTokens(vision_start=1, vision_end=2, image=3, video=4)
PER_FRAME = 144  # 9 x 16 tokens, the frames of V-NIAH
HEADS, KV_HEADS, HEAD_DIM, THETA = 12, 2, 128, 1e6  # Qwen2-VL-2B
HOPE = get_variant("hope").at_scale(0.75)


def rows() -> list[Row]:
    one_thread()
    return [row for length in (8_192, 65_536) for row in _at(length)]


def _at(length: int) -> list[Row]:
    frames = (length - 42) // PER_FRAME
    ids = torch.tensor([[5] * 20 + [TOKENS.vision_start] + [TOKENS.video] * (frames * PER_FRAME) + [TOKENS.vision_end]])
    ids = torch.cat((ids, torch.full((1, length - ids.shape[1]), 6)), 1)
    grid, mask = torch.tensor([[frames, 18, 32]]), torch.ones_like(ids)
    kinds = (ids == TOKENS.video).int() * 2

    def stock_positions() -> object:
        return Qwen2VLModel.get_rope_index(_stock_inner(), ids, kinds, video_grid_thw=grid, attention_mask=mask)

    def our_positions() -> Any:
        return compute_positions(HOPE, ids, tokens=TOKENS, video_grid_thw=grid, attention_mask=mask)

    place = our_positions().position_ids
    stock_rotary, hidden = Qwen2VLRotaryEmbedding(_text_config()), torch.zeros(1)
    q = torch.randn(1, length, HEADS, HEAD_DIM).transpose(1, 2)
    k = torch.randn(1, length, KV_HEADS, HEAD_DIM).transpose(1, 2)
    cos, sin = stock_rotary(hidden, place)

    def our_tables(name: str) -> object:
        return rotary_tables(get_variant(name), place, head_dim=HEAD_DIM, rope_theta=THETA)

    def stock_tables() -> object:
        return stock_rotary(hidden, place)

    def our_rotation() -> object:
        return apply_rotary(q, k, cos, sin)

    def stock_rotation() -> object:
        return apply_rotary_pos_emb(q, k, cos, sin)

    size = f"{length // 1024}k tokens"
    return [
        time_row(f"positions, hope, {size}", our_positions, stock_positions, target="<= 1.0"),
        *(
            time_row(f"cos and sin, {name}, {size}", lambda name=name: our_tables(name), stock_tables, target="<= 0.4")
            for name in ("m_rope", "hope", "mrope_interleave", "vrope")
        ),
        time_row(f"apply, {size}", our_rotation, stock_rotation, target="<= 1.0", rounds=7),
        memory_row(f"positions memory, {size}", our_positions, stock_positions, target="<= 1.0"),
        memory_row(f"cos and sin memory, hope, {size}", lambda: our_tables("hope"), stock_tables, target="<= 1.0"),
        memory_row(f"apply memory, {size}", our_rotation, stock_rotation, target="<= 1.0"),
    ]


def _stock_inner() -> Any:
    """What the stock get_rope_index needs of its model, without a model."""
    inner = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    inner.get_vision_position_ids = lambda *args, **kwargs: Qwen2VLModel.get_vision_position_ids(inner, *args, **kwargs)
    return inner


def _text_config() -> Any:
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": [16, 24, 24]}
    sizes = {"hidden_size": HEADS * HEAD_DIM, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    return Qwen2VLConfig(text_config=sizes | {"rope_parameters": rope}).text_config
