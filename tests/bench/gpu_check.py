"""`make gpu-check`: training steps of a Qwen2-VL of 2B's shape with random weights, without Ray or network.

Prints tokens/s, memory and what each variant costs over stock M-RoPE, for SDPA and each flash attention that can be
had; --write puts the tables into docs/performance.md. Needs about 60 GiB of GPU memory. Without a CUDA device it says
so and exits with 2; --tiny runs the same code on the CPU, for the tests.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from hope_core import compute_positions, get_variant
from hope_core.modeling import install, vision_tokens
from pipelines.attention import FLASH, choose_attention, obstacle
from tests.bench.__main__ import DOCUMENT, machine, replaced

STOCK = "stock"
# The layouts of a rotary table: one for all heads, and, with mhrope, one for each head.
VARIANTS = ("m_rope", "hope", "mrope_interleave", "mhrope")
# The same tokens as if four rows stood behind each other: what SDPA's mask costs, and what flash attention saves.
PACKED, PACKED_ROWS = "m_rope, four packed", 4
TARGET = 1.01
WARM_UP, ROUNDS = 2, 7


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its one row: a video of `grid` (T, H, W) patches, then text."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    grid: tuple[int, int, int]
    tokens: int


# Qwen2-VL-2B, but 4 key/value heads for its 2, which are too few for a head-wise variant.
LARGE = Shape(1536, 8960, 28, 12, 151936, 1280, 32, 16, (28, 32, 36), 8192)
TINY = Shape(128, 64, 2, 8, 96, 32, 1, 2, (3, 4, 4), 32)
KEY_VALUE_HEADS = 4


def build(shape: Shape, device: torch.device, attention: str) -> Any:
    """A model of random bfloat16 weights, its vision tower frozen, with gradient checkpointing."""
    slots = shape.hidden // shape.heads // 2
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [slots // 4, 3 * slots // 8, 3 * slots // 8],
        },
    }
    vision = {
        "depth": shape.vision_layers,
        "embed_dim": shape.vision_hidden,
        "num_heads": shape.vision_heads,
        "hidden_size": shape.hidden,
        "patch_size": 14,
    }
    marks = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = {name: shape.vocabulary - 1 - place for place, name in enumerate(marks)}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    with device:
        model = Qwen2VLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention
        )
    model.model.visual.requires_grad_(False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def make_row(shape: Shape, model: Any) -> dict[str, Tensor]:
    """One row of shape.tokens: a video between its marks, then random text."""
    generator = torch.Generator().manual_seed(0)
    tokens = vision_tokens(model.config)
    num_patches = shape.grid[0] * shape.grid[1] * shape.grid[2]
    visual = [tokens.vision_start, *[tokens.video] * (num_patches // 4), tokens.vision_end]
    text = torch.randint(0, shape.vocabulary - 8, (shape.tokens - len(visual),), generator=generator)
    ids = torch.cat((torch.tensor(visual), text))[None]
    return {
        "input_ids": ids,
        "labels": torch.where(ids < shape.vocabulary - 8, ids, -100),
        "mm_token_type_ids": 2 * (ids == tokens.video).int(),
        "pixel_values_videos": torch.randn(num_patches, 3 * 2 * 14 * 14, generator=generator).bfloat16(),
        "video_grid_thw": torch.tensor([shape.grid]),
    }


def contestants(shape: Shape, device: torch.device, attention: str) -> dict[str, Callable[[], None]]:
    """One training step of the stock model and of each variant; all share one set of weights and one optimiser."""
    stock, ours = build(shape, device, attention), build(shape, device, attention)
    ours.load_state_dict(stock.state_dict(keep_vars=True), assign=True)
    trained = [weight for weight in stock.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=device.type == "cuda")
    row = make_row(shape, stock)
    on_device = {name: tensor.to(device) for name, tensor in row.items()}

    def step(model: Any, **positions: Tensor) -> None:
        model(**on_device, **positions, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def step_of(name: str) -> None:
        if name == STOCK:
            step(stock)
            return
        variant = get_variant("m_rope" if name == PACKED else name)
        install(ours, variant)
        positions = compute_positions(
            variant,
            row["input_ids"],
            tokens=vision_tokens(ours.config),
            video_grid_thw=row["video_grid_thw"],
            scales=1.0 if variant.scalable else None,
        )
        rows = positions.position_ids
        if name == PACKED:
            text = torch.arange(shape.tokens) % (shape.tokens // PACKED_ROWS)
            rows = torch.cat((text.to(rows.dtype).expand(1, 1, -1), rows))
        step(ours, position_ids=rows.to(device))

    return {name: lambda name=name: step_of(name) for name in (STOCK, *VARIANTS, PACKED)}


def measure(shape: Shape, device: torch.device, attention: str) -> list[str]:
    """The table's lines for one attention. Contestants take turns, and each counts with its best round."""
    on_gpu = device.type == "cuda"
    steps = contestants(shape, device, attention)
    best: dict[str, float] = {}
    peak: dict[str, float] = {}
    for turn in range(WARM_UP + (ROUNDS if on_gpu else 1)):
        for name, work in steps.items():
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize()
                peak[name] = torch.cuda.max_memory_allocated() / 2**30
            if turn >= WARM_UP:
                best[name] = min(best.get(name, float("inf")), time.perf_counter() - start)
    lines = []
    for name, seconds in best.items():
        memory = f"{peak[name]:.1f} GiB" if name in peak else ""
        ratio = f"{seconds / best[STOCK]:.3f}" if name != STOCK else ""
        target = f"<= {TARGET}" if name in VARIANTS else ""
        lines.append(f"| {attention} | {name} | {shape.tokens / seconds:,.0f} | {memory} | {ratio} | {target} |")
    return lines


def report(shape: Shape, device: torch.device) -> str:
    """The table of every attention that can be had on the device, and why the others cannot."""
    reasons = {name: obstacle(name, device, torch.bfloat16) for name in FLASH}
    attentions = ["sdpa", *(name for name, reason in reasons.items() if reason is None)]
    rows = [line for name in attentions for line in measure(shape, device, name)]
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return "\n".join(
        [
            f"Training steps (forward, backward, AdamW) of a random Qwen2-VL, {shape.tokens} tokens in one row, bf16, "
            "gradient checkpointing, frozen vision tower; ratio of times to the stock model's.",
            "",
            f"{what}; {machine()}; {datetime.date.today()}; `make gpu-check`",
            "",
            "| attention | positions | tokens/s | peak memory | ratio | target |",
            "| --- | --- | ---: | ---: | ---: | --- |",
            *rows,
            "",
            f"`auto` is {choose_attention('auto', device, torch.bfloat16)}."
            + "".join(f" {name} {reason}." for name, reason in reasons.items() if reason),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description="training speed and memory on one GPU")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--tiny", action="store_true", help="the same code with a tiny model on the CPU")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("no CUDA device: not run", file=sys.stderr)
        return 2
    text = report(TINY, torch.device("cpu")) if options.tiny else report(LARGE, torch.device("cuda"))
    print(text)
    if options.write:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(), "gpu_check", text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
