import json
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from experiments.scale_search import SearchIdentity, run
from pipelines.engine import Artifact, StageConfig
from tests.pipelines import world

SCALES = (0.25, 1.0, 4.0)


def search(trial: dict[str, Artifact], out_dir: Path) -> dict[str, object]:
    config = StageConfig(SearchIdentity(world.benchmark(), (16, 40), SCALES, 0))
    inputs = {"checkpoint": trial["finetune"], "features": trial["features"], "dataset": trial["dataset"]}
    return run(config, inputs, out_dir)


def open_storage(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / "journal.log")))


def test_every_scale_is_measured_once_and_the_best_is_chosen(trial: dict[str, Artifact], tmp_path: Path) -> None:
    result = search(trial, tmp_path)
    found = json.loads((tmp_path / "scale_search.json").read_text())
    assert [point["scale"] for point in found["points"]] == list(SCALES)
    best = max(point["accuracy"] for point in found["points"])
    chosen = next(point for point in found["points"] if point["scale"] == found["chosen"])
    assert result["chosen"] == found["chosen"]
    assert chosen["accuracy"] == best
    assert all(set(point["per_kind"]) == {"retrieval", "order"} for point in found["points"])


def test_of_equal_scales_the_one_nearest_to_1_wins(trial: dict[str, Artifact], tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    study = optuna.create_study(study_name="scale", storage=storage, direction="maximize")
    for scale in SCALES:
        study.enqueue_trial({"scale": scale})
        asked = study.ask({"scale": optuna.distributions.CategoricalDistribution(SCALES)})
        asked.set_user_attr("point", {"scale": scale, "accuracy": 0.5, "questions": 10})
        study.tell(asked, 0.5)
    assert search(trial, tmp_path)["chosen"] == 1.0


def test_a_search_killed_mid_way_tells_its_trial_failed_and_tries_that_scale_again(
    trial: dict[str, Artifact],
    tmp_path: Path,
) -> None:
    study = optuna.create_study(study_name="scale", storage=open_storage(tmp_path), direction="maximize")
    study.enqueue_trial({"scale": 0.25})
    study.ask({"scale": optuna.distributions.CategoricalDistribution(SCALES)})  # and never told: the process died
    search(trial, tmp_path)
    trials = optuna.load_study(study_name="scale", storage=open_storage(tmp_path)).get_trials()
    assert trials[0].state == TrialState.FAIL
    assert sorted(t.params["scale"] for t in trials if t.state == TrialState.COMPLETE) == list(SCALES)
