import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from safetensors.torch import save_file

from experiments.config import ScaleRange
from experiments.scale_points import Reference, key_of, measure, summary
from experiments.scale_search import SearchIdentity, SearchPlacement, run
from pipelines.benchmarks.needles import FILM_PREFIX
from pipelines.engine import Artifact, StageConfig
from pipelines.features import open_features
from tests.pipelines import world

SCALES = (0.25, 1.0, 4.0)
RANGE = ScaleRange(0.25, 4.0, trials=7)


def identity(scales: tuple[float, ...] | ScaleRange = SCALES, **changes: Any) -> SearchIdentity:
    return SearchIdentity(world.benchmark(), (16, 40), scales, 0, **changes)


def search(
    trial: dict[str, Artifact], out_dir: Path, wanted: SearchIdentity | None = None, **placement: Any
) -> dict[str, Any]:
    out_dir.mkdir(exist_ok=True)
    config = StageConfig(wanted or identity(), SearchPlacement(chunk_tokens=256, **placement))
    inputs = {"checkpoint": trial["finetune"], "features": trial["features"], "dataset": trial["dataset"]}
    return run(config, inputs, out_dir)


def curve(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scale_search.json").read_text())
    return found


def answer_beforehand(
    trial: dict[str, Artifact], folder: Path, wanted: SearchIdentity, correct: dict[float, bool]
) -> None:
    """Leave in `answered` a search that was killed when every question had been answered, right or wrong by scale."""
    search(trial, folder / "asked", replace(wanted, prune_p=None))
    (folder / "answered" / "answers").mkdir(parents=True)
    for path in (folder / "asked" / "answers").iterdir():
        lines = [{**asked, "correct": correct[asked["scale"]]} for asked in lines_of(path)]
        text = "".join(json.dumps(asked) + "\n" for asked in lines)
        (folder / "answered" / "answers" / path.name).write_text(text)


def open_study(storage: BaseStorage) -> optuna.Study:
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def journal(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / "journal.log")))


def cut_journal(folder: Path, *, after_tells: int) -> None:
    """Leave Optuna's journal as a kill would after this many points were told and the next was asked for."""
    lines = (folder / "journal.log").read_text().splitlines(keepends=True)
    told = [n for n, line in enumerate(lines) if json.loads(line)["op_code"] == 6]
    asked = [n for n, line in enumerate(lines) if json.loads(line)["op_code"] == 4 and n > told[after_tells - 1]]
    (folder / "journal.log").write_text("".join(lines[: asked[0] + 1]))


def test_every_scale_is_measured_once_and_the_best_is_chosen(trial: dict[str, Artifact], tmp_path: Path) -> None:
    result = search(trial, tmp_path)
    found = curve(tmp_path)
    assert [point["scale"] for point in found["points"]] == list(SCALES)
    best = max(point["accuracy"] for point in found["points"])
    chosen = next(point for point in found["points"] if point["scale"] == found["chosen"])
    assert result["chosen"] == found["chosen"]
    assert chosen["accuracy"] == best
    assert all(set(point["per_kind"]) == {"retrieval", "order"} for point in found["points"])
    assert all(point["low"] < point["accuracy"] < point["high"] for point in found["points"] if point["accuracy"])


def test_of_equal_scales_the_one_nearest_to_1_wins(trial: dict[str, Artifact], tmp_path: Path) -> None:
    answer_beforehand(trial, tmp_path, identity(), dict.fromkeys(SCALES, True))
    assert search(trial, tmp_path / "answered")["chosen"] == 1.0


def test_the_search_never_reads_a_test_film(trial: dict[str, Artifact], tmp_path: Path) -> None:
    search(trial, tmp_path / "clean")
    read = {line["video"] for path in (tmp_path / "clean" / "answers").iterdir() for line in lines_of(path)}
    known = open_features(trial["features"].path)
    films = set(known.lengths(FILM_PREFIX))
    assert len(read) == 1
    assert read < films
    table = known.table.clone()
    for span in (known.spans[name] for name in films - read):
        table[span.first : span.first + span.num_cells] = float("nan")
    poisoned = tmp_path / "features"
    poisoned.mkdir()
    save_file({"cells": table}, poisoned / "features.safetensors")
    (poisoned / "features.json").write_bytes((trial["features"].path / "features.json").read_bytes())
    features = trial["features"]
    without = {**trial, "features": Artifact(features.stage, features.fingerprint, poisoned, features.result)}
    search(without, tmp_path / "poisoned")
    assert curve(tmp_path / "poisoned") == curve(tmp_path / "clean")


@pytest.mark.parametrize(
    "wanted", [identity(), identity(RANGE, batch=2), identity(RANGE)], ids=["list", "batches", "range"]
)
def test_a_killed_search_fails_its_open_trial_and_ends_as_an_uninterrupted_one(
    trial: dict[str, Artifact], tmp_path: Path, wanted: SearchIdentity
) -> None:
    search(trial, tmp_path, wanted)
    whole = curve(tmp_path)
    cut_journal(tmp_path, after_tells=wanted.num_points - 1 if wanted.scales == SCALES else 5)
    last = sorted((tmp_path / "answers").iterdir())[-1]
    last.write_text(last.read_text()[:-20])  # the last line is torn
    search(trial, tmp_path, wanted)
    assert curve(tmp_path) == whole
    states = [t.state for t in open_study(journal(tmp_path)).get_trials()]
    assert states.count(TrialState.COMPLETE) == wanted.num_points
    assert set(states) == {TrialState.COMPLETE, TrialState.FAIL}


