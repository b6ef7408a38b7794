"""A Qwen2-VL or Qwen3-VL of some thousand parameters as it lies on disk: config, weights, tokenizer, preprocessor."""

import json
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from pipelines.models import SPECIAL_TOKENS, RandomModel, build_model
from pipelines.pretrained import PretrainedModel, sizes_of
from pipelines.samples import TURN_END, TURN_START


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as Qwen's, without merges; it knows the turns of a chat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=TURN_END,
        additional_special_tokens=[*SPECIAL_TOKENS[1:], TURN_START],
    )


def write_checkpoint(
    folder: Path, shape: RandomModel, *, seed: int = 0, family: Literal["qwen2_vl", "qwen3_vl"] = "qwen2_vl"
) -> PretrainedModel:
    """Write a stock checkpoint of random weights; how a study names it is returned."""
    tokenizer = chat_tokenizer()
    build = {"qwen2_vl": build_model, "qwen3_vl": build_qwen3_vl}[family]
    model = build(shape, tokenizer, seed=seed)
    model.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    statistics = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics), encoding="utf-8")
    return PretrainedModel(
        kind="pretrained",
        name="tiny_on_disk",
        path=str(folder),
        revision=None,
        language=None,
        language_revision=None,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        **sizes_of(model.config),
    )


def build_qwen3_vl(
    shape: RandomModel, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Qwen3VLForConditionalGeneration:
    """A stock Qwen3-VL of these sizes, whose tower feeds the language model's first layer too."""
    stock = build_model(shape, tokenizer, seed=seed).config
    rope = {**stock.text_config.rope_parameters, "mrope_interleaved": True}
    text = {**stock.text_config.to_dict(), "head_dim": shape.head_dim, "rope_parameters": rope}
    vision = {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_embed_dim,
        "intermediate_size": 2 * shape.vision_embed_dim,
        "out_hidden_size": shape.hidden_size,
        "num_heads": shape.vision_num_heads,
        "patch_size": shape.patch_size,
        "spatial_merge_size": shape.spatial_merge_size,
        "temporal_patch_size": shape.temporal_patch_size,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": shape.initializer_range,
    }
    marks = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = {mark: getattr(stock, mark) for mark in marks}
    text.pop("model_type")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
