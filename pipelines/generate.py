"""Greedy answers to several questions on one video: what the rows begin with alike goes through the model once.

S tokens of a row, V visual tokens of the video, D channels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase

from hope_core import compute_positions
from hope_core.modeling import variant_of, vision_tokens
from pipelines.models import VIDEO_PAD, VISION_END, VISION_START
from pipelines.prefill import KeptLayer
from pipelines.samples import DEFAULT_SYSTEM, TURN_END, TURN_START, knows_turns


def question_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, num_visual_tokens: int) -> list[int]:
    """The row of one video and one question, up to where the answer begins.

    With the marks of turns where the tokenizer knows them, as Qwen2-VL's own template and training rows have it; else
    by the tokenizer's chat template; without one, video and prompt alone.
    Raises ValueError for a prompt that holds a placeholder of its own.
    """
    shown = f"{VISION_START}{VIDEO_PAD}{VISION_END}"
    if knows_turns(tokenizer):
        system = f"{TURN_START}system\n{DEFAULT_SYSTEM}{TURN_END}\n"
        text = f"{system}{TURN_START}user\n{shown}{prompt}{TURN_END}\n{TURN_START}assistant\n"
    elif tokenizer.chat_template:
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": content}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    else:
        text = shown + prompt
    if text.count(VIDEO_PAD) != 1:
        raise ValueError(f"the question's text has {text.count(VIDEO_PAD)} places for a video: {text[:200]!r}")
    before, after = text.split(VIDEO_PAD)
    ids: list[int] = tokenizer(before, add_special_tokens=False).input_ids
    ids += [tokenizer.convert_tokens_to_ids(VIDEO_PAD)] * num_visual_tokens
    return ids + list(tokenizer(after, add_special_tokens=False).input_ids)


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer."""
    known = tokenizer.get_vocab()
    found = {known[mark] for mark in (TURN_END, "<|endoftext|>", tokenizer.eos_token) if mark in known}
    configured = model.generation_config.eos_token_id
    return frozenset(found | set(configured if isinstance(configured, list) else [configured]) - {None})


@torch.no_grad()
def greedy_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    visual: Tensor,
    prompts: Sequence[str],
    *,
    grid: tuple[int, int, int],
    seconds_per_cell: float,
    scale: float | None,
    max_new_tokens: int,
    chunk_tokens: int,
) -> Iterator[str]:
    """The answer to each prompt in turn, as text.

    visual: the video's tokens (V, D), grid its (T, H, W) in patches. `scale`: positions per cell, None for a variant
    that has none. A question shares with the one before the leading tokens that sit at the same positions; a variant
    whose video sits elsewhere under another question shares less and stays right. `chunk_tokens`: of one forward.
    """
    device = visual.device
    tokens, variant, stops = vision_tokens(model.config), variant_of(model), end_ids(model, tokenizer)
    rows = [torch.tensor(question_ids(tokenizer, prompt, len(visual))) for prompt in prompts]
    layers = [
        KeptLayer(max(map(len, rows)) + max_new_tokens) for _ in range(model.config.text_config.num_hidden_layers)
    ]
    cache = Cache(layers=layers)
    embed = model.get_input_embeddings()

    def read(hidden: Tensor, position_ids: Tensor) -> Tensor:
        states = model.model.language_model(
            inputs_embeds=hidden, position_ids=position_ids.to(device), past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits: Tensor = model.lm_head(states[0, -1])
        return logits

    kept_row, kept_positions = torch.empty(0, dtype=torch.long), torch.empty(3, 0)
    for row in rows:
        placed = compute_positions(
            variant,
            row[None],
            tokens=tokens,
            video_grid_thw=torch.tensor([grid]),
            spatial_merge_size=model.config.vision_config.spatial_merge_size,
            seconds_per_frame=seconds_per_cell,
            scales=scale,
        )
        positions = placed.position_ids[:, 0]  # (3, S)
        most = min(len(row) - 1, len(kept_row))
        same = (kept_row[:most] == row[:most]) & (kept_positions[:, :most] == positions[:, :most]).all(0)
        shared = most if bool(same.all()) else int((~same).nonzero()[0])
        kept_row, kept_positions = row, positions
        for layer in layers:
            layer.length = shared
        first = int((row == tokens.video).nonzero()[0])
        for start in range(shared, len(row), chunk_tokens):
            part = row[start : start + chunk_tokens]
            hidden = embed(part.to(device))
            placeholders = part == tokens.video
            seen = visual[max(0, start - first) :][: int(placeholders.sum())]
            hidden[placeholders.to(device)] = seen.to(hidden.dtype)
            logits = read(hidden[None], positions[:, None, start : start + chunk_tokens])
        made: list[int] = []
        while (token := int(logits.argmax())) not in stops:
            made.append(token)
            if len(made) == max_new_tokens:
                break
            place = len(row) + float(placed.rope_deltas[0, 0]) + (len(made) - 1) * variant.positions.text_step
            logits = read(embed(torch.tensor([[token]], device=device)), torch.full((3, 1, 1), place))
        yield tokenizer.decode(made, skip_special_tokens=True)