def test_a_range_is_searched_by_tpe_and_a_seed_repeats_it(trial: dict[str, Artifact], tmp_path: Path) -> None:
    search(trial, tmp_path / "a", identity(RANGE))
    search(trial, tmp_path / "b", identity(RANGE))
    scales = [point["scale"] for point in curve(tmp_path / "a")["points"]]
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert len(set(scales)) == RANGE.trials
    assert all(RANGE.low <= scale <= RANGE.high for scale in scales)


def test_optuna_may_keep_its_trials_in_a_database(trial: dict[str, Artifact], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    search(trial, tmp_path / "first", storage_url=url)
    search(trial, tmp_path / "again", storage_url=url)  # every point is told already
    assert not list((tmp_path / "again" / "answers").iterdir())
    assert curve(tmp_path / "again") == curve(tmp_path / "first")
    assert len(open_study(RDBStorage(url)).get_trials()) == len(SCALES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((2.0, 1.0, 3), "goes from 2 to 1; give 0 < low < high"), ((0.5, 1.0, 0), "trials is 0; it must be 1 or more")],
)
def test_a_range_that_cannot_be_is_refused(arguments: tuple[float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleRange(*arguments)


# pruning


class Film:
    """Answers of a made-up model: `correct` says which questions it gets right; counts what it was asked."""

    def __init__(self, correct: dict[str, bool]) -> None:
        self.correct = correct
        self.asked: list[str] = []

    def answers(
        self, context: int, scale: float | None, *, skip: frozenset[str] = frozenset()
    ) -> Iterator[dict[str, Any]]:
        for name, correct in self.correct.items():
            if name not in skip:
                self.asked.append(name)
                yield line(name, f"film {int(name) % 8}", context=context, correct=correct)


def line(name: str, video: str, *, context: int, correct: bool) -> dict[str, Any]:
    return {"id": name, "video": video, "context": context, "kind": "retrieval", "correct": correct}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def reference_of(film: Film, path: Path) -> Reference:
    lines, _ = measure(film, (32, 64), 1.0, path)
    return {key_of(answer): (answer["video"], answer["correct"]) for answer in lines}


def test_a_bad_scale_stops_after_tens_of_questions_and_a_good_one_is_asked_all(tmp_path: Path) -> None:
    good = {str(n): n % 5 != 0 for n in range(200)}
    reference = reference_of(Film(good), tmp_path / "best.jsonl")
    bad = Film({name: int(name) % 9 == 0 for name in good})
    lines, pruned = measure(bad, (32, 64), 8.0, tmp_path / "bad.jsonl", reference=reference, prune_p=0.1)
    assert pruned
    assert len(lines) == len(bad.asked) <= 60
    assert {answer["context"] for answer in lines} == {32, 64}  # the prefix is of every context
    assert summary(8.0, lines, pruned)["state"] == "pruned"
    like = Film({name: int(name) % 5 != 1 for name in good})
    lines, pruned = measure(like, (32, 64), 0.9, tmp_path / "like.jsonl", reference=reference, prune_p=0.1)
    assert not pruned
    assert len(lines) == 400


def test_a_point_killed_mid_way_is_pruned_at_the_same_question(tmp_path: Path) -> None:
    good = {str(n): True for n in range(200)}
    reference = reference_of(Film(good), tmp_path / "best.jsonl")
    bad = Film(dict.fromkeys(good, False))
    whole = measure(bad, (32, 64), 8.0, tmp_path / "bad.jsonl", reference=reference, prune_p=0.1)
    text = (tmp_path / "bad.jsonl").read_text()
    (tmp_path / "bad.jsonl").write_text(text[: len(text) // 2])
    bad.asked.clear()
    again = measure(bad, (32, 64), 8.0, tmp_path / "bad.jsonl", reference=reference, prune_p=0.1)
    assert again == whole
    assert 0 < len(bad.asked) < len(whole[0])


def test_a_pruned_point_is_in_the_curve_with_the_questions_that_it_saw(
    trial: dict[str, Artifact], tmp_path: Path
) -> None:
    benchmark = replace(world.benchmark(videos_per_depth=6), num_validation_films=3)
    wanted = replace(identity(prune_p=0.1), benchmark=benchmark)
    answer_beforehand(trial, tmp_path, wanted, {0.25: False, 1.0: True, 4.0: False})
    result = search(trial, tmp_path / "answered", wanted)
    assert (result["chosen"], result["pruned"]) == (1.0, 2)
    states = {point["scale"]: (point["state"], point["questions"]) for point in curve(tmp_path / "answered")["points"]}
    assert states == {0.25: ("pruned", 24), 1.0: ("complete", 72), 4.0: ("pruned", 24)}
    assert len(open_study(journal(tmp_path / "answered")).get_trials(states=(TrialState.PRUNED,))) == 2
