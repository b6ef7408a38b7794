"""Studies with axes, and with benchmarks of several units: every setting has its own baseline and its own tables."""

import re
from pathlib import Path

import pytest

from reports.ablation import axis_effects, levels_of, matched_pairs
from reports.render import ReportFiles, write_report
from reports.results import StudyResults, load_study
from reports.table_texts import summary_table
from reports.tables import accuracy_tables
from reports.verdicts import BEYOND, judge
from reports.wording import verdict_sentence
from tests.reports.bulk import write_study_in_bulk
from tests.reports.design import QUICKSTART, Design

LOW, HIGH = "recipe.lr=0.001", "recipe.lr=0.002"
STUDY = Design(
    name="axes",
    variants=QUICKSTART[1:4],
    benchmarks=("v_niah", "mlvu"),
    contexts_of={"mlvu": (8192, 16384, 32768)},
    record_of={"mlvu": {"context_unit": "tokens", "train_length": None, "chance": None, "scorer": "letter@1"}},
    settings=(LOW, HIGH),
    scale_rules=("published",),
)


@pytest.fixture(scope="module")
def results(root: Path) -> StudyResults:
    return load_study(write_study_in_bulk(root, STUDY), "axes")


@pytest.fixture(scope="module")
def files(results: StudyResults, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report(results, tmp_path_factory.mktemp("axes"))


def test_each_label_is_judged_against_the_baseline_at_its_own_setting(results: StudyResults) -> None:
    grid = judge(results).set_index(["benchmark", "context", "variant"])
    asked = results.questions.query("benchmark == 'v_niah' and context == '64'").groupby(["variant", "seed"]).correct
    for setting in (LOW, HIGH):
        own = asked.mean()[f"hope · {setting}"] - asked.mean()[f"m_rope · {setting}"]
        found = grid.loc["v_niah", "64", f"hope · {setting}"]
        assert found.difference_value == pytest.approx(float(own.mean()))
        assert grid.loc["v_niah", "64", f"m_rope · {setting}"].verdict == ""
    assert grid.p_value.notna().sum() == 2 * 2 * ((2 + 1) + (3 + 1))


def test_every_setting_has_tables_with_its_own_baseline_and_best(results: StudyResults) -> None:
    tables = accuracy_tables(results, judge(results), results.scale_rules)
    assert [(table.benchmark, table.setting) for table in tables] == results.places
    for table in tables:
        assert [row.label for row in table.rows if row.baseline] == ["m_rope"]
        assert any(row.cells[0] and row.cells[0].best for row in table.rows)
    assert summary_table(results, judge(results)).count(f"V-NIAH · {HIGH}, as published") == 1


def test_benchmarks_keep_their_own_contexts_and_units(results: StudyResults) -> None:
    tables = {table.benchmark: table for table in accuracy_tables(results, judge(results), results.scale_rules)}
    assert tables["v_niah"].heads == [("1×", "16 frames"), ("4×", "64 frames"), ("beyond 1×", "mean")]
    assert tables["mlvu"].heads == [("8192", "tokens"), ("16384", "tokens"), ("32768", "tokens"), ("all", "mean")]


def test_the_main_effect_of_an_axis_pairs_each_variant_with_itself(results: StudyResults) -> None:
    entries = results.record["variants"]
    assert matched_pairs(entries, "recipe.lr") == {
        ("0.001", "0.002"): [(f"{name} · {LOW}", f"{name} · {HIGH}") for name in ("m_rope", "videorope", "hope")]
    }
    means = judge(results).query("benchmark == 'v_niah'").set_index(["context", "variant"]).accuracy[BEYOND]
    names = ("m_rope", "videorope", "hope")
    expected = sum(means[f"{name} · {HIGH}"] - means[f"{name} · {LOW}"] for name in names) / 3
    effect = next(found for found in axis_effects(results, "v_niah", "published") if found.axis == "recipe.lr")
    assert effect.difference.value == pytest.approx(expected)


def test_settings_that_are_not_pairs_of_key_and_level_are_levels_themselves() -> None:
    assert levels_of("recipe.lr=0.001, model=tiny") == {"recipe.lr": "0.001", "model": "tiny"}
    assert levels_of("small model") == {"setting": "small model"}
    assert levels_of("") == {}


def test_the_verdict_counts_settings(results: StudyResults) -> None:
    said = verdict_sentence(results, judge(results))
    assert "compared with m_rope" in said
    assert re.search(r"hope (?:is|are) (?:better|worse|neither better nor worse).* 2 settings", said)


def test_variants_of_the_same_verdict_share_a_clause_and_the_undecided_come_last(results: StudyResults) -> None:
    grid = judge(results)
    compared = grid.verdict != ""
    grid.loc[compared, "verdict"] = "cannot tell"
    undecided = "neither better nor worse for certain in any of 2 settings"
    assert f"compared with m_rope, videorope and hope are {undecided}." in verdict_sentence(results, grid)
    grid.loc[compared & grid.variant.str.startswith("hope"), "verdict"] = "better"
    said = verdict_sentence(results, grid)
    assert f"compared with m_rope, hope is better in 2 of 2 settings; videorope is {undecided}." in said


def test_the_report_shows_each_setting_apart(files: ReportFiles) -> None:
    html = files.html.read_text()
    for title in (f"V-NIAH · {LOW}", f"MLVU · {HIGH}"):
        assert f"<h3>{title}</h3>" in html
    assert "recipe.lr" in html[html.index('id="effects"') : html.index('id="variants"')]
    assert "context (tokens)" in html
    assert html.count('class="legend"') == 3
    published = html[html.index('id="published"') : html.index('id="errors"')]
    assert "Other models and other data" in published
    assert "55.10" not in published
    assert "53.26" in published
