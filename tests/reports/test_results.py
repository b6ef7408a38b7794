"""What is read from MLflow, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from reports.records import QUESTION_FIELDS, context_size, question_table
from reports.results import StudyResults, earlier_study, load_study, without_password
from tests.reports.conftest import STUDY
from tests.reports.design import PAIR, STARTED_MS, Design
from tests.reports.factory import tag_cells, write_study


def tiny(name: str) -> Design:
    """A study of four cells. The tests share one store, so each names its own."""
    return Design(name=name, variants=PAIR, seeds=(0,), contexts=(16, 64), scale_rules=("published",), questions=10)


def test_every_cell_trial_question_and_curve_is_read(results: StudyResults) -> None:
    trials = len(STUDY.variants) * len(STUDY.seeds)
    cells = trials * len(STUDY.contexts) * len(STUDY.scale_rules)
    assert len(results.trials) == trials
    assert len(results.cells) == cells == results.expected_cells
    assert len(results.questions) == (cells - 1) * STUDY.questions
    assert set(results.curves.metric) == {"train/loss", "train/held_out_loss", "train/accuracy"}
    assert len(results.searches) == 4 * 4 * 2


def test_the_failed_cell_keeps_its_error_and_brings_no_questions(results: StudyResults) -> None:
    failed = results.cells[results.cells.status == "FAILED"]
    assert list(failed.trial) == ["hope-s1"]
    assert failed.error.item() == STUDY.error
    asked = results.questions
    assert asked[(asked.trial == "hope-s1") & (asked.context == "64") & (asked.scale_rule == "equal")].empty


def test_recorded_accuracies_are_the_means_of_the_questions(results: StudyResults) -> None:
    key = ["trial", "benchmark", "context", "scale_rule"]
    means = results.questions.groupby(key).correct.mean().rename("mean").reset_index()
    joined = results.cells[results.cells.status == "FINISHED"].merge(means, on=key)
    assert joined.accuracy.to_numpy() == pytest.approx(joined["mean"].to_numpy())


def test_every_row_names_its_run(store: str, results: StudyResults) -> None:
    client = MlflowClient(store)
    cell = results.cells.iloc[0]
    assert client.get_run(cell.run_id).data.metrics["accuracy"] == cell.accuracy
    assert client.get_run(results.run_id).data.tags["question"] == results.question


def test_line_breaks_of_unicode_within_a_text_do_not_cut_a_question(results: StudyResults, tmp_path: Path) -> None:
    trials = results.trials[results.trials.trial == "hope-s0"]
    asked = [dict.fromkeys(QUESTION_FIELDS) | {"id": f"a\u2028b\x85{place}", "context": "64"} for place in range(2)]
    file = tmp_path / "questions" / "v_niah" / "published.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in asked), encoding="utf-8")
    found = question_table({trials.run_id.item(): tmp_path}, trials, results.cells)
    assert list(found.id) == [line["id"] for line in asked]


def test_unusable_data_is_read_where_the_run_records_it(results: StudyResults) -> None:
    assert results.quarantine is not None
    assert (results.quarantine.quarantined, results.quarantine.records) == (1, 100)
    assert results.quarantine.rows[0]["line"] == 12


def test_contexts_are_ordered_by_size_not_by_spelling() -> None:
    assert sorted(["64k", "8k", "512", "64", "all"], key=context_size) == ["64", "512", "8k", "64k", "all"]


def test_a_missing_store_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_study(f"sqlite:///{tmp_path}/typo.db", "simulated")
    assert not (tmp_path / "typo.db").exists()


def test_an_unknown_study_is_answered_with_the_known_ones(store: str) -> None:
    with pytest.raises(ValueError, match=r"'quickstrat' is not in .*'simulated'") as raised:
        load_study(store, "quickstrat")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "selection"),
    [
        ("budget", "tags.variant = 'hope' and tags.context = '64'"),
        ("question_set", "tags.context = '64'"),
        ("scorer", "tags.variant = 'hope'"),
    ],
)
def test_cells_of_different_making_are_not_put_in_one_table(root: Path, field: str, selection: str) -> None:
    uri = write_study(root, tiny(f"mixed {field}"))
    tag_cells(uri, f"mixed {field}", selection, **{field: "another"})
    with pytest.raises(ValueError, match=f"v_niah.* differ in {field} .*another in") as raised:
        load_study(uri, f"mixed {field}")
    assert "\n" not in str(raised.value)


def test_contexts_may_differ_in_budget(root: Path) -> None:
    uri = write_study(root, tiny("two budgets"))
    tag_cells(uri, "two budgets", "tags.context = '64'", budget="longer")
    assert len(load_study(uri, "two budgets").cells) == 4


def test_the_newest_study_run_counts_unless_another_is_named(root: Path) -> None:
    uri = write_study(root, tiny("twice"))
    first = load_study(uri, "twice")
    write_study(root, replace(tiny("twice"), rng_seed=1, started_ms=STARTED_MS + 10**7))
    second = load_study(uri, "twice")
    assert second.run_id != first.run_id
    assert len(second.cells) == len(first.cells)
    again = load_study(uri, "twice", run_id=first.run_id)
    assert list(again.cells.run_id) == list(first.cells.run_id)
    assert earlier_study(uri, first) is None
    former = earlier_study(uri, second)
    assert former is not None
    assert former.run_id == first.run_id
    with pytest.raises(ValueError, match="no study run abc"):
        load_study(uri, "twice", run_id="abc")


def test_a_finished_run_counts_before_a_newer_failed_one(root: Path) -> None:
    uri = write_study(root, tiny("retried"))
    before = load_study(uri, "retried")
    cell = before.cells.iloc[0]
    client = MlflowClient(uri)
    tags = client.get_run(cell.run_id).data.tags
    retry = client.create_run(before.experiment_id, start_time=int(cell.started_ms) + 10**6, tags=tags)
    client.set_terminated(retry.info.run_id, "FAILED")
    assert list(load_study(uri, "retried").cells.run_id) == list(before.cells.run_id)


def test_a_study_whose_every_cell_failed_says_so_in_one_line(root: Path) -> None:
    design = tiny("broken")
    everything = frozenset((v.name, 0, "v_niah", context, "published") for v in PAIR for context in design.contexts)
    uri = write_study(root, replace(design, failed=everything))
    with pytest.raises(ValueError, match="no finished cell; 4 failed, the first with ValueError: no frame") as raised:
        load_study(uri, "broken")
    assert str(raised.value).endswith(": see hope status study=broken 'study.seeds=[0]'")
    assert "\n" not in str(raised.value)


def test_a_study_without_a_cell_says_why_and_what_shows_more(root: Path) -> None:
    design = tiny("untrained")
    everything = frozenset((v.name, 0, "v_niah", context, "published") for v in PAIR for context in design.contexts)
    uri = write_study(root, replace(design, excluded=everything))
    shown = re.escape(": see hope status study=untrained 'study.seeds=[0]'")
    with pytest.raises(ValueError, match=f"^study 'untrained' has no cell to report; none was evaluated{shown}$"):
        load_study(uri, "untrained")
    client = MlflowClient(uri)
    experiment_id = client.get_experiment_by_name("untrained").experiment_id
    for run in client.search_runs([experiment_id], "tags.kind = 'trial'"):
        client.set_tag(run.info.run_id, "error", "FloatingPointError: the loss is nan at step 0")
        client.set_terminated(run.info.run_id, "FAILED")
    why = "2 of 2 trainings failed, one with FloatingPointError: the loss is nan at step 0"
    with pytest.raises(ValueError, match=f"has no cell to report; {why}{shown}$"):
        load_study(uri, "untrained")


def test_passwords_in_an_address_are_not_passed_on() -> None:
    assert without_password("https://me:secret@mlflow.example:5000/x") == "https://mlflow.example:5000/x"
    assert without_password("sqlite:////data/a@b.db") == "sqlite:////data/a@b.db"
