"""The rows that a trial is trained on: the data set's records as token rows, with the media that they show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.datasets import Quarantined, Record, check_quarantine, read_dataset
from pipelines.finetune.recipe import HeldOut, Recipe
from pipelines.models import build_tokenizer
from pipelines.preprocess import media_id
from pipelines.samples import (
    BadSample,
    Medium,
    Piece,
    RowLayout,
    Sample,
    Text,
    batch_order,
    build_sample,
    conversation,
    default_system,
    knows_turns,
    medium_texts,
)
from pipelines.video.frames import FrameStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """Record files below a folder, whose media the frames artifact holds as "dataset/PATH".

    Media paths are relative to their record file's folder.
    """

    root: Path
    files: tuple[str, ...]
    quarantine_limit: float

    def records(self) -> Iterator[Record]:
        """Those that can be used. Raises ValueError after the last when more than quarantine_limit cannot."""
        reasons, total = [], 0
        for name in self.files:
            path = self.root / name
            dataset = read_dataset(path, media_root=path.parent)
            for record in dataset.records:  # an id is of one file only
                yield record if len(self.files) == 1 else replace(record, id=f"{name}:{record.id}")
            reasons += [f"{name} {bad}" for bad in dataset.quarantined]
            total += len(dataset.records) + len(dataset.quarantined)
        check_quarantine(self.root, reasons, total, self.quarantine_limit)


@dataclass(frozen=True)
class Rows:
    """Rows to train on by sample id, rows held out, and the samples that cannot be rows."""

    samples: Mapping[str, Sample]
    held_out: tuple[Sample, ...]
    quarantined: tuple[Quarantined, ...]
    tokenizer: PreTrainedTokenizerBase


def make_rows(
    source: Source,
    frames: FrameStore,
    recipe: Recipe,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    timestamps: bool,
    merge_size: int,
    temporal_patch_size: int,
) -> Rows:
    """Read the records and lay them out; without a tokenizer one is made of the texts themselves (the tiny model's).

    A record whose medium the preprocess stage quarantined goes with it, uncounted here; one that cannot be a row is
    left out with its reason. Raises ValueError when those are a larger share than the source's quarantine_limit.
    """
    quarantined: list[Quarantined] = []
    pieces: dict[str, list[Piece]] = {}
    chat, system = tokenizer is not None and knows_turns(tokenizer), default_system(timestamps=timestamps)
    lines: dict[str, int] = {}
    for record in source.records():
        media = [
            Medium(item.kind, name, about.grid, temporal_patch_size / about.sample_fps)
            for item in record.media
            if (name := media_id("dataset", source.root, item.path)) in frames
            for about in [frames.about(name)]
        ]
        if len(media) < len(record.media):
            continue
        lines[record.id] = record.line
        try:
            pieces[record.id] = conversation(record.turns, media, chat=chat, system=system)
        except BadSample as error:
            quarantined.append(Quarantined(record.line, record.id, str(error)))
    texts = {piece.text for parts in pieces.values() for piece in parts if isinstance(piece, Text)}
    tokenizer = tokenizer or build_tokenizer(texts)
    layout = RowLayout(tokenizer, merge_size, timestamps)
    texts.update(text for parts in pieces.values() for piece in parts for text in _times(piece, layout))
    ordered = sorted(texts)  # each text recurs often, and one call for all is many times faster
    ids = dict(zip(ordered, tokenizer(ordered, add_special_tokens=False).input_ids, strict=True)) if ordered else {}
    samples: dict[str, Sample] = {}
    for sample_id, parts in pieces.items():
        try:
            samples[sample_id] = build_sample(
                sample_id, parts, layout, encode=ids.__getitem__, cutoff_len=recipe.cutoff_len
            )
        except BadSample as error:
            quarantined.append(Quarantined(lines[sample_id], sample_id, str(error)))
    check_quarantine("rows", [str(entry) for entry in quarantined], len(lines), source.quarantine_limit)
    trained, held_out = hold_out(samples, recipe.held_out)
    return Rows(trained, held_out, tuple(quarantined), tokenizer)


def hold_out(
    samples: Mapping[str, Sample], held_out: HeldOut | None
) -> tuple[Mapping[str, Sample], tuple[Sample, ...]]:
    """The rows to train on, and those held out, the same for every variant and seed.

    Held out are those whose media (of a text alone: whose id) have the least sha256. A row that shows a medium of
    theirs is not trained on either. Raises ValueError when none is left.
    """
    if held_out is None:
        return samples, ()
    order = sorted(samples.values(), key=lambda sample: (_media_sha256(sample), sample.id))
    chosen = tuple(order[: held_out.rows])
    shown, ids = {medium.id for sample in chosen for medium in sample.media}, {sample.id for sample in chosen}
    trained = {
        name: sample
        for name, sample in samples.items()
        if name not in ids and shown.isdisjoint(medium.id for medium in sample.media)
    }
    if not trained:
        raise ValueError(
            f"recipe.held_out.rows {held_out.rows} leaves none of {len(samples)} rows to train on; lower it, or give "
            "more training videos"
        )
    return trained, chosen


def _media_sha256(sample: Sample) -> str:
    return hashlib.sha256(json.dumps([medium.id for medium in sample.media] or sample.id).encode()).hexdigest()


def _times(piece: Piece, layout: RowLayout) -> list[str]:
    return medium_texts(piece, layout) if isinstance(piece, Medium) else []


def batches(samples: Mapping[str, Sample], recipe: Recipe, seed: int) -> Iterator[tuple[int, list[Sample]]]:
    """(epoch, rows) of every step. Raises ValueError where the rows give no batch at all."""
    lengths = {sample_id: len(sample.input_ids) for sample_id, sample in samples.items()}
    steps = recipe.num_steps(len(samples))
    done = epoch = 0
    while done < steps or epoch == 0:
        order = batch_order(
            lengths, batch_size=recipe.batch_size, seed=seed, epoch=epoch, equal_lengths=recipe.equal_lengths
        )
        if not order:
            one_length = " of one length" if recipe.equal_lengths else ""
            raise ValueError(
                f"{len(samples)} samples give no batch of {recipe.batch_size} rows{one_length}; "
                "lower recipe.batch_size or give more training videos"
            )
        for batch in order[: steps - done]:
            yield epoch, [samples[sample_id] for sample_id in batch]
            done += 1
        epoch += 1


def write_quarantine(path: Path, quarantined: tuple[Quarantined, ...]) -> None:
    lines: list[dict[str, Any]] = [asdict(entry) for entry in quarantined]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
