"""Token rows: a video and its conversation as the model reads them.

S tokens of a row. A video of grid (T, H, W) patches stands as T * H * W / merge**2 placeholders between two marks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipelines.models import VIDEO_PAD, VISION_END, VISION_START

IGNORED = -100  # the label of a token that carries no loss


@dataclass(frozen=True)
class Sample:
    """One training conversation. `labels` has IGNORED but at the answers' tokens; `grid` is the video's (T, H, W)."""

    id: str
    video: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    grid: tuple[int, int, int]


def video_ids(tokenizer: PreTrainedTokenizerBase, num_visual_tokens: int) -> list[int]:
    """A video's placeholders between their marks: num_visual_tokens + 2 ids."""
    start, placeholder, end = tokenizer.convert_tokens_to_ids([VISION_START, VIDEO_PAD, VISION_END])
    return [start, *[placeholder] * num_visual_tokens, end]


def build_sample(
    sample_id: str,
    video: str,
    turns: Sequence[tuple[str, str]],
    *,
    grid: tuple[int, int, int],
    merge_size: int,
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[str], Sequence[int]],
) -> Sample:
    """The row of one video followed by (question, answer) turns; only answers carry loss. `encode`: text to ids."""
    frames, height, width = grid
    ids = video_ids(tokenizer, frames * height * width // merge_size**2)
    labels = [IGNORED] * len(ids)
    for question, answer in turns:
        asked, answered = encode(question), encode(answer)
        ids += [*asked, *answered]
        labels += [*[IGNORED] * len(asked), *answered]
    return Sample(sample_id, video, tuple(ids), tuple(labels), grid)


def batch_order(lengths: Mapping[str, int], *, batch_size: int, seed: int, epoch: int) -> list[list[str]]:
    """The sample ids of one epoch in batches of one length each, so that no row is padded; rests are left out.

    Depends on (lengths, batch_size, seed, epoch) only: every variant trains on the same rows in the same order.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    ids = sorted(lengths)
    shuffled = [ids[i] for i in torch.randperm(len(ids), generator=generator).tolist()]
    waiting: dict[int, list[str]] = {}
    batches = []
    for sample_id in shuffled:
        group = waiting.setdefault(lengths[sample_id], [])
        group.append(sample_id)
        if len(group) == batch_size:
            batches.append(waiting.pop(lengths[sample_id]))
    return batches


def stack(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids (B, S), labels (B, S) and video grids (B, 3), int64, of samples of one length."""
    return (
        torch.tensor([sample.input_ids for sample in samples]),
        torch.tensor([sample.labels for sample in samples]),
        torch.tensor([sample.grid for sample in samples]),
    )
