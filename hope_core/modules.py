"""What `hope_core.modeling` puts into a model: the rotary module and the positions of a variant.

Shapes: B rows, S tokens, d head dimension; position_ids (3, B, S), rows t, h, w.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hope_core.positions import compute_positions
from hope_core.rotary import rotary_tables
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
        variant.check_sizes(self.head_dim, self.num_key_value_heads)  # now, not in forward

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


class VariantPositions:
    """Mixed into the multimodal model inside: positions of its variant instead of the stock ones."""

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
        variant = variant_inside(self)
        if isinstance(variant.scaling, Dynamic) and (image_grid_thw is not None or video_grid_thw is not None):
            if self.training:
                mode, remedy = "training", "pass position_ids from compute_positions(..., scales=draw_scales(...))"
            else:
                mode, remedy = "eval", "choose a factor for inference: set_scale(model, a)"
            raise ValueError(f"{variant.name}: dynamic scaling has no factor in {mode} mode; {remedy}")
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
        index = index * variant_inside(self).positions.text_step
        if past and self.rope_deltas is not None:
            index = index + self.rope_deltas.repeat_interleave(rows // len(self.rope_deltas), 0).to(index.device)
        return index.expand(3, -1, -1)


def variant_inside(inner: Any) -> Variant:
    """The variant of a multimodal model, which its rotary module holds."""
    return inner.language_model.rotary_emb.variant


def vision_tokens(config: Any) -> VisionTokens:
    """The special token ids of a model's config."""
    return VisionTokens(
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        image=config.image_token_id,
        video=config.video_token_id,
    )
