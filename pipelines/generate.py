"""Answers in free text: the rows of several questions on one video, and where an answer ends.

V visual tokens of the video, D channels, L levels of a visual token, S tokens of a row; sources as for a `Reader`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipelines.models import VIDEO_PAD, VISION_END, VISION_START, text_ids
from pipelines.prefill import Reader, Shown, marked_sources
from pipelines.samples import TURN_END, TURN_START, RowLayout, default_system, knows_turns


def question_sources(layout: RowLayout, prompt: str, video: Tensor) -> Tensor:
    """The row (S,) of one video, given as its marked sources, and one question, up to where the answer begins.

    With the marks of turns where the tokenizer knows them, as Qwen-VL's own template and training rows have it; else
    by the tokenizer's chat template; without one, video and prompt alone.
    Raises ValueError for a prompt that holds a placeholder of its own.
    """
    tokenizer, shown = layout.tokenizer, f"{VISION_START}{VIDEO_PAD}{VISION_END}"
    if knows_turns(tokenizer):
        system = default_system(timestamps=layout.timestamps)
        text = f"{system}{TURN_START}user\n{shown}{prompt}{TURN_END}\n{TURN_START}assistant\n"
    elif tokenizer.chat_template:
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": content}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    else:
        text = shown + prompt
    if text.count(VIDEO_PAD) != 1 or shown not in text:
        raise ValueError(f"the question's text has {text.count(VIDEO_PAD)} places for a video: {text[:200]!r}")
    before, after = (torch.tensor(text_ids(tokenizer, part), dtype=torch.long) for part in text.split(shown))
    return torch.cat([before, video, after])


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer."""
    known = tokenizer.get_vocab()
    found = {known[mark] for mark in (TURN_END, "<|endoftext|>", tokenizer.eos_token) if mark in known}
    configured = model.generation_config.eos_token_id
    return frozenset(found | set(configured if isinstance(configured, list) else [configured]) - {None})


def greedy_answers(
    model: Any,
    layout: RowLayout,
    visual: Tensor,
    prompts: Sequence[str],
    *,
    video: Shown,
    scale: float | None,
    max_new_tokens: int,
    chunk_tokens: int,
) -> Iterator[str]:
    """The answer to each prompt in turn, as text; visual: the video's tokens (V, D * L), others as for a `Reader`."""
    stops = end_ids(model, layout.tokenizer)
    cells = -1 - torch.arange(len(visual)).reshape(video.grid[0], -1)
    marked = marked_sources(cells, video.seconds_per_cell, layout)
    rows = [question_sources(layout, prompt, marked)[None] for prompt in prompts]
    capacity = max(row.shape[1] for row in rows) + max_new_tokens
    reader = Reader(model, visual, scale=scale, capacity=capacity, chunk_tokens=chunk_tokens)
    for row in rows:
        made = reader.generate(row, video, max_new_tokens=max_new_tokens, stops=stops)
        yield layout.tokenizer.decode(made, skip_special_tokens=True)
