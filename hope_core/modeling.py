"""A variant inside a Qwen2-VL, Qwen2.5-VL or Qwen3-VL of transformers.

`install` changes one instance: its class becomes a subclass of the stock one (positions, decoding steps, a config that
names the variant) and its rotary module is replaced. No stock class, function or other instance is touched.

Shapes: B rows, S tokens; position_ids (3, B, S) rows t, h, w, or (4, B, S) with the text row first.
The text row numbers a row's tokens 0, 1, 2 ... and must stay integral: transformers reads sequence packing out of it.
"""

import copy
import types
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.generation import GenerationMixin
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention

from hope_core.modules import VariantPositions, VariantRotaryEmbedding, variant_inside, vision_tokens
from hope_core.rotary import apply_rotary
from hope_core.variants import Variant

__all__ = [
    "export_stock",
    "has_timestamps",
    "install",
    "load",
    "set_scale",
    "variant_of",
    "vision_tokens",
]


class _VariantLM:
    """The whole model: positions for generate."""

    config: Any
    model: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        _equip(self, Variant.from_dict(config.rope_variant))

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        text = GenerationMixin._prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs)
        ids = model_kwargs.get("input_ids")
        if ids is None or ids.shape[1] == 0:
            ids = inputs_tensor
        cache = model_kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        has_ids = ids.ndim == 2 and not ids.is_floating_point()
        new_vision = has_ids and self.model.has_vision(ids[:, past:])
        continues = past > 0 and self.model.rope_deltas is not None and not new_vision
        if has_ids and not continues:
            given = {key: value for key, value in model_kwargs.items() if key != "input_ids"}
            rows, self.model.rope_deltas = self.model.get_rope_index(ids, **given)
        else:
            deltas = self.model.rope_deltas if continues else torch.zeros(len(text), 1, device=text.device)
            self.model.rope_deltas = deltas
            rows = (text * variant_of(self).positions.text_step + deltas).expand(3, -1, -1)
        return torch.cat((text[None].to(rows.dtype), rows))

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **others: Any) -> Any:
        kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **others)  # type: ignore[misc]
        # Stock adds 1 to every row; a variant that counts text twice goes on by 2.
        positions = kwargs.get("position_ids")
        if positions is not None and positions.ndim == 3:
            positions[1:, :, -1] += variant_of(self).positions.text_step - 1
        return kwargs


def _per_head(attention: type) -> type:
    """A subclass whose forward is the stock one, calling `apply_rotary` in the place of apply_rotary_pos_emb.

    Stock attention turns all heads alike; head-wise tables have a cos and sin for each.
    """
    stock = attention.forward  # type: ignore[attr-defined]
    names = {**stock.__globals__, "apply_rotary_pos_emb": apply_rotary}
    forward = types.FunctionType(stock.__code__, names, stock.__name__, stock.__defaults__, stock.__closure__)
    forward.__kwdefaults__ = stock.__kwdefaults__
    return type(f"PerHead{attention.__name__}", (attention,), {"forward": forward, "__module__": __name__})


class VariantQwen2VLConfig(Qwen2VLConfig):
    model_type = "hope_lab_qwen2_vl"


class VariantQwen2_5_VLConfig(Qwen2_5_VLConfig):
    model_type = "hope_lab_qwen2_5_vl"


class VariantQwen3VLConfig(Qwen3VLConfig):
    model_type = "hope_lab_qwen3_vl"


class VariantQwen2VLModel(VariantPositions, Qwen2VLModel):
    pass


class VariantQwen2_5_VLModel(VariantPositions, Qwen2_5_VLModel):
    pass


class VariantQwen3VLModel(VariantPositions, Qwen3VLModel):
    pass


class VariantQwen2VLForConditionalGeneration(_VariantLM, Qwen2VLForConditionalGeneration):
    config_class = VariantQwen2VLConfig


class VariantQwen2_5_VLForConditionalGeneration(_VariantLM, Qwen2_5_VLForConditionalGeneration):
    config_class = VariantQwen2_5_VLConfig


class VariantQwen3VLForConditionalGeneration(_VariantLM, Qwen3VLForConditionalGeneration):
    config_class = VariantQwen3VLConfig


PerHeadQwen2VLAttention = _per_head(Qwen2VLAttention)
PerHeadQwen2_5_VLAttention = _per_head(Qwen2_5_VLAttention)
PerHeadQwen3VLTextAttention = _per_head(Qwen3VLTextAttention)


class _Family(NamedTuple):
    """A stock model class and the classes that take the place of it and its parts."""

    stock: Any
    lm: Any
    inner: Any
    config: Any
    attention: Any
    per_head: Any


