"""Access to the reference data of tests/golden (see its README)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from hope_core import VisionTokens

FOLDER = Path(__file__).resolve().parents[1] / "golden"


@cache
def read_json(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


@cache
def read_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as arrays:
        return dict(arrays)


def case_inputs(case: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    """Arguments of compute_positions for a case of cases.json or mmropes.json."""
    names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw")
    inputs: dict[str, Any] = {name: None if case[name] is None else torch.tensor(case[name]) for name in names}
    kinds = {name: tokens[name] for name in ("vision_start", "vision_end", "image", "video")}
    return inputs | {"tokens": VisionTokens(**kinds)}


def tiny_official_model() -> Any:
    """The random 0.7 M parameter Qwen2-VL whose logits were recorded with transformers 4.45.2."""
    old = dict(read_json("tiny_model.json")["config_445"])
    outer = ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    rest = {name: old.pop(name) for name in (*outer, "tie_word_embeddings")}
    section = old.pop("rope_scaling")["mrope_section"]
    old["rope_parameters"] = {"rope_type": "default", "rope_theta": old.pop("rope_theta"), "mrope_section": section}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=old, **rest)).eval()
    weights = load_file(FOLDER / "tiny_qwen2vl_445.safetensors")
    model.load_state_dict({_new_key(key): value for key, value in weights.items()})
    return model


def _new_key(key: str) -> str:
    if key.startswith("visual."):
        return f"model.{key}"
    return key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key


def tiny_official_inputs() -> dict[str, Tensor]:
    arrays = read_arrays("model_logits_445.npz")
    names = ("input_ids", "attention_mask", "video_grid_thw")
    inputs = {name: torch.from_numpy(arrays[f"inputs/A/{name}"]) for name in names}
    video = read_json("tiny_model.json")["config_445"]["video_token_id"]
    return inputs | {"mm_token_type_ids": 2 * (inputs["input_ids"] == video).int()}
