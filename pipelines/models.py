"""The tiny model: a Qwen2-VL with random weights and a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipelines.video.budget import CLIP_MEAN, CLIP_STD

# A config describes a model without torch and transformers, which take seconds to import: what builds brings them.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

PAD, VISION_START, VISION_END = "<|endoftext|>", "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (PAD, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)


@dataclass(frozen=True)
class RandomModel:
    """A Qwen2-VL of transformers with random weights. Sizes in channels; `mrope_section` follows from the head size."""

    kind: Literal["random"]
    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    rope_theta: float
    initializer_range: float
    vision_depth: int
    vision_embed_dim: int
    vision_num_heads: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 16:
            raise ValueError(
                f"model.hidden_size is {self.hidden_size} with model.num_heads {self.num_heads}; "
                "hidden_size / num_heads must be a multiple of 16"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_key_value_heads(self) -> int:
        return self.num_heads

    @property
    def timestamps(self) -> bool:
        return False

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return CLIP_MEAN, CLIP_STD

    @property
    def num_parameters(self) -> int:
        """Of the language model's layers: what a token costs; the estimate of a training rests on it."""
        return self.num_layers * (4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size)


def build_tokenizer(phrases: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer in which each phrase (a question such as "first red", an answer such as "7") is one token.

    Text is cut at line ends and around special tokens only. Ids depend on the set of phrases, not on their order.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, "<|unknown|>", *sorted(set(phrases))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), behavior="removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=PAD,
        unk_token="<|unknown|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's ids, and none of a beginning or an end."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def build_model(
    config: RandomModel, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Qwen2VLForConditionalGeneration:
    """A stock Qwen2-VL whose random float32 weights depend on (config, vocabulary size, seed) alone."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
    slots = config.head_dim // 2
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": 32768,
        "initializer_range": config.initializer_range,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": [slots // 4, 3 * slots // 8, 3 * slots // 8],
        },
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": ids[PAD],
        "pad_token_id": ids[PAD],
    }
    vision = {
        "depth": config.vision_depth,
        "embed_dim": config.vision_embed_dim,
        "hidden_size": config.hidden_size,
        "num_heads": config.vision_num_heads,
        "mlp_ratio": 2,
        "in_channels": 3,
        "patch_size": config.patch_size,
        "spatial_merge_size": config.spatial_merge_size,
        "temporal_patch_size": config.temporal_patch_size,
        "initializer_range": config.initializer_range,
    }
    stock = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        initializer_range=config.initializer_range,
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids[VIDEO_PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2VLForConditionalGeneration(stock)
