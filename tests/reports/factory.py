"""Real MLflow stores on SQLite, filled with simulated studies whose effects are known."""

import json
import shlex
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from tests.reports.design import DEPTHS, KINDS, TRAIN_LENGTH, Design, Variant


@dataclass
class Run:
    """One run to be written: children name their parent by its place in the list."""

    name: str
    tags: dict[str, str]
    parent: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    status: str = "FINISHED"


def write_study(root: Path, design: Design | None = None) -> str:
    """Write one simulated study under root with the MLflow client and return the tracking URI."""
    design = design or Design()
    uri, experiment_id = open_store(root, design.name)
    write_to(uri, experiment_id, root / "staging", design)
    return uri


def write_to(uri: str, experiment_id: str, staging: Path, design: Design) -> None:
    """Write the study's runs into an experiment of any tracking store, as a user's client would."""
    client = MlflowClient(uri)
    run_ids: list[str] = []
    for place, run in enumerate(simulate(design)):
        tags = dict(run.tags)
        if run.parent is not None:
            tags["mlflow.parentRunId"] = run_ids[run.parent]
        started = design.started_ms + 1000 * place
        run_id = client.create_run(experiment_id, start_time=started, tags=tags, run_name=run.name).info.run_id
        run_ids.append(run_id)
        client.log_batch(
            run_id,
            metrics=[Metric(key, value, started, step) for key, value, step in run.metrics],
            params=[Param(key, value) for key, value in run.params.items()],
        )
        for path, text in run.files.items():
            file = staging / run_id / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)
        client.set_terminated(run_id, run.status, end_time=started + 900)


def open_store(root: Path, experiment: str) -> tuple[str, str]:
    """Create (or find) the SQLite store under root and the experiment; return the URI and the experiment id."""
    uri = f"sqlite:///{root}/mlflow.db"
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found:
        return uri, found.experiment_id
    return uri, client.create_experiment(experiment, artifact_location=(root / "artifacts").as_uri())


def tag_cells(uri: str, experiment: str, filter_string: str, **tags: str) -> None:
    """Overwrite tags of the cells that match, as a second engine with other settings would have written them."""
    client = MlflowClient(uri)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    for run in client.search_runs([experiment_id], f"tags.kind = 'cell' and {filter_string}"):
        client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def simulate(design: Design) -> list[Run]:
    """The study's runs, parents before children."""
    rng = np.random.default_rng(design.rng_seed)
    of_video = np.arange(design.questions) % design.videos
    difficulty = {
        column: rng.normal(0, 0.05, design.videos)[of_video] + rng.normal(0, 0.1, design.questions)
        for column in design.columns
    }
    runs = [study_run(design)]
    for setting, variant, seed in product(design.settings, design.variants, design.seeds):
        runs += trial_runs(design, setting, variant, seed, difficulty, rng, place=len(runs))
    return runs


def study_run(design: Design) -> Run:
    cells = len(design.variants) * len(design.seeds) * len(design.columns) * len(design.settings)
    benchmark = {
        "context_unit": "frames",
        "train_length": TRAIN_LENGTH,
        "scorer": "argmax@1",
        "budget": {"fps": 2.0, "max_frames": 1024, "decoder": "decord 0.6.0"},
        "question_set": "a1b2c3",
        "chance": 0.1,
        "question_kinds": list(KINDS),
    }
    study = {
        "name": design.name,
        "question": design.question,
        "baseline": design.baseline,
        "description": "Simulated for the tests.",
        "variants": [
            variant.record(design.baseline, setting) for setting, variant in product(design.settings, design.variants)
        ],
        "seeds": list(design.seeds),
        "benchmarks": {
            name: {"title": name.replace("_", "-").upper(), **benchmark, **design.record_of.get(name, {})}
            for name in design.benchmarks
        },
        "scale_rules": list(design.scale_rules),
        "contexts": list(design.contexts),
        "data": {"train_videos": 24, "test_videos": design.videos, "quarantined": 0},
    }
    tags = {
        "kind": "study",
        "study": design.name,
        "question": design.question,
        "baseline": design.baseline,
        "command": shlex.join(["hope", "run", f"study={design.name}", f"study.seeds={list(design.seeds)}"]),
        "expected_cells": str(cells * len(design.scale_rules) - len(design.excluded) * len(design.settings)),
    }
    files = {"study.json": json.dumps(study), "config.yaml": f"study: {design.name}\nseeds: {list(design.seeds)}\n"}
    metrics: list[tuple[str, float, int]] = []
    if design.quarantine is not None:
        metrics = [("data/quarantined", len(design.quarantine), 0), ("data/records", 100, 0)]
        files["data/quarantine.json"] = json.dumps(design.quarantine)
    return Run(design.name, tags, metrics=metrics, files=files)


