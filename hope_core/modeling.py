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
from typing import Any

import torch
from torch import Tensor, nn
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
from transformers.generation import GenerationMixin

from hope_core.positions import compute_positions
from hope_core.rotary import apply_rotary, rotary_tables
from hope_core.scaling import Dynamic
from hope_core.segments import VisionTokens
from hope_core.variants import Variant


class VariantRotaryEmbedding(nn.Module):
    """cos and sin of a variant, in the place of the stock rotary module.

    Holds no tensors: buffers that are not saved come back as garbage from from_pretrained's meta initialisation.
    """

    def __init__(self, variant: Variant, text_config: Any) -> None:
        super().__init__()
        self.variant = variant
        self.head_dim: int = getattr(text_config, "head_dim", None) or (
            text_config.hidden_size // text_config.num_attention_heads
        )
        self.num_key_value_heads: int = text_config.num_key_value_heads
        rope_type = text_config.rope_parameters["rope_type"]
        if rope_type != "default":
            raise ValueError(
                f"rope_type {rope_type!r} changes the frequencies itself; variants need rope_type 'default'"
            )
        self.rope_theta: float = text_config.rope_parameters["rope_theta"]
        variant.slot_axes(self.head_dim, self.num_key_value_heads)  # refuse sizes it cannot serve now, not in forward

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids (3, B, S) -> cos, sin (B, S, d) or (B, heads, S, d) in the type of hidden."""
        cos, sin = rotary_tables(
            self.variant,
            position_ids.expand(3, -1, -1),
            head_dim=self.head_dim,
            rope_theta=self.rope_theta,
            num_key_value_heads=self.num_key_value_heads,
        )
        return cos.to(hidden.dtype), sin.to(hidden.dtype)


class _VariantInner:
    """The multimodal model inside: positions of the variant instead of the stock ones."""

    config: Any
    language_model: Any
    rope_deltas: Tensor | None
    training: bool

    def has_vision(self, input_ids: Tensor) -> bool:
        """Whether any token stands for a piece of an image or a video."""
        return bool(((input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)).any())

    def get_rope_index(
        self,
        input_ids: Tensor,
        mm_token_type_ids: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """position_ids float32 (3, B, S), deltas (B, 1): token j of a row, from 0, is decoded at text_step * j + delta.

        Images and videos are found by their token ids; mm_token_type_ids is not needed.
        """
        variant = _variant_inside(self)
        if isinstance(variant.scaling, Dynamic) and (image_grid_thw is not None or video_grid_thw is not None):
            remedy = (
                "pass position_ids from compute_positions(..., scales=draw_scales(...))"
                if self.training
                else "choose a factor for inference: set_scale(model, a)"
            )
            raise ValueError(f"{variant.name}: dynamic scaling has no factor in {_mode(self)} mode; {remedy}")
        positions = compute_positions(
            variant,
            input_ids,
            tokens=vision_tokens(self.config),
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            attention_mask=attention_mask,
            spatial_merge_size=self.config.vision_config.spatial_merge_size,
            seconds_per_frame=second_per_grid_ts,
        )
        step = variant.positions.text_step
        num_real = input_ids.shape[1] if attention_mask is None else attention_mask.sum(1, keepdim=True)
        return positions.position_ids, positions.rope_deltas - (step - 1) * num_real

    def compute_3d_position_ids(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Tensor:
        """Positions for a forward without position_ids: the whole input at first, decoded tokens after a cache."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past == 0 and input_ids is not None:
            position_ids, self.rope_deltas = self.get_rope_index(
                input_ids,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                attention_mask=attention_mask,
                **others,
            )
            return position_ids
        if past == 0 and (image_grid_thw is not None or video_grid_thw is not None):
            raise ValueError("inputs_embeds with grids: positions need input_ids, or pass position_ids")
        if past and input_ids is not None and self.has_vision(input_ids):
            raise ValueError(
                "images or videos after a cache: pass position_ids of the whole row from compute_positions"
            )
        rows, length = inputs_embeds.shape[:2]
        if attention_mask is not None:
            index = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        else:
            index = torch.arange(past, past + length, device=inputs_embeds.device).expand(rows, -1)
        index = index * _variant_inside(self).positions.text_step
        if past and self.rope_deltas is not None:
            index = index + self.rope_deltas.repeat_interleave(rows // len(self.rope_deltas), 0).to(index.device)
        return index.expand(3, -1, -1)


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


class VariantQwen2VLConfig(Qwen2VLConfig):
    model_type = "hope_lab_qwen2_vl"


class VariantQwen2_5_VLConfig(Qwen2_5_VLConfig):
    model_type = "hope_lab_qwen2_5_vl"


class VariantQwen3VLConfig(Qwen3VLConfig):
    model_type = "hope_lab_qwen3_vl"


class VariantQwen2VLModel(_VariantInner, Qwen2VLModel):
    pass


class VariantQwen2_5_VLModel(_VariantInner, Qwen2_5_VLModel):
    pass


class VariantQwen3VLModel(_VariantInner, Qwen3VLModel):
    pass


class VariantQwen2VLForConditionalGeneration(_VariantLM, Qwen2VLForConditionalGeneration):
    config_class = VariantQwen2VLConfig


class VariantQwen2_5_VLForConditionalGeneration(_VariantLM, Qwen2_5_VLForConditionalGeneration):
    config_class = VariantQwen2_5_VLConfig


class VariantQwen3VLForConditionalGeneration(_VariantLM, Qwen3VLForConditionalGeneration):
    config_class = VariantQwen3VLConfig


# stock class -> the one with a variant, its inner model's and its config's
_FAMILIES: dict[Any, tuple[Any, Any, Any]] = {
    Qwen2VLForConditionalGeneration: (
        VariantQwen2VLForConditionalGeneration,
        VariantQwen2VLModel,
        VariantQwen2VLConfig,
    ),
    Qwen2_5_VLForConditionalGeneration: (
        VariantQwen2_5_VLForConditionalGeneration,
        VariantQwen2_5_VLModel,
        VariantQwen2_5_VLConfig,
    ),
    Qwen3VLForConditionalGeneration: (
        VariantQwen3VLForConditionalGeneration,
        VariantQwen3VLModel,
        VariantQwen3VLConfig,
    ),
}
for _lm, _, _config in _FAMILIES.values():
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageTextToText.register(_config, _lm)


def install(model: PreTrainedModel, variant: Variant) -> None:
    """Put a variant into this one model instance, in the place of whatever it had; cheap, weights are not touched.

    model: Qwen2VL-, Qwen2_5_VL- or Qwen3VLForConditionalGeneration, or one that has a variant already.
    Raises ValueError for another model, or head sizes that the variant's allocation cannot serve.
    """
    stock = _stock_class(model)
    VariantRotaryEmbedding(variant, model.config.get_text_config())  # raises before anything has changed
    lm, _, config_class = _FAMILIES[stock]
    if type(model) is stock:
        # A config may be shared between instances: change a copy.
        config = copy.copy(model.config)
        config.__class__ = config_class
        model.__class__ = lm
        model.config = model.model.config = config
    model.config.rope_variant = variant.to_dict()
    _equip(model, variant)


def set_scale(model: PreTrainedModel, factor: float) -> None:
    """Evaluate at this temporal factor from now on (positions per frame); the model then keeps it when saved.

    Raises ValueError where a factor has no effect.
    """
    install(model, variant_of(model).at_scale(factor))


def variant_of(model: PreTrainedModel) -> Variant:
    """The variant in a model. Raises ValueError for a model without one."""
    if type(model) is _stock_class(model):
        raise ValueError(f"{type(model).__name__} holds no variant; use install(model, variant)")
    return _variant_inside(model.model)


def scale_has_effect(model: PreTrainedModel) -> bool:
    """Whether a temporal factor changes this model's positions: never on Qwen3-VL, whose blocks are single frames."""
    return variant_of(model).scalable and _stock_class(model) is not Qwen3VLForConditionalGeneration


def vision_tokens(config: Any) -> VisionTokens:
    """The special token ids of a model's config."""
    return VisionTokens(
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        image=config.image_token_id,
        video=config.video_token_id,
    )


def load(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A model with its variant, as model.save_pretrained wrote it; kwargs go to from_pretrained. safetensors only.

    Raises ValueError for a checkpoint without a variant.
    """
    config = AutoConfig.from_pretrained(path)
    classes = {config_class: lm for lm, _, config_class in _FAMILIES.values()}
    if type(config) not in classes:
        raise ValueError(
            f"{path} is a {config.model_type} checkpoint without a variant; load it as such, then install one"
        )
    return classes[type(config)].from_pretrained(path, use_safetensors=True, **kwargs)


def export_stock(model: PreTrainedModel, path: str | Path) -> None:
    """Write the weights as the plain stock architecture, for tools that do not know this package.

    Warns (UserWarning): such a checkpoint has lost its variant and runs with stock M-RoPE positions and slots.
    """
    variant = variant_of(model)
    warnings.warn(
        f"{path}: exported without its variant {variant.name}; whatever loads it rotates with stock M-RoPE",
        stacklevel=2,
    )
    stock = _stock_class(model)
    plain = copy.copy(model)
    plain.__class__ = stock
    config = copy.copy(model.config)
    config.__class__ = stock.config_class
    del config.rope_variant
    plain.config = config
    plain.save_pretrained(path)


def _equip(model: Any, variant: Variant) -> None:
    stock = _stock_class(model)
    model.model.__class__ = _FAMILIES[stock][1]
    language_model = model.model.language_model
    language_model.rotary_emb = VariantRotaryEmbedding(variant, model.config.get_text_config())
    headwise = (
        variant.slot_axes(language_model.rotary_emb.head_dim, language_model.rotary_emb.num_key_value_heads).ndim == 2
    )
    for layer in language_model.layers:
        _rotate_per_head(layer.self_attn, headwise)


def _rotate_per_head(attention: Any, headwise: bool) -> None:
    """Stock attention takes one cos and sin for all heads; give this instance its own forward with `apply_rotary`."""
    attention.__dict__.pop("forward", None)
    if headwise:
        forward = type(attention).forward
        if "apply_rotary_pos_emb" not in forward.__code__.co_names:
            raise RuntimeError(f"{type(attention).__name__} of this transformers does not call apply_rotary_pos_emb")
        names = {**forward.__globals__, "apply_rotary_pos_emb": apply_rotary}
        own = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        own.__kwdefaults__ = forward.__kwdefaults__
        attention.forward = types.MethodType(own, attention)


def _stock_class(model: Any) -> Any:
    for stock, (lm, _, _) in _FAMILIES.items():
        if type(model) in (stock, lm):
            return stock
    known = ", ".join(stock.__name__ for stock in _FAMILIES)
    raise ValueError(f"{type(model).__name__} cannot hold a variant; known: {known}")


def _variant_inside(inner: Any) -> Variant:
    return inner.language_model.rotary_emb.variant


def _mode(module: Any) -> str:
    return "training" if module.training else "eval"
