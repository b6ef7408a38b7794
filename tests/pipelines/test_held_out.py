"""Rows that are not trained on: which they are, what is measured on them, and whose weights are kept."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from hope_core import compute_positions
from hope_core.modeling import load, variant_of, vision_tokens
from pipelines.engine import Artifact
from pipelines.finetune import HeldOut, state
from pipelines.finetune.rows import Source, hold_out, make_rows
from pipelines.samples import IGNORED, Medium, Sample
from pipelines.video.budget import normalise
from pipelines.video.frames import open_frames
from tests.pipelines import world
from tests.pipelines.test_training_resumes import RECIPE, train
from tests.pipelines.tiny_checkpoint import write_checkpoint


def row(name: str, *videos: str) -> Sample:
    return Sample(name, tuple(Medium("video", video, (2, 4, 4), 1.0) for video in videos), (1, 2), (IGNORED, 2))


def test_the_same_rows_are_held_out_in_whatever_order_they_come() -> None:
    samples = {str(number): row(str(number), f"video{number}") for number in range(20)}
    trained, held_out = hold_out(samples, HeldOut(5, 1))
    again, same = hold_out(dict(reversed(samples.items())), HeldOut(5, 1))
    assert (again, same) == (trained, held_out)
    assert len(held_out) == 5
    assert {*trained, *(sample.id for sample in held_out)} == set(samples)
    assert [sample.id for sample in held_out] != list(samples)[:5]


def test_no_video_of_a_held_out_row_is_trained_on() -> None:
    samples = {f"{video}{number}": row(f"{video}{number}", video) for video in "abcd" for number in range(3)}
    samples["both"] = row("both", *"abcd")
    trained, held_out = hold_out(samples, HeldOut(2, 1))
    shown = {medium.id for sample in held_out for medium in sample.media}
    assert trained
    assert not [name for name, sample in trained.items() if shown & {medium.id for medium in sample.media}]
    assert hold_out(samples, None) == (samples, ())


def test_rows_that_all_show_one_video_cannot_be_held_out() -> None:
    samples = {name: row(name, "video") for name in "abc"}
    with pytest.raises(ValueError, match=r"recipe\.held_out\.rows 1 leaves none of 3 rows to train on; lower it"):
        hold_out(samples, HeldOut(1, 1))


@pytest.mark.parametrize(("rows", "every_steps", "name"), [(0, 1, "rows"), (1, 0, "every_steps")])
def test_nothing_held_out_is_said_with_null(rows: int, every_steps: int, name: str) -> None:
    with pytest.raises(ValueError, match=rf"recipe\.held_out\.{name} is 0; it must be 1 or more"):
        HeldOut(rows, every_steps)


def test_the_best_weights_of_the_last_checkpoint_are_there_until_the_next(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    def with_weight(value: float) -> torch.nn.Linear:
        model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(model.weight, value)
        return model

    def save(step: int, best: state.Best) -> None:
        optimizer = torch.optim.AdamW(model.parameters())
        state.save(tmp_path, model, optimizer, step=step, used=used, best=best, writes=True)

    model, used = with_weight(1.0), state.Used("a", "b", ((0.5, 3),))
    state.save_best(tmp_path, model, step=1, writes=True)
    save(2, state.Best(1, 0.25))
    state.save_best(tmp_path, with_weight(3.0), step=3, writes=True)
    state.save_best(tmp_path, with_weight(4.0), step=4, writes=True)
    assert names() == {"step-2", "best-1", "best-4"}
    # It was killed here and goes on with step 2.
    state.forget(tmp_path, tmp_path / "history.jsonl", 2)
    assert names() == {"step-2", "best-1"}
    fresh = with_weight(0.0)
    assert state.restore(tmp_path, 2, fresh, torch.optim.AdamW(fresh.parameters())) == (used, state.Best(1, 0.25))
    fresh = with_weight(0.0)
    state.restore_best(tmp_path, state.Best(1, 0.25), fresh)
    assert fresh.weight.item() == 1.0
    state.save_best(tmp_path, model, step=3, writes=True)
    save(4, state.Best(3, 0.125))
    assert names() == {"step-4", "best-3"}


def answer_loss_of(checkpoint: Path, rows: Any, frames: Any, statistics: Any) -> float:
    """The mean loss of the held-out rows' answers under a checkpoint, row by row, at the scale 1."""
    model = load(checkpoint).eval()
    losses = []
    for sample in rows.held_out:
        ids, grid = torch.tensor([sample.input_ids]), torch.tensor([medium.grid for medium in sample.media])
        positions = compute_positions(
            variant_of(model),
            ids,
            tokens=vision_tokens(model.config),
            video_grid_thw=grid,
            spatial_merge_size=world.MODEL.spatial_merge_size,
            scales=1.0,
        )
        pixels = [torch.from_numpy(normalise(frames.rows(medium.id), *statistics)) for medium in sample.media]
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                pixel_values_videos=torch.cat(pixels),
                video_grid_thw=grid,
                position_ids=positions.position_ids,
            ).logits
        wanted = torch.tensor(sample.labels[1:])
        losses.append(cross_entropy(logits[0, :-1], wanted, ignore_index=IGNORED, reduction="none")[wanted != IGNORED])
    return torch.cat(losses).mean().item()


def test_the_weights_of_the_lowest_held_out_loss_are_kept(trial: dict[str, Artifact], tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", world.MODEL)
    # So fast that the first measurement stays the best; its interval does not divide the steps.
    recipe = dataclasses.replace(RECIPE, steps=5, lr=1.0, held_out=HeldOut(5, 3, "best"))
    found = train(trial, tmp_path / "out", model, recipe, micro_batch_size=3, packed=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}
    assert list(measured) == [2, 4]
    assert (found["best_step"], found["best_held_out_loss"]) == (2, measured[2])
    assert measured[2] < measured[4]

    frames = open_frames(trial["frames"].path)
    rows = make_rows(
        Source(trial["dataset"].path, ("train.json",), 0.0),
        frames,
        recipe,
        tokenizer=model.tokenizer(),
        timestamps=False,
        merge_size=world.MODEL.spatial_merge_size,
        temporal_patch_size=world.MODEL.temporal_patch_size,
    )
    assert found["held_out_rows"] == len(rows.held_out) == 5
    assert found["num_samples"] == len(rows.samples) == 43
    kept = answer_loss_of(tmp_path / "out" / "checkpoint", rows, frames, model.normalisation)
    assert kept == pytest.approx(measured[2], rel=1e-5)
