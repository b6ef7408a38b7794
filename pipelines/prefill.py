"""Reading token rows on kept keys and values: what a row begins with like the one before it is not computed again.

B rows of one length at a time, S tokens of a row, D channels, V vocabulary. A row is given as its *sources*, int64
(B, S): a text token's id, or -1 - i for visual token i of the features (cells in the table's order, token by token).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicLayer, PreTrainedTokenizerBase

from hope_core import compute_positions
from hope_core.modeling import variant_of, vision_tokens
from pipelines.benchmarks.videos import NeedleVideo
from pipelines.features import Features
from pipelines.models import VISION_END, VISION_START, text_ids


def cell_numbers(video: NeedleVideo, features: Features) -> np.ndarray:
    """The cells of a composed video as places in the features' table, int64 (cells,)."""
    film = features.spans[video.film].first + video.start + np.arange(video.num_film_cells)
    # np.insert counts places in the film, insertions are given by their final cell
    places = [cell - before for before, (cell, _) in enumerate(video.insertions)]
    return np.insert(film, places, [features.spans[media].first for _, media in video.insertions])


def visual_sources(cells: np.ndarray, features: Features) -> Tensor:
    """The sources of a video's visual tokens, int64 (cells * N,)."""
    numbers = torch.from_numpy(cells)[:, None] * features.tokens_per_cell + torch.arange(features.tokens_per_cell)
    return -1 - numbers.reshape(-1)


def video_sources(video: NeedleVideo, features: Features, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The sources of all that comes before a video's questions: its text, and the video between its marks, (S,)."""
    start, end = tokenizer.convert_tokens_to_ids([VISION_START, VISION_END])
    before = text_ids(tokenizer, video.before) if video.before else []
    visual = visual_sources(cell_numbers(video, features), features)
    return torch.cat([torch.tensor([*before, start]), visual, torch.tensor([end])])


class KeptLayer(DynamicLayer):
    """One layer's keys and values in a buffer of `capacity` tokens: reading on copies nothing of what is kept."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, heads, _, channels = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self._capacity, channels)
        self.values = value_states.new_empty(rows, heads, self._capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : length] = key_states
        self.values[:, :, self.length : length] = value_states
        self.length = length
        return self.keys[:, :, :length], self.values[:, :, :length]

    def get_seq_length(self) -> int:
        return self.length


class Reader:
    """A model and the keys and values of the rows that it read last; B rows of at most `capacity` tokens at a time.

    A row shares with the one before exactly the leading tokens that are the same and sit at the same positions, so a
    variant whose positions depend on what follows a token shares less and stays right. Rows in the order of their
    sources (any lexicographic one) share all that they can, and only one path's keys and values are held.
    `read_tokens` counts the visual tokens that went through the model, `naive_tokens` those of all rows given.
    """

    def __init__(
        self, model: Any, features: Features, *, scale: float | None, capacity: int, chunk_tokens: int
    ) -> None:
        """`scale`: positions per cell, None for a variant that has none. `chunk_tokens`: of a row in one forward."""
        self._model, self._features, self._scale, self._chunk_tokens = model, features, scale, chunk_tokens
        self._layers = [KeptLayer(capacity) for _ in range(model.config.text_config.num_hidden_layers)]
        self._cache = Cache(layers=self._layers)
        self._kept: tuple[Tensor, Tensor] | None = None  # sources (B, S) and positions (3, B, S) of the last rows
        self.read_tokens = self.naive_tokens = 0

    @torch.no_grad()
    def logits(self, sources: Tensor, videos: Sequence[NeedleVideo], *, last: int) -> Tensor:
        """(B, last, V): what the model expects after each of the rows' last tokens.

        Raises ValueError where a row's visual tokens are not as many as its video has.
        """
        length = sources.shape[1]
        position_ids = self._positions(sources, videos)
        shared = self._shared(sources, position_ids, length - last)
        self._kept = sources, position_ids
        for layer in self._layers:
            layer.length = shared
        states = []
        for start in range(shared, length, self._chunk_tokens):
            stop = min(start + self._chunk_tokens, length)
            chunk = self._forward(sources[:, start:stop], position_ids[:, :, start:stop])
            if stop > length - last:
                states.append(chunk[:, max(0, length - last - start) :])
        self.read_tokens += int((sources[:, shared:] < 0).sum())
        self.naive_tokens += int((sources < 0).sum())
        logits: Tensor = self._model.lm_head(torch.cat(states, dim=1))
        return logits

    def generate(self, sources: Tensor, video: NeedleVideo, *, max_new_tokens: int, stop: int) -> list[int]:
        """The greedy continuation of one row (1, S): at most max_new_tokens ids; the id `stop` ends it, left out."""
        made: list[int] = []
        while len(made) < max_new_tokens:
            row = torch.cat([sources, torch.tensor([made], dtype=torch.long)], dim=1)
            token = int(self.logits(row, [video], last=1)[0, 0].argmax())
            if token == stop:
                break
            made.append(token)
        return made

    def _shared(self, sources: Tensor, position_ids: Tensor, most: int) -> int:
        """How many leading tokens the cache holds already."""
        if self._kept is None:
            return 0
        kept_sources, kept_positions = self._kept
        most = min(most, kept_sources.shape[1])
        same = (kept_sources[:, :most] == sources[:, :most]).all(0)
        same &= (kept_positions[:, :, :most] == position_ids[:, :, :most]).all(0).all(0)
        differing = (~same).nonzero()
        return int(differing[0]) if len(differing) else most

    def _positions(self, sources: Tensor, videos: Sequence[NeedleVideo]) -> Tensor:
        """float32 (3, B, S), on the CPU."""
        config, features = self._model.config, self._features
        tokens = vision_tokens(config)
        return compute_positions(
            variant_of(self._model),
            torch.where(sources < 0, tokens.video, sources),
            tokens=tokens,
            video_grid_thw=torch.tensor([[video.num_cells, *features.grid] for video in videos]),
            spatial_merge_size=config.vision_config.spatial_merge_size,
            seconds_per_frame=[features.spans[video.film].seconds_per_cell for video in videos],
            scales=self._scale,
        ).position_ids

    def _forward(self, sources: Tensor, position_ids: Tensor) -> Tensor:
        """Hidden states (B, S, D) of a chunk of the rows, read on what is kept."""
        device = self._model.device
        visual = sources < 0
        hidden = self._model.get_input_embeddings()(torch.where(visual, 0, sources).to(device))
        if visual.any():
            table = self._features.table.flatten(0, 1)
            hidden[visual.to(device)] = table[-1 - sources[visual]].to(device, hidden.dtype)
        states: Tensor = self._model.model.language_model(
            inputs_embeds=hidden,
            position_ids=position_ids.to(device),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return states
