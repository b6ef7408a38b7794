"""A Qwen2-VL of some thousand parameters as it lies on disk: config, safetensors, tokenizer, preprocessor config."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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


def write_checkpoint(folder: Path, shape: RandomModel, *, seed: int = 0) -> PretrainedModel:
    """Write a stock checkpoint of random weights; how a study names it is returned."""
    tokenizer = chat_tokenizer()
    model = build_model(shape, tokenizer, seed=seed)
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
