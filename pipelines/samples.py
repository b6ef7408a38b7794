"""Token rows: conversations with their images and videos as the model reads them.

S tokens of a row. A medium of grid (T, H, W) patches stands as T * H * W / merge**2 placeholders between two marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.datasets import PLACEHOLDER, Turn
from pipelines.models import IMAGE_PAD, SPECIAL_TOKENS, VIDEO_PAD, VISION_END, VISION_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that carries no loss
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
DEFAULT_SYSTEM = f"{TURN_START}system\nYou are a helpful assistant.{TURN_END}\n"


class BadSample(Exception):
    """A conversation that cannot be trained on; the message is the reason."""


@dataclass(frozen=True)
class Medium:
    """An image or video of a row; `grid` is (T, H, W) in patches, a cell lasts `seconds_per_cell`."""

    kind: str
    id: str
    grid: tuple[int, int, int]
    seconds_per_cell: float


@dataclass(frozen=True)
class Sample:
    """One training conversation; `labels` has IGNORED but at the answers' tokens."""

    id: str
    media: tuple[Medium, ...]
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """A piece of a row; `learned` text carries loss."""

    text: str
    learned: bool


Piece = Text | Medium


@dataclass(frozen=True)
class RowLayout:
    """How one model's rows are laid out.

    `timestamps`: as Qwen3-VL has them, every cell of a video between marks of its own after its time.
    """

    tokenizer: PreTrainedTokenizerBase
    merge_size: int
    timestamps: bool


def default_system(*, timestamps: bool) -> str:
    """The turn that the family's own template puts where a conversation has none: Qwen3-VL's puts nothing."""
    return "" if timestamps else DEFAULT_SYSTEM


def knows_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    return TURN_START in tokenizer.get_vocab()


def conversation(turns: Sequence[Turn], media: Sequence[Medium], *, chat: bool, system: str) -> list[Piece]:
    """A conversation's texts and media in reading order; raises BadSample for text that holds a special token.

    `chat`: turns between <|im_start|> and <|im_end|>, as Qwen-VL's template has them, after `system` where they begin
    with no such turn; else the texts alone, as the tiny tokenizer knows them.
    """
    waiting = iter(media)
    pieces: list[Piece] = []
    for turn in turns:
        if any(token in turn.text for token in (*SPECIAL_TOKENS, TURN_START, TURN_END)):
            raise BadSample("its text holds a special token of the model")
    if chat and system and turns[0].role != "system":
        pieces.append(Text(system, learned=False))
    for turn in turns:
        learned = turn.role == "assistant"
        if chat:
            pieces.append(Text(f"{TURN_START}{turn.role}\n", learned=False))
        for part in _split(turn.text):
            if part is None:
                pieces.append(next(waiting))
            elif chat or part.strip():
                pieces.append(Text(part if chat else part.strip(), learned))
        if chat:
            pieces += [Text(TURN_END, learned), Text("\n", learned=False)]
    return _joined(pieces) if chat else pieces


def build_sample(
    sample_id: str,
    pieces: Sequence[Piece],
    layout: RowLayout,
    *,
    encode: Callable[[str], Sequence[int]],
    cutoff_len: int | None,
) -> Sample:
    """The row of a conversation's pieces; `encode` turns a text into ids.

    A row of more than `cutoff_len` tokens is cut there, or before the medium that the cut would fall into. Raises
    BadSample for a row that has no answer, or none behind its first token, which nothing predicts.
    """
    ids: list[int] = []
    labels: list[int] = []
    ends: list[tuple[int, int, Medium]] = []  # of each medium its first and last token
    for piece in pieces:
        start = len(ids)
        if isinstance(piece, Text):
            ids += encode(piece.text)
            labels += ids[start:] if piece.learned else [IGNORED] * (len(ids) - start)
        else:
            ids += _medium_ids(piece, layout, encode)
            labels += [IGNORED] * (len(ids) - start)
            ends.append((start, len(ids), piece))
    length = len(ids)
    if cutoff_len is not None and length > cutoff_len:
        length = min([cutoff_len, *(first for first, end, _ in ends if end > cutoff_len)])
    if all(label == IGNORED for label in labels[1:]):
        raise BadSample("it has no answer behind its first token, and nothing predicts that one")
    if all(label == IGNORED for label in labels[1:length]):
        largest = max((end - first for first, end, _ in ends), default=0)
        raise BadSample(
            f"recipe.cutoff_len {cutoff_len} leaves no answer of {len(ids)} tokens (largest medium {largest})"
        )
    kept = tuple(medium for _, end, medium in ends if end <= length)
    return Sample(sample_id, kept, tuple(ids[:length]), tuple(labels[:length]))


def batch_order(
    lengths: Mapping[str, int], *, batch_size: int, seed: int, epoch: int, equal_lengths: bool
) -> list[list[str]]:
    """The sample ids of one epoch in batches; what does not fill a batch is left out.

    With `equal_lengths` a batch has one length, so that no row is padded. Depends on the arguments only: every variant
    trains on the same rows in the same order.
    """
    import torch  # here, as training is planned without it, and it takes two seconds

    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    ids = sorted(lengths)
    shuffled = [ids[i] for i in torch.randperm(len(ids), generator=generator).tolist()]
    waiting: dict[int, list[str]] = {}
    batches = []
    for sample_id in shuffled:
        key = lengths[sample_id] if equal_lengths else 0
        group = waiting.setdefault(key, [])
        group.append(sample_id)
        if len(group) == batch_size:
            batches.append(waiting.pop(key))
    return batches


def _split(text: str) -> list[str | None]:
    """Texts, and None for each placeholder."""
    parts: list[str | None] = []
    for number, part in enumerate(PLACEHOLDER.split(text)):
        parts += [None, part] if number else [part]
    return [part for part in parts if part != ""]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring texts of one kind in one, so that they are cut into tokens as a whole, as at inference."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Text) and isinstance(last, Text) and piece.learned == last.learned:
            joined[-1] = Text(last.text + piece.text, last.learned)
        else:
            joined.append(piece)
    return joined


def medium_texts(medium: Medium, layout: RowLayout) -> list[str]:
    """The texts that stand before each cell of a medium: its time, where the family writes it."""
    if not layout.timestamps or medium.kind == "image":
        return []
    return cell_times(medium.grid[0], medium.seconds_per_cell)


def cell_times(num_cells: int, seconds_per_cell: float) -> list[str]:
    """What Qwen3-VL reads before each cell: the middle between its first and its last frame (two frames a cell).

    Exact for the sampler "stride"; "endpoints" spreads the frames wider, the last ones by up to half a cell.
    """
    return [f"<{(cell + 0.25) * seconds_per_cell:.1f} seconds>" for cell in range(num_cells)]


def _medium_ids(medium: Medium, layout: RowLayout, encode: Callable[[str], Sequence[int]]) -> list[int]:
    cells, height, width = medium.grid
    per_cell = height * width // layout.merge_size**2
    placeholder = IMAGE_PAD if medium.kind == "image" else VIDEO_PAD
    texts = medium_texts(medium, layout)
    if not texts:
        return _marked(layout.tokenizer, placeholder, cells * per_cell)
    cell = _marked(layout.tokenizer, placeholder, per_cell)
    return [token for text in texts for token in [*encode(text), *cell]]


def _marked(tokenizer: PreTrainedTokenizerBase, placeholder: str, count: int) -> list[int]:
    start, token, end = tokenizer.convert_tokens_to_ids([VISION_START, placeholder, VISION_END])
    return [start, *[token] * count, end]
