"""Pretrained checkpoints of the Qwen-VL families, from a local folder or the hub; weights as safetensors only.

A local folder is identified by its content, a hub name by itself and its revision. `HF_HUB_OFFLINE=1` is honoured: then
a hub name must be in the local cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.video.budget import CLIP_MEAN, CLIP_STD

# A study is planned without torch and transformers, which take seconds to import: what opens a checkpoint brings them.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of each weight file the digest reads its header and this many pieces, spread evenly: 15 GB would take minutes.
PIECES, PIECE_BYTES = 32, 64 * 1024
# How pixels are normalised; transformers 5 writes the second alone, with the first's content under "image_processor".
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
DESCRIPTIONS = (
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    PREPROCESSOR,
    PROCESSOR,
)

# Mean and standard deviation of pixels per RGB channel.
Normalisation = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class PretrainedIdentity:
    """What a result that rests on a checkpoint is identified by; `weights` and `language` by content, or hub name."""

    name: str
    weights: str
    language: str | None


@dataclass(frozen=True)
class PretrainedModel:
    """A checkpoint of Qwen2-VL, Qwen2.5-VL or Qwen3-VL: `path` is a local folder, or a hub name with its `revision`.

    `language`, if given, replaces the weights of the language model by those of a text-only checkpoint of the same
    sizes (the papers put Qwen2 beside Qwen2-VL's vision tower). The sizes are declared, so that a study is planned
    without the weights; they are compared with config.json when the model is loaded.
    """

    kind: Literal["pretrained"]
    name: str
    family: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
    path: str
    revision: str | None
    language: str | None
    language_revision: str | None
    head_dim: int
    num_key_value_heads: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    num_parameters: int

    @cached_property
    def identity(self) -> PretrainedIdentity:
        """Of the weights as they are when it is first asked for. Raises ValueError for a folder without safetensors."""
        language = None if self.language is None else weights_identity(self.language, self.language_revision)
        return PretrainedIdentity(self.name, weights_identity(self.path, self.revision), language)

    @property
    def timestamps(self) -> bool:
        """Whether the family writes a video cell by cell, each after its time."""
        return self.family == "qwen3_vl"

    @cached_property
    def normalisation(self) -> Normalisation:
        return normalisation_of(self.path, self.revision)

    def absent_offline(self) -> str | None:
        """Why it cannot be loaded without a network, if it cannot."""
        from huggingface_hub import try_to_load_from_cache

        for path, revision in ((self.path, self.revision), (self.language, self.language_revision)):
            if (
                path is not None
                and not Path(path).is_dir()
                and try_to_load_from_cache(path, "config.json", revision=revision) is None
            ):
                return f"{path} is not in the hub's local cache and HF_HUB_OFFLINE=1; set model.path to a local folder"
        return None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path, revision=self.revision)

    def load(self, *, dtype: torch.dtype, attention: str) -> PreTrainedModel:
        """The stock model on the CPU. Raises ValueError for sizes that are not declared, and missing weights."""
        from transformers import AutoModelForImageTextToText

        from hope_core.modeling import load_whole

        weights_identity(self.path, self.revision)
        model = load_whole(
            AutoModelForImageTextToText, self.path, revision=self.revision, dtype=dtype, attn_implementation=attention
        )
        found = sizes_of(model.config)
        for field, size in found.items():
            if getattr(self, field) != size:
                raise ValueError(f"model.{field} is {getattr(self, field)}, but {self.path} has {size}; set it so")
        if self.language is not None:
            _replace_language(model, self.language, self.language_revision, dtype)
        return model


def sizes_of(config: Any) -> dict[str, Any]:
    """What a study is planned with, from a model's config."""
    text, vision = config.get_text_config(), config.vision_config
    return {
        "family": config.model_type,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def normalisation_of(path: str | Path, revision: str | None = None) -> Normalisation:
    """What a checkpoint's vision tower was trained with: CLIP's, where its processor configs have nothing else."""
    from transformers.utils import cached_file

    def read(name: str) -> dict[str, Any]:
        found = cached_file(str(path), name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return json.loads(Path(found).read_text(encoding="utf-8")) if found else {}

    values = read(PROCESSOR).get("image_processor") or read(PREPROCESSOR)  # in transformers' order
    return tuple(values.get("image_mean", CLIP_MEAN)), tuple(values.get("image_std", CLIP_STD))


def weights_identity(path: str, revision: str | None) -> str:
    """ "hub:NAME@REVISION", or the digest of a local folder's content.

    The digest covers config, tokenizer and preprocessor files whole, and of each weight file its size, its header and
    32 pieces of 64 KiB: another training changes nearly every tensor, so it shows, and 15 GB are read in a second.
    Raises ValueError for a folder that holds no safetensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
            raise ValueError(
                f"model.path is {path!r}: no such folder; give a checkpoint's folder or a hub name OWNER/NAME"
            )
        return f"hub:{path}@{revision or 'main'}"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        others = ", ".join(sorted(file.name for file in folder.glob("*.bin"))[:3]) or "no weights"
        raise ValueError(f"{path} has {others} but no *.safetensors; pickled weights are not read: convert them first")
    digest = hashlib.sha256()
    for name in DESCRIPTIONS:
        if (folder / name).is_file():
            digest.update(f"{name}\n".encode() + (folder / name).read_bytes())
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            header = data.read(8)
            digest.update(header + data.read(int.from_bytes(header, "little")))
            for piece in range(PIECES):
                data.seek(piece * max(size - PIECE_BYTES, 0) // (PIECES - 1))
                digest.update(data.read(PIECE_BYTES))
    return f"sha256:{digest.hexdigest()}"


def _replace_language(model: Any, path: str, revision: str | None, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    from hope_core.modeling import load_whole

    weights_identity(path, revision)
    text = load_whole(AutoModelForCausalLM, path, revision=revision, dtype=dtype)
    wanted, given = model.model.language_model.state_dict(), text.model.state_dict()
    different = [name for name in wanted if name not in given or given[name].shape != wanted[name].shape]
    if different:
        raise ValueError(f"model.language {path!r} does not fit: {different[0]} is not there in the same size")
    model.model.language_model.load_state_dict(given, strict=False)
    model.lm_head.load_state_dict(text.lm_head.state_dict())
