"""Reading token rows on kept keys and values: what a row begins with like the one before it is not computed again.

B rows of one length at a time, S tokens of a row, D channels, V vocabulary. A row is given as its *sources*, int64
(B, S): a text token's id, or -1 - i for visual token i of a table (M, D * L), cells in the features' order, token by
token. L is 1, or for Qwen3-VL one more than the layers that its tower feeds (see `visual_tokens`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicLayer, PreTrainedTokenizerBase

from hope_core import Positions, compute_positions
from hope_core.modeling import has_timestamps, variant_of, vision_tokens
from pipelines.benchmarks.videos import NeedleVideo
from pipelines.features import Features
from pipelines.models import VISION_END, VISION_START, text_ids
from pipelines.samples import RowLayout, cell_times


def layout_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> RowLayout:
    """How the rows of a loaded model are laid out."""
    return RowLayout(tokenizer, model.config.vision_config.spatial_merge_size, has_timestamps(model.config))


def cell_numbers(video: NeedleVideo, features: Features) -> np.ndarray:
    """The cells of a composed video as places in the features' table, int64 (cells,)."""
    film = features.spans[video.film].first + video.start + np.arange(video.num_film_cells)
    # np.insert counts places in the film, insertions are given by their final cell
    places = [cell - before for before, (cell, _) in enumerate(video.insertions)]
    return np.insert(film, places, [features.spans[media].first for _, media in video.insertions])


def visual_sources(cells: np.ndarray, features: Features) -> Tensor:
    """The sources of a video's visual tokens, int64 (cells, N)."""
    numbers = torch.from_numpy(cells)[:, None] * features.tokens_per_cell + torch.arange(features.tokens_per_cell)
    return -1 - numbers


def marked_sources(cells: Tensor, seconds_per_cell: float, layout: RowLayout) -> Tensor:
    """A video's visual sources (cells, N) between its marks, or each cell between marks of its own after its time."""
    tokenizer = layout.tokenizer
    start, end = (torch.tensor([mark]) for mark in tokenizer.convert_tokens_to_ids([VISION_START, VISION_END]))
    if not layout.timestamps:
        return torch.cat([start, cells.flatten(), end])
    times = tokenizer(cell_times(len(cells), seconds_per_cell), add_special_tokens=False).input_ids
    parts = [part for time, cell in zip(times, cells, strict=True) for part in (torch.tensor(time), start, cell, end)]
    return torch.cat(parts)


def video_sources(video: NeedleVideo, features: Features, layout: RowLayout) -> Tensor:
    """The sources of all that comes before a video's questions: its text, and the video between its marks, (S,)."""
    before = text_ids(layout.tokenizer, video.before) if video.before else []
    visual = visual_sources(cell_numbers(video, features), features)
    marked = marked_sources(visual, features.spans[video.film].seconds_per_cell, layout)
    return torch.cat([torch.tensor(before, dtype=torch.long), marked])


@dataclass(frozen=True)
class Shown:
    """The video in a row: `grid` is (T, H, W) in patches, a cell lasts `seconds_per_cell`."""

    grid: tuple[int, int, int]
    seconds_per_cell: float


def shown(video: NeedleVideo, features: Features) -> Shown:
    """What a composed video is to a reader; it has its film's speed."""
    return Shown((video.num_cells, *features.grid), features.spans[video.film].seconds_per_cell)


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

    def __init__(self, model: Any, visual: Tensor, *, scale: float | None, capacity: int, chunk_tokens: int) -> None:
        """`visual`: the table (M, D * L). `scale`: positions per cell, None for a variant that has none.
        `chunk_tokens`: of a row in one forward."""
        if has_timestamps(model.config) and variant_of(model).scalable:
            scale = 1.0  # any is the same there, and a variant that draws its scale must be given one
        self._model, self._visual, self._scale, self._chunk_tokens = model, visual, scale, chunk_tokens
        self._layers = [KeptLayer(capacity) for _ in range(model.config.text_config.num_hidden_layers)]
        self._cache = Cache(layers=self._layers)
        self._kept: tuple[Tensor, Tensor] | None = None  # sources (B, S) and positions (3, B, S) of the last rows
        self.read_tokens = self.naive_tokens = 0

    def logits(self, sources: Tensor, videos: Sequence[Shown], *, last: int) -> Tensor:
        """(B, last, V): what the model expects after each of the rows' last tokens.

        Raises ValueError where a row's visual tokens are not as many as its video has.
        """
        return self._read(sources, self._positions(sources, videos).position_ids, last)

    def generate(self, sources: Tensor, video: Shown, *, max_new_tokens: int, stops: Collection[int]) -> list[int]:
        """The greedy continuation of one row (1, S): at most max_new_tokens ids; any of `stops` ends it, left out."""
        positions = self._positions(sources, [video])
        after = sources.shape[1] + float(positions.rope_deltas[0, 0])
        made: list[int] = []
        token = int(self._read(sources, positions.position_ids, 1)[0, 0].argmax())
        while token not in stops:
            made.append(token)
            if len(made) == max_new_tokens:
                break
            # Placed as text whatever it is: a model may well write a visual placeholder.
            place = after + (len(made) - 1) * variant_of(self._model).positions.text_step
            token = int(self._forward(torch.tensor([[token]]), torch.full((3, 1, 1), place), last=1)[0, 0].argmax())
        return made

    def _read(self, sources: Tensor, position_ids: Tensor, last: int) -> Tensor:
        length = sources.shape[1]
        shared = self._shared(sources, position_ids, length - last)
        self._kept = sources, position_ids
        for layer in self._layers:
            layer.length = shared
        logits = []
        for start in range(shared, length, self._chunk_tokens):
            stop = min(start + self._chunk_tokens, length)
            wanted = max(0, min(stop - start, stop - length + last))
            logits.append(self._forward(sources[:, start:stop], position_ids[:, :, start:stop], last=wanted))
        self.read_tokens += int((sources[:, shared:] < 0).sum())
        self.naive_tokens += int((sources < 0).sum())
        return torch.cat(logits, dim=1)

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

    def _positions(self, sources: Tensor, videos: Sequence[Shown]) -> Positions:
        """On the CPU."""
        config = self._model.config
        tokens = vision_tokens(config)
        return compute_positions(
            variant_of(self._model),
            torch.where(sources < 0, tokens.video, sources),
            tokens=tokens,
            video_grid_thw=torch.tensor([video.grid for video in videos]),
            spatial_merge_size=config.vision_config.spatial_merge_size,
            seconds_per_frame=[video.seconds_per_cell for video in videos],
            scales=self._scale,
        )

    @torch.no_grad()
    def _forward(self, sources: Tensor, position_ids: Tensor, *, last: int) -> Tensor:
        """Logits (B, last, V) at the end of a chunk of the rows, read on what is kept."""
        device = self._model.device
        visual = sources < 0
        hidden = self._model.get_input_embeddings()(torch.where(visual, 0, sources).to(device))
        deeper: dict[str, Any] = {}
        if visual.any():
            levels = self._visual[-1 - sources[visual]].to(device, hidden.dtype).split(hidden.shape[-1], dim=-1)
            hidden[visual.to(device)] = levels[0]
            if len(levels) > 1:
                deeper = {"visual_pos_masks": visual.to(device), "deepstack_visual_embeds": list(levels[1:])}
        states = self._model.model.language_model(
            inputs_embeds=hidden,
            position_ids=position_ids.to(device),
            past_key_values=self._cache,
            use_cache=True,
            **deeper,
        ).last_hidden_state
        logits: Tensor = self._model.lm_head(states[:, states.shape[1] - last :])
        return logits