def trial_runs(
    design: Design,
    setting: str,
    variant: Variant,
    seed: int,
    difficulty: dict[tuple[str, int], np.ndarray],
    rng: np.random.Generator,
    place: int,
) -> list[Run]:
    """A trial and its cells. Variants without a scale give the same answers under every rule."""
    trial_id = f"{variant.name}{f'[{setting}]' if setting else ''}-s{seed}"
    shared = {
        "study": design.name,
        "variant": variant.name,
        "setting": setting,
        "layout": variant.positions,
        "allocation": variant.frequencies,
        "scaling": variant.scaling,
        "seed": str(seed),
        "trial": trial_id,
    }
    luck = rng.normal(0, design.seed_sd)
    steps = range(0, design.steps, 5)
    curve = [("train/loss", 2.3 * np.exp(-step / 8) + 0.02, step) for step in steps]
    curve += [("train/held_out_loss", 2.4 * np.exp(-step / 9) + 0.05, step) for step in steps[::2]]
    curve += [("train/accuracy", 1 - 0.9 * np.exp(-step / 8), step) for step in steps]
    trial = Run(
        f"{variant.name}{f' [{setting}]' if setting else ''} seed {seed}",
        {"kind": "trial", "model": "tiny", "recipe": "tiny_cpu", **shared},
        parent=0,
        params={"recipe.lr": "0.001", "recipe.steps": str(design.steps)},
        metrics=[*curve, ("duration_s", 16.5, 0), ("gpu_hours", 0.25, 0), ("cached", float(seed == 1), 0)],
    )
    draws = {column: rng.random(design.questions) for column in difficulty}
    cells = []
    for benchmark, rule in product(design.benchmarks, design.scale_rules):
        scale = (
            {"published": variant.published_scale, "equal": 1.0, "searched": 0.5}[rule] if variant.scalable else None
        )
        lines: list[str] = []
        contexts = [context for name, context in design.columns if name == benchmark]
        for context in contexts:
            reach = contexts.index(context) / max(1, len(contexts) - 1)
            gain = (0.1 if rule == "searched" and variant.scalable else 0.0) + 0.05 * design.settings.index(setting)
            chance = 0.9 - 0.6 * reach + (variant.effect + gain) * reach + luck * reach + difficulty[benchmark, context]
            correct = draws[benchmark, context] < chance
            if (variant.name, seed, benchmark, context, rule) in design.excluded:
                continue
            cell_run, asked = cell(design, shared, (benchmark, context, rule), scale, correct)
            cells.append(Run(**{**cell_run.__dict__, "parent": place}))
            lines += asked
        if lines:
            trial.files[f"questions/{benchmark}/{rule}.jsonl"] = "".join(lines)
    if variant.scalable:
        trial.files["scale_search.json"] = json.dumps(scale_search(rng))
        trial.metrics += [("scale_search/duration_s", 45.0, 0), ("scale_search/gpu_hours", 0.5, 0)]
    return [trial, *cells]


def cell(
    design: Design, shared: dict[str, str], key: tuple[str, int, str], scale: float | None, correct: np.ndarray
) -> tuple[Run, list[str]]:
    """One cell and its question lines; a failed cell stops after a third of them."""
    benchmark, context, rule = key
    unanswered = 3 * ((shared["variant"], context) in design.unanswered)
    correct[:unanswered] = False
    failed = (shared["variant"], int(shared["seed"]), *key) in design.failed
    correct = correct[: len(correct) // 3] if failed else correct
    kinds = [KINDS[place % len(KINDS)] for place in range(len(correct))]
    tags = {
        "kind": "cell",
        **shared,
        "benchmark": benchmark,
        "context": str(context),
        "scale_rule": rule,
        "budget": "b0d6e7",
        "question_set": "a1b2c3",
        "scorer": "argmax@1",
        "command": f"hope run study={design.name} cell={shared['trial']}/{benchmark}/{context}/{rule}",
        # One stage answers a benchmark's contexts at a scale, under whichever rules have that scale.
        "fingerprint": f"f-{shared['trial']}-{benchmark}-{'searched' if scale and rule == 'searched' else scale}",
        **design.cell_tags.get((shared["variant"], context), {}),
    }
    metrics = [
        ("questions", float(len(correct)), 0),
        ("errors", float(unanswered), 0),
        ("unparsed", 0.0, 0),
        ("duration_s", 1.5, 0),
        ("gpu_hours", 0.01, 0),
    ]
    if failed:
        tags["error"] = design.error
    else:
        metrics.append(("accuracy", float(correct.mean()), 0))
    name = f"{shared['variant']} s{shared['seed']} {benchmark} {context // TRAIN_LENGTH}x {rule}"
    params = {} if scale is None else {"scale": str(scale)}
    run = Run(name, tags, params=params, metrics=metrics, status="FAILED" if failed else "FINISHED")
    lines = [
        json.dumps(
            {
                "id": f"{benchmark}-{context}-{place}",
                "benchmark": benchmark,
                "video": f"clip{place % design.videos}.mp4",
                "kind": kinds[place],
                "context": context,
                "multiple": f"{context // TRAIN_LENGTH}x",
                "depth": DEPTHS[place % len(DEPTHS)],
                "prediction": design.answer if right else "x",
                "answer": design.answer,
                "correct": bool(right),
                "scale": scale,
                "error": design.error if place < unanswered else None,
                "seed": int(shared["seed"]),
                "variant": shared["variant"],
            }
        )
        + "\n"
        for place, right in enumerate(correct)
    ]
    return run, lines


def scale_search(rng: np.random.Generator) -> dict[str, Any]:
    points = []
    for scale, accuracy in zip((0.25, 0.5, 1.0, 2.0), 0.8 - rng.uniform(0, 0.3, 4), strict=True):
        correct = round(40 * accuracy)
        points.append(
            {
                "scale": scale,
                "accuracy": correct / 40,
                "low": max(0.0, correct / 40 - 0.15),
                "high": min(1.0, correct / 40 + 0.15),
                "questions": 40,
                "correct": correct,
                "state": "pruned" if scale == 2.0 else "complete",
                "per_kind": {"retrieval": min(1.0, correct / 38), "order": max(0.0, correct / 44)},
                "per_context": {"64": correct / 40},
            }
        )
    return {"chosen": 0.5, "objective": "mean accuracy on validation questions", "points": points}
