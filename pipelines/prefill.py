"""Answering questions on a shared prefix: a video is prefilled once, each question runs on the cached keys and values.

B videos of one length, P tokens of a video, S = P + question + answer tokens, D channels, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from hope_core import compute_positions
from hope_core.modeling import variant_of, vision_tokens
from pipelines.benchmarks.needles import NeedleVideo, Question
from pipelines.features import Features
from pipelines.samples import video_ids


def compose_features(video: NeedleVideo, features: Features) -> Tensor:
    """The visual tokens (cells * N, D) of a composed video: the film's cells with the needles put in."""
    inserted = dict(video.insertions)
    film = features.films[video.film][video.start : video.start + video.num_film_cells]
    film_cells = iter(film)
    cells = [
        features.needles[inserted[cell].media] if cell in inserted else next(film_cells)
        for cell in range(video.num_cells)
    ]
    return torch.cat(cells)


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    features: Features,
    videos: Sequence[NeedleVideo],
    *,
    scale: float | None,
) -> list[list[tuple[Question, str]]]:
    """For each video the predicted answer of each of its questions, teacher-forced: argmax at the answer's positions.

    The videos have one number of cells and each question one number of prompt and answer tokens over the videos.
    `scale` is the temporal factor in positions per frame cell; None for a variant that has none.
    """
    visual = torch.stack([compose_features(video, features) for video in videos])  # (B, cells * N, D)
    prefix = video_ids(tokenizer, visual.shape[1])
    embed = model.get_input_embeddings()
    hidden = embed(torch.tensor(prefix)).expand(len(videos), -1, -1).clone()
    hidden[:, 1:-1] = visual
    predictions: list[list[tuple[Question, str]]] = [[] for _ in videos]
    cache = DynamicCache(config=model.config.text_config)
    asked_tokens = 0
    for number in range(len(videos[0].questions)):
        questions = [video.questions[number] for video in videos]
        asked = [_ids(tokenizer, question.prompt) for question in questions]
        wanted = [_ids(tokenizer, question.answer) for question in questions]
        tail = torch.tensor([ask + want[:-1] for ask, want in zip(asked, wanted, strict=True)])
        position_ids = _positions(model, prefix, tail, videos, features, scale)
        if number == 0:
            _forward(model, hidden, position_ids[:, :, : len(prefix)], cache)
        else:
            cache.crop(-asked_tokens)
        states = _forward(model, embed(tail), position_ids[:, :, len(prefix) :], cache)
        asked_tokens = tail.shape[1]
        logits = model.lm_head(states[:, -len(wanted[0]) :])  # (B, answer tokens, V)
        for video_predictions, question, best in zip(predictions, questions, logits.argmax(-1), strict=True):
            words = tokenizer.convert_ids_to_tokens(best.tolist())
            video_predictions.append((question, " ".join(words)))
    return predictions


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _positions(
    model: Any, prefix: list[int], tail: Tensor, videos: Sequence[NeedleVideo], features: Features, scale: float | None
) -> Tensor:
    """float32 (3, B, S) of the whole rows, prefix and tail."""
    config = model.config
    merge = config.vision_config.spatial_merge_size
    rows = torch.cat([torch.tensor(prefix).expand(len(videos), -1), tail], dim=1)
    grids = torch.tensor([[video.num_cells, *features.grid] for video in videos])
    return compute_positions(
        variant_of(model),
        rows,
        tokens=vision_tokens(config),
        video_grid_thw=grids,
        spatial_merge_size=merge,
        seconds_per_frame=features.seconds_per_cell,
        scales=scale,
    ).position_ids


def _forward(model: Any, hidden: Tensor, position_ids: Tensor, cache: DynamicCache) -> Tensor:
    return model.model.language_model(
        inputs_embeds=hidden, position_ids=position_ids, past_key_values=cache, use_cache=True
    ).last_hidden_state
