"""Tiny random models of the three families, and inputs for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IMAGE, VIDEO, START, END, PAD = 90, 91, 92, 93, 0
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
# 8 query heads over 4 key/value heads of 16: head-wise allocations and grouped queries are both exercised.
TEXT = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION = {
    "depth": 1,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PATCH = 3 * 2 * 4 * 4  # numbers in a patch


def tiny_config(family: str) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    if family == "qwen2_vl":
        vision = VISION | {"embed_dim": 32, "hidden_size": 128, "mlp_ratio": 2}
        return Qwen2VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, **IDS)
    if family == "qwen2_5_vl":
        vision = VISION | {"hidden_size": 32, "out_hidden_size": 128, "intermediate_size": 64, "window_size": 16}
        vision |= {"fullatt_block_indexes": [0], "tokens_per_second": 2}
        return Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, **IDS)
    vision = VISION | {
        "hidden_size": 32,
        "out_hidden_size": 128,
        "intermediate_size": 64,
        "num_position_embeddings": 64,
    }
    vision |= {"deepstack_visual_indexes": [0]}
    rope = rope | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return Qwen3VLConfig(text_config=TEXT | {"head_dim": 16, "rope_parameters": rope}, vision_config=vision, **IDS)


def tiny_model(family: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    kinds = {
        "qwen2_vl": Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": Qwen3VLForConditionalGeneration,
    }
    model = kinds[family](tiny_config(family)).eval()
    with torch.no_grad():
        model.lm_head.weight[IMAGE:] = 0  # greedy decoding must not write special tokens
    return model


def video_tokens(family: str, frames: int, rows: int, columns: int) -> list[int]:
    """A wrapped video; Qwen3-VL puts a timestamp token before each frame and wraps frames one by one."""
    if family == "qwen3_vl":
        return [token for frame in range(frames) for token in (50 + frame, START, *[VIDEO] * (rows * columns), END)]
    return [START, *[VIDEO] * (frames * rows * columns), END]


def tiny_inputs(family: str, *, frames: int = 7, columns: int = 2, left_pad: int = 0) -> dict[str, Tensor]:
    """One row: text, a video of frames x 2 x columns tokens, text. Seven frames exceed rows and columns."""
    ids = [3, 4, 5, *video_tokens(family, frames, 2, columns), 6, 7, 8, 9]
    mask = [0] * left_pad + [1] * len(ids)
    ids = [PAD] * left_pad + ids
    input_ids = torch.tensor([ids])
    grid = torch.tensor([[frames, 4, 2 * columns]])
    pixels = torch.randn(int(grid.prod()), PATCH, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": input_ids,
        "attention_mask": torch.tensor([mask]),
        "pixel_values_videos": pixels,
        "video_grid_thw": grid,
        "mm_token_type_ids": kinds_of(input_ids),
    }


def kinds_of(input_ids: Tensor) -> Tensor:
    """mm_token_type_ids: 0 text, 1 image, 2 video."""
    return (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()


def grow(inputs: dict[str, Tensor], new: Tensor) -> dict[str, Tensor]:
    """The inputs with one more text token (B, 1) per row."""
    columns = {"input_ids": new, "attention_mask": torch.ones_like(new), "mm_token_type_ids": torch.zeros_like(new)}
    return inputs | {name: torch.cat((inputs[name], column), 1) for name, column in columns.items()}


def assert_generates_as_without_cache(model: Any, inputs: dict[str, Tensor], steps: int = 4) -> None:
    """Greedy generation with its cache gives the logits of whole forwards over the growing input."""
    with torch.no_grad():
        made = model.generate(
            **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        for step, logits in enumerate(made.logits):
            torch.testing.assert_close(logits, model(**inputs).logits[:, -1], rtol=0, atol=1e-4, msg=f"step {step}")
            inputs = grow(inputs, logits.argmax(-1, keepdim=True))
    assert made.sequences.tolist() == inputs["input_ids"].tolist()