_FAMILIES = (
    _Family(
        Qwen2VLForConditionalGeneration,
        VariantQwen2VLForConditionalGeneration,
        VariantQwen2VLModel,
        VariantQwen2VLConfig,
        Qwen2VLAttention,
        PerHeadQwen2VLAttention,
    ),
    _Family(
        Qwen2_5_VLForConditionalGeneration,
        VariantQwen2_5_VLForConditionalGeneration,
        VariantQwen2_5_VLModel,
        VariantQwen2_5_VLConfig,
        Qwen2_5_VLAttention,
        PerHeadQwen2_5_VLAttention,
    ),
    _Family(
        Qwen3VLForConditionalGeneration,
        VariantQwen3VLForConditionalGeneration,
        VariantQwen3VLModel,
        VariantQwen3VLConfig,
        Qwen3VLTextAttention,
        PerHeadQwen3VLTextAttention,
    ),
)
for _family in _FAMILIES:
    AutoConfig.register(_family.config.model_type, _family.config)
    AutoModelForImageTextToText.register(_family.config, _family.lm)
    # transformers renames the released weights by the name of the class, and a model that came from disk is saved with
    # their names again: without the stock class's renamings its language model would be loaded as random weights.
    if _renamings := get_checkpoint_conversion_mapping(_family.stock.__name__):
        register_checkpoint_conversion_mapping(_family.lm.__name__, _renamings)


def install(model: PreTrainedModel, variant: Variant) -> None:
    """Put a variant into this one model instance, in the place of whatever it had; cheap, weights are not touched.

    model: Qwen2VL-, Qwen2_5_VL- or Qwen3VLForConditionalGeneration, or one that has a variant already.
    Raises ValueError for another model, or head sizes that the variant's allocation cannot serve.
    """
    family = _family_of(model)
    VariantRotaryEmbedding(variant, model.config.get_text_config())  # raises before anything has changed
    if type(model) is family.stock:
        # A config may be shared between instances: change a copy.
        config = copy.copy(model.config)
        config.__class__ = family.config
        model.__class__ = family.lm
        model.config = model.model.config = config
    model.config.rope_variant = variant.to_dict()
    _equip(model, variant)


def set_scale(model: PreTrainedModel, factor: float) -> None:
    """Evaluate at this temporal factor from now on (positions per frame); the model then keeps it when saved.

    On Qwen3-VL, whose blocks are single frames, it changes nothing. Raises ValueError for a variant without a scale.
    """
    install(model, variant_of(model).at_scale(factor))


def has_timestamps(config: Any) -> bool:
    """Whether rows of such a model hold a time before every cell of a video, each cell a block alone (Qwen3-VL)."""
    return isinstance(config, Qwen3VLConfig)


def variant_of(model: PreTrainedModel) -> Variant:
    """The variant in a model. Raises ValueError for a model without one."""
    if type(model) is _family_of(model).stock:
        raise ValueError(f"{type(model).__name__} holds no variant; use install(model, variant)")
    return variant_inside(model.model)


def load(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A model with its variant, as model.save_pretrained wrote it; kwargs go to from_pretrained. safetensors only.

    Raises ValueError for a checkpoint without a variant, and for one that lacks weights.
    """
    config = AutoConfig.from_pretrained(path)
    classes = {family.config: family.lm for family in _FAMILIES}
    if type(config) not in classes:
        raise ValueError(
            f"{path} is a {config.model_type} checkpoint without a variant; load it as such, then install one"
        )
    return load_whole(classes[type(config)], path, **kwargs)


def load_whole(model_class: Any, path: str | Path, **kwargs: Any) -> Any:
    """`model_class.from_pretrained` of safetensors, or ValueError where they lack weights of the model.

    transformers itself draws missing weights at random and goes on with a warning.
    """
    model, found = model_class.from_pretrained(path, use_safetensors=True, output_loading_info=True, **kwargs)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{path} lacks {len(missing)} of the weights of {type(model).__name__}, as {missing[0]}; get it whole"
        )
    return model


def export_stock(model: PreTrainedModel, path: str | Path) -> None:
    """Write the weights as the plain stock architecture, for tools that do not know this package.

    Warns (UserWarning): such a checkpoint has lost its variant and runs with stock M-RoPE positions and slots.
    """
    variant = variant_of(model)
    warnings.warn(
        f"{path}: exported without its variant {variant.name}; whatever loads it rotates with stock M-RoPE",
        stacklevel=2,
    )
    stock = _family_of(model).stock
    plain = copy.copy(model)
    plain.__class__ = stock
    config = copy.copy(model.config)
    config.__class__ = stock.config_class
    del config.rope_variant
    plain.config = config
    plain.save_pretrained(path)


def _equip(model: Any, variant: Variant) -> None:
    family = _family_of(model)
    model.model.__class__ = family.inner
    rotary = VariantRotaryEmbedding(variant, model.config.get_text_config())
    model.model.language_model.rotary_emb = rotary
    per_head = variant.slot_axes(rotary.head_dim, rotary.num_key_value_heads).ndim == 2
    for layer in model.model.language_model.layers:
        layer.self_attn.__class__ = family.per_head if per_head else family.attention


def _family_of(model: Any) -> _Family:
    for family in _FAMILIES:
        if type(model) in (family.stock, family.lm):
            return family
    known = ", ".join(family.stock.__name__ for family in _FAMILIES)
    raise ValueError(f"{type(model).__name__} cannot hold a variant; known: {known}")
