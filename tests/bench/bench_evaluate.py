"""Evaluation: a needle grid on shared prefixes against a full forward for each question, and a long one's memory.

The published grid is counted by composing it. The timed grid is smaller: random weights and features, every prediction
compared. Memory is what a process holds at most over the model and the features.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from hope_core import compute_positions, get_variant
from hope_core.modeling import install, load, variant_of, vision_tokens
from pipelines.asked import FolderQuestions
from pipelines.benchmarks.folder import FolderBudget, FolderRecord
from pipelines.benchmarks.niah import NiahBenchmark, compose
from pipelines.benchmarks.videos import NeedleVideo
from pipelines.engine import Artifact
from pipelines.evaluate import Evaluator
from pipelines.features import Features, Span, open_features
from pipelines.models import RandomModel, build_model, build_tokenizer, text_ids
from pipelines.prefill import Reader, cell_numbers, layout_of, shown, video_sources
from tests.bench.measure import Row, one_thread

FILM = "folder/haystack/film.mp4"
NEEDLES = tuple(f"folder/needles/{number}.png" for number in range(5))
DEPTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PUBLISHED = tuple(range(100, 3000, 200))
TIMED = (20, 60, 100, 140, 180, 220, 260)
GRID = (4, 4)  # patches of a cell: 4 tokens
SCALE = 0.75
ROUNDS = 2
SHORT, LONG = 16 * 1024, 64 * 1024
MEMORY_CHUNK = 128
MODEL = RandomModel(
    kind="random",
    name="bench",
    hidden_size=256,
    intermediate_size=1536,  # to the hidden size as in Qwen2-VL-2B
    num_layers=2,
    num_heads=4,
    rope_theta=1e6,
    initializer_range=0.05,
    vision_depth=1,
    vision_embed_dim=16,
    vision_num_heads=1,
    patch_size=8,
    spatial_merge_size=2,
    temporal_patch_size=2,
)
# As much of a token in keys and values, against the mask of a chunk, as attention over 64k tokens leaves time for.
SMALL = replace(MODEL, hidden_size=64, intermediate_size=128, num_heads=1, num_layers=8)


def rows() -> list[Row]:
    one_thread()
    return [*_counted(), *_timed(), _memory()]


def _benchmark(contexts: tuple[int, ...], period: int) -> NiahBenchmark:
    return NiahBenchmark(
        kind="niah",
        name="v_niah",
        root="",
        records="",
        films="haystack",
        pictures="needles",
        budget=FolderBudget(fps=1.0, max_frames=6000, frame_height=252, frame_width=448),
        contexts=contexts,
        depths=DEPTHS,
        distractor_period=period,
        num_validation_films=0,
        preamble="",
        postprompt="",
        seed=0,
    )


def _records(period: int) -> tuple[FolderRecord, ...]:
    twins = [(NEEDLES[(number + 1) % 5],) if period else () for number in range(5)]
    return tuple(
        FolderRecord(str(number), f"find {number}", str(number), (NEEDLES[number], *twins[number]))
        for number in range(5)
    )


def _spans(num_cells: int) -> dict[str, Span]:
    needles = {needle: Span(num_cells + number, 1, 1.0) for number, needle in enumerate(NEEDLES)}
    return {FILM: Span(0, num_cells, 1.0)} | needles


def _counted() -> list[Row]:
    features = Features(torch.empty(0, 4, 1), _spans(max(PUBLISHED)), GRID, {})
    table = []
    for name, period in (("V-NIAH", 0), ("V-NIAH-D", 200)):
        benchmark = _benchmark(PUBLISHED, period)
        lengths = {FILM: max(PUBLISHED)}
        videos = [v for n in PUBLISHED for v in compose(benchmark, _records(period), films=lengths, context=n)]
        paths = sorted((cell_numbers(video, features) for video in videos), key=lambda path: path.tolist())
        naive = sum(map(len, paths))
        shared = naive - sum(_common(before, path) for before, path in pairwise(paths))
        what = f"frames prefilled for {name}'s published grid of {len(videos)} videos, against one by one"
        table.append(Row(what, f"{shared:,}", f"{naive:,}", shared / naive, "<= 0.36" if not period else ""))
    return table


def _common(first: np.ndarray, second: np.ndarray) -> int:
    shorter = min(len(first), len(second))
    differs = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differs[0]) if len(differs) else shorter


def _timed() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        inputs = _inputs(Path(name))
        asked = FolderQuestions(_benchmark(TIMED, 0), _records(0))
        naive_s, shared_s = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            naive = _one_by_one(inputs, asked)
            naive_s.append(time.perf_counter() - start)
            start = time.perf_counter()
            evaluator = Evaluator(inputs, asked, split="test", chunk_tokens=2048)
            shared = {line["id"]: line["prediction"] for line in evaluator.all_answers(TIMED, SCALE)}
            shared_s.append(time.perf_counter() - start)
    counts = evaluator.prefill.values()
    frames, naive_frames = sum(c.cells for c in counts), sum(c.naive_cells for c in counts)
    own, other = min(shared_s), min(naive_s)
    grid = f"{len(TIMED)} lengths x {len(DEPTHS)} depths x {len(NEEDLES)} needles"
    same = sum(shared[key] == prediction for key, prediction in naive.items())
    return [
        Row(
            f"a grid of {grid}, against one full forward each", f"{own:.2f} s", f"{other:.2f} s", own / other, "<= 0.45"
        ),
        Row("frames prefilled in it", f"{frames:,}", f"{naive_frames:,}", frames / naive_frames, ""),
        Row("predictions that are the same", str(same), str(len(naive)), same / len(naive), "1"),
    ]


def _inputs(folder: Path) -> dict[str, Artifact]:
    """A checkpoint with random weights and random features, as the stages would leave them."""
    tokenizer = build_tokenizer([f"find {n}" for n in range(5)] + [str(n) for n in range(5)])
    model = build_model(MODEL, tokenizer, seed=0)
    install(model, get_variant("hope"))
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    spans = _spans(max(TIMED))
    table = torch.randn(max(TIMED) + 5, 4, MODEL.hidden_size, generator=torch.Generator().manual_seed(0))
    save_file({"cells": table}, folder / "features.safetensors")
    about = {"grid": GRID, "spans": {name: vars(span) for name, span in spans.items()}, "missing": {}}
    (folder / "features.json").write_text(json.dumps(about))
    return {name: Artifact(name, "", folder, {}) for name in ("checkpoint", "features")}


@torch.no_grad()
def _one_by_one(inputs: dict[str, Artifact], asked: FolderQuestions) -> dict[str, str]:
    """The reference: for each question one forward over its whole row, logits at the answer only."""
    evaluator = Evaluator(inputs, asked, split="test", chunk_tokens=2048)
    model = load(inputs["checkpoint"].path / "checkpoint").eval()
    features = open_features(inputs["features"].path)
    tokenizer = build_tokenizer([f"find {n}" for n in range(5)] + [str(n) for n in range(5)])
    predictions = {}
    for video in [video for context in TIMED for video in evaluator.videos(context)]:
        before = video_sources(video, features, layout_of(model, tokenizer))
        for question in video.questions:
            row = torch.cat([before, torch.tensor(text_ids(tokenizer, question.prompt))])[None]
            best = _forward(model, features, row, [video]).argmax(-1)
            predictions[question.id] = tokenizer.decode(best[0, -1:].tolist())
    return predictions


def _forward(model: Any, features: Features, sources: torch.Tensor, videos: Sequence[NeedleVideo]) -> torch.Tensor:
    tokens = vision_tokens(model.config)
    ids = torch.where(sources < 0, tokens.video, sources)
    hidden = model.get_input_embeddings()(ids)
    hidden[sources < 0] = features.table.flatten(0, 1)[-1 - sources[sources < 0]]
    positions = compute_positions(
        variant_of(model),
        ids,
        tokens=tokens,
        video_grid_thw=torch.tensor([[video.num_cells, *GRID] for video in videos]),
        scales=SCALE,
    )
    states = model.model.language_model(
        inputs_embeds=hidden, position_ids=positions.position_ids, use_cache=False
    ).last_hidden_state
    logits: torch.Tensor = model.lm_head(states[:, -1:])
    return logits


def _memory() -> Row:
    peaks = {}
    for num_tokens in (SHORT, LONG):
        command = [sys.executable, "-m", "tests.bench.bench_evaluate", str(num_tokens)]
        peaks[num_tokens] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # float32 keys and values of every layer
    cache = 2 * 4 * SMALL.num_layers * SMALL.hidden_size * LONG
    bound = 1.3 * peaks[SHORT] + cache
    what = (
        f"peak memory of 64k tokens in chunks of {MEMORY_CHUNK}, against 1.3 x that of 16k "
        f"({peaks[SHORT] / 2**20:.0f} MiB) + keys and values of 64k ({cache / 2**20:.0f} MiB)"
    )
    return Row(what, f"{peaks[LONG] / 2**20:.0f} MiB", f"{bound / 2**20:.0f} MiB", peaks[LONG] / bound, "<= 1")


def _read_once(num_tokens: int) -> None:
    """In a process of its own: read one row of so many visual tokens and print the bytes that it took at most."""
    one_thread()
    tokenizer = build_tokenizer(["find 0", "0"])
    model = build_model(SMALL, tokenizer, seed=0).eval()
    install(model, get_variant("hope"))
    num_cells = num_tokens // 4
    features = Features(torch.randn(num_cells + 5, 4, SMALL.hidden_size), _spans(num_cells), GRID, {})
    _read(model, features, tokenizer, cells=64)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    _read(model, features, tokenizer, cells=num_cells)
    print(_resident("VmHWM") - before)


def _read(model: Any, features: Features, tokenizer: Any, *, cells: int) -> None:
    video = NeedleVideo("", FILM, 0, cells, cells, None, (), ())
    before = video_sources(video, features, layout_of(model, tokenizer))
    row = torch.cat([before, torch.tensor(text_ids(tokenizer, "find 0"))])[None]
    reader = Reader(model, features.table.flatten(0, 1), scale=SCALE, capacity=row.shape[1], chunk_tokens=MEMORY_CHUNK)
    reader.logits(row, [shown(video, features)], last=1)


def _resident(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _read_once(int(sys.argv[1]))
