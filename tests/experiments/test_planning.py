"""What a plan says of a study's statistics is what the report will do with its answers."""

from itertools import product
from pathlib import Path

import pytest

from experiments.compose import load_config
from experiments.grid import build_grid
from experiments.planning import num_comparisons
from reports.results import load_study
from reports.verdicts import judge
from tests.reports.bulk import write_study_in_bulk
from tests.reports.design import TRAIN_LENGTH, Design, Variant

# Two without a scale and two with one.
VARIANTS = "study.variants=[vanilla, qwen2_5_time, videorope, {name: hope, published_scale: 0.75}]"
LESS = (
    "study.exclude=[{scale_rule: published, variant: qwen2_5_time, context: 64},"
    " {scale_rule: searched, benchmark: v_niah}, {variant: hope, benchmark: v_niah_d, seed: 1},"
    " {variant: videorope, context: 32}]"
)


@pytest.mark.parametrize(
    ("baseline", "less", "expected"),
    [
        # 2 benchmarks and 4 columns; a rule each for 2 variants with a scale, and one for the other without.
        ("vanilla", "study.exclude=[]", 2 * 4 * (2 * 3 + 1)),
        ("hope", "study.exclude=[]", 2 * 4 * 3 * 3),
        ("vanilla", "study.exclude=[{scale_rule: published}]", 2 * 4 * 2 * 3),
        ("vanilla", LESS, None),
    ],
)
def test_a_plan_counts_the_comparisons_that_the_report_corrects_for(
    baseline: str, less: str, expected: int | None, tmp_path: Path
) -> None:
    wanted = [VARIANTS, f"study.baseline={baseline}", less, f"study.train_frames={TRAIN_LENGTH}"]
    config, _ = load_config(["study=quickstart", "study.contexts_frames=[16, 32, 64]", *wanted])
    grid = build_grid(config)
    scalable = {trial.variant.name: trial.scalable for trial in grid.trials}
    cells = {
        (cell.trial.variant.name, cell.trial.seed, cell.benchmark, cell.context, cell.scale_rule) for cell in grid.cells
    }
    study = config.study
    whole = product(scalable, study.seeds, config.benchmarks, study.contexts_frames, study.scale_rules)
    design = Design(
        variants=tuple(Variant(name, published_scale=0.75 if has else None) for name, has in scalable.items()),
        baseline=baseline,
        seeds=study.seeds,
        benchmarks=tuple(config.benchmarks),
        contexts=study.contexts_frames,
        scale_rules=study.scale_rules,
        excluded=frozenset(set(whole) - cells),
    )
    judged = judge(load_study(write_study_in_bulk(tmp_path, design), design.name))
    counted = int((~judged.repeats & judged.p_value.notna()).sum())
    assert num_comparisons(config, grid) == counted
    assert counted == (expected or counted)
