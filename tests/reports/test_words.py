"""What a report says in words and plain rows."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from reports import facts
from reports.render import write_report
from reports.results import StudyResults, load_study
from reports.sections import search_boundaries
from reports.verdicts import judge
from reports.wording import verdict_sentence
from tests.reports.bulk import write_study_in_bulk
from tests.reports.design import PAIR, QUICKSTART, Design


def test_costs_count_an_evaluation_once_however_many_rules_show_it(results: StudyResults) -> None:
    rows = {row["variant"]: row for row in facts.costs(results)}
    fixed, scaled = rows["vanilla"], rows["videorope"]
    assert (fixed["cells"], scaled["cells"]) == ("12", "12")
    assert (fixed["evaluation"], scaled["evaluation"]) == ("6 s", "18 s")  # 1.5 s a context, 2 contexts, 2 seeds
    assert (fixed["search"], scaled["search"]) == ("–", "90 s")
    assert (fixed["gpu_hours"], scaled["gpu_hours"]) == ("0.5", "1.6")


@pytest.mark.parametrize("settings", [("",), ("recipe.lr=0.001", "recipe.lr=0.002")])
def test_a_benchmark_whose_baseline_failed_is_named_as_one_without_a_comparison(
    settings: tuple[str, ...], root: Path
) -> None:
    design = Design(
        name=f"{len(settings)} half failed",
        benchmarks=("v_niah", "v_niah_d"),
        settings=settings,
        failed=frozenset(product(["m_rope"], [0, 1], ["v_niah_d"], [64], ["published", "searched"])),
    )
    results = load_study(write_study_in_bulk(root, design), design.name)
    said = verdict_sentence(results, judge(results))
    assert said.endswith(". On V-NIAH-D, no finished cell can be compared with m_rope.")
    assert " on V-NIAH, " in said


def test_a_study_of_its_baseline_alone_has_no_interval_of_a_difference(results: StudyResults, root: Path) -> None:
    alone = load_study(write_study_in_bulk(root, Design(name="alone", variants=PAIR[:1])), "alone")
    said = dict(facts.facts(alone, judge(alone)))
    assert said["cells"] == "8 of 8"
    assert "median interval of a difference" not in said
    assert dict(facts.facts(results, judge(results)))["median interval of a difference"].endswith(" points")


def test_a_variant_that_shares_no_seed_with_the_baseline_is_told_so_in_place_of_a_difference(
    root: Path, tmp_path: Path
) -> None:
    design = Design(name="disjoint", variants=(*PAIR, QUICKSTART[0]), scale_rules=("published",))
    failed = product([("m_rope", 0), ("hope", 1)], ["v_niah"], design.contexts, ["published"])
    design = replace(design, failed=frozenset((*trial, *place) for trial, *place in failed))
    files = write_report(load_study(write_study_in_bulk(root, design), design.name), tmp_path / "report")
    for page in (files.html, files.markdown):
        in_columns = 2 + 1
        assert page.read_text().count("no seed in common with the baseline") == in_columns


def test_where_the_chosen_scales_lie_is_said_of_searches_that_had_a_choice(results: StudyResults) -> None:
    tried = results.searches
    assert search_boundaries(results).startswith("Of 8 searches 8 chose a scale inside the range that they tried, 0 ")
    low = replace(results, searches=tried[tried.scale >= 0.5])
    assert search_boundaries(low).endswith("8 the smallest and 0 the largest.")
    single = tried.chosen | ~tried.trial.isin(["hope-s0", "hope-s1"])
    assert search_boundaries(replace(results, searches=tried[single])).startswith("Of 6 searches 6 chose")
    alone = replace(results, searches=tried[tried.chosen])
    assert search_boundaries(alone) == "Every search tried a single scale, which it had to choose."
