from pathlib import Path

import pytest

from experiments.asking import contexts_of
from experiments.compose import choices, load_config
from experiments.config import ScaleRange
from experiments.grid import build_grid
from experiments.training import missing, reckoned_gpu_hours


@pytest.mark.parametrize("study", choices("study"))
def test_every_named_study_composes_into_a_grid(study: str) -> None:
    config, resolved = load_config([f"study={study}"])
    grid = build_grid(config)
    lengths = sum(len(contexts_of(config, benchmark)) for benchmark in config.benchmarks)
    expected = len(config.study.variants) * len(config.study.seeds) * len(config.settings) * lengths
    assert len(grid.cells) == expected * len(config.study.scale_rules)
    assert config.study.name == study
    assert f"name: {study}" in resolved


def test_a_training_of_the_papers_is_reckoned_to_cost_what_they_say() -> None:
    paper, _ = load_config(["study=paper"])
    assert reckoned_gpu_hours(paper) == pytest.approx(304, rel=0.01)
    smaller, _ = load_config(["study=paper", "model=qwen2_vl_2b", "recipe=paper_2b", "model.language=Qwen/Qwen2-1.5B"])
    assert reckoned_gpu_hours(smaller) == pytest.approx(61, rel=0.01)
    assert reckoned_gpu_hours(load_config(["study=smoke"])[0]) is None


def test_data_and_weights_that_are_not_there_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "set dataset.root to the folder of llava_video_178k" in (missing(load_config(["study=paper"])[0]) or "")
    absent, _ = load_config(["study=quickstart", "model=qwen2_vl_2b", "model.path=nobody/nothing"])
    assert "nobody/nothing is not in the hub's local cache" in (missing(absent) or "")
    assert missing(load_config(["study=smoke"])[0]) is None


@pytest.mark.parametrize("group", ["model", "recipe", "dataset", "cluster"])
def test_every_choice_of_a_group_composes(group: str) -> None:
    for choice in choices(group):
        workers = ["recipe.batch_size=128"] if group == "cluster" else []
        config, _ = load_config(["study=quickstart", f"{group}={choice}", *workers])
        name = getattr(getattr(config, group), "name", choice)
        assert name == choice


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"no study given; add study=NAME, one of .*quickstart"),
        (["study=nope"], r"unknown study 'nope'; there are .*quickstart"),
        (["study=smoke", "model=huge"], r"unknown model 'huge'; there are .*tiny"),
        (["study=smoke", "cluster.training.workers=0"], r"cluster\.training\.workers is 0; it must be 1 or more"),
        (
            ["study=smoke", "cluster.training.workers=3"],
            r"batch_size is 16, no multiple of cluster\.training\.workers 3",
        ),
        (
            ["study=smoke", "recipe.held_out={rows: 9999, every_steps: 10}"],
            r"recipe\.held_out\.rows is 9999 of dataset \w+'s \d+ rows; leave recipe\.batch_size 16 of them or more",
        ),
        (
            ["study=smoke", "recipe.held_out={rows: 8, every_steps: 9, keep: first}"],
            r"recipe\.held_out\.keep is 'first'",
        ),
        (["study=smoke", "recipe.held_out={rows: 8, every: 9}"], r"unknown key recipe\.held_out\.every"),
        (["study=smoke", "cluster.training.fsdp=true"], r"shards a model over workers; set cluster\.training\.workers"),
        (["study=smoke", "cluster.training.attention=fast"], r"attention is 'fast'; allowed are auto, sdpa"),
        (["study=smoke", "model=qwen2_vl_7b", "model.hidden_size=64"], r"unknown key model\.hidden_size"),
        (["study=smoke", "recipe=lora_1gpu", "recipe.lora.rank=0"], r"recipe\.lora has rank 0"),
        (["study=smoke", "recipe.stpes=3"], r"unknown key recipe\.stpes"),
        (["study=smoke", "colour=red"], r"unknown key colour; the config has benchmarks, "),
        (["study=smoke", "cluster.trainin.workers=2"], r"unknown key cluster\.trainin; cluster has .*training"),
        (["study=smoke", "benchmarks.mlvu.root=/data"], r"no such benchmark \(benchmark=NAME adds one\)"),
        (["study=smoke", "study.seeds=3"], r"study\.seeds is 3: .* a list, as in \[1, 2\]"),
        (["study=smoke", "+recipe.extra=1"], r"adds or removes a key"),
        (["study=smoke", "~recipe=1"], r"adds or removes a key"),
        (["study=smoke", "recipe.steps=many"], r"recipe\.steps is 'many': .*integer"),
        (["study=smoke", "recipe.steps=1.5"], r"recipe\.steps is 1\.5"),
        (["study=smoke", "recipe.steps=0"], r"recipe\.steps is 0; it must be above 0"),
        (["study=smoke", "study.name=../../x"], r"study\.name is '\.\./\.\./x'; give up to 60 letters, digits"),
        (["study=smoke", "study.name=''"], r"study\.name is ''; give up to 60 letters, digits"),
        (["study=smoke", f"study.name={'x' * 61}"], r"study\.name is 'x+'; give up to 60 letters, digits"),
        (["study=smoke", "study.name=schedule"], r"study\.name is 'schedule', an experiment that MLflow has beside"),
        (
            ["study=smoke", "tracking_uri=localhost:5000"],
            r"'localhost:5000'; give http://HOST:PORT, https://HOST, or ",
        ),
        (["study=smoke", "tracking_uri=file:///data/mlruns"], r"'file:///data/mlruns'; give http"),
        (["study=smoke", "tracking_uri=sqlite:a.db"], r"'sqlite:a\.db'; give .* or sqlite:///FILE with no #"),
        (["study=smoke", "tracking_uri=''"], r"tracking_uri is ''; give http"),
        (["study=smoke", "store='/data/100%'"], r"store is '/data/100%'; MLflow's database cannot lie below a folder"),
        (["study=smoke", "study.variants=hope"], r"study\.variants is 'hope': .* a list"),
        (
            ["study=smoke", "study.variants=[1]"],
            r"study\.variants has 1; give a variant's name, or \{name: \.\.\., \.\.\.\}",
        ),
        (
            ["study=smoke", "benchmarks=null"],
            r"benchmarks is None; study\.exclude=\[\{benchmark: NAME\}\] leaves one out",
        ),
        (["study=smoke", "benchmarks.v_niah_d=null"], r"v_niah_d is None; study\.exclude=\[\{benchmark: v_niah_d\}\]"),
        (["study=smoke", "benchmarks={}"], r"'benchmarks=\{\}' changes nothing, .* benchmarks\.KEY="),
        (["study=smoke", "study.parts=[1]"], r"study\.parts is \[1\]; give a list for each of positions, frequencies"),
        (
            ["study=smoke", "study.parts={positions: [corner], frequencies: [contiguous], scaling: [3]}"],
            r"scaling: 3 is no part; give a name, or \{kind: NAME",
        ),
        (["study=smoke", "study.train_frames=1"], r"train_frames is 1; give model\.temporal_patch_size 2 or more"),
        (["study=smoke", "study.train_tokens=0"], r"study\.train_tokens is 0; it must be 1 or more, or null"),
        (["study=smoke", "study.equal_scale=0"], r"study\.equal_scale is 0; give a finite number above 0"),
        (["study=smoke", "study.equal_scale=inf"], r"study\.equal_scale is inf; give a finite number above 0"),
        (["study=smoke", "study.search.scales=[1,inf]"], r"search\.scales is \[1\.0, inf\]; give numbers above 0"),
        (["study=smoke", "study.search.contexts=[]"], r"study\.search\.contexts is \[\]; give lengths of 1 or more"),
        (["study=smoke", "study.search.seed=-1"], r"study\.search\.seed: -1 is no seed; allowed is 0 to 2147483647"),
        (["study=smoke", "study.seeds=[0,2147483648]"], r"study\.seeds: 2147483648 is no seed; allowed is 0 to 21"),
        (["study=smoke", "benchmarks.v_niah_d.seed=-1"], r"benchmarks\.v_niah_d\.seed: -1 is no seed; allowed is 0 to"),
        (["study=smoke", "dataset.seed=-1"], r"dataset\.seed: -1 is no seed; allowed is 0 to"),
        (["study=smoke", "cluster.chunk_tokens=0"], r"cluster\.chunk_tokens is 0; it must be 1 or more"),
        (["study=smoke", "cluster.num_cpus=-1"], r"cluster\.num_cpus is -1; it must be 1 or more"),
        (["study=smoke", "cluster.decode_timeout_s=0"], r"cluster\.decode_timeout_s is 0\.0; it must be above 0"),
        (["study=smoke", "study.baseline=rope"], r"study\.baseline is 'rope'; it must be one of m_rope, hope"),
        (["study=smoke", "study.seeds=[]"], r"study\.seeds is empty"),
        (["study=smoke", "study.seeds=[0,0]"], r"study\.seeds is \[0, 0\]; give each value once"),
        (["study=smoke", "study.scale_rules=[best]"], r"study\.scale_rules has 'best'; allowed are published"),
        (["study=smoke", "study.search.benchmark=mlvu"], r"study\.search\.benchmark is 'mlvu'; the study has v_niah_d"),
        (
            ["study=smoke", "study.search.scales=[1,-1]"],
            r"search\.scales is \[1\.0, -1\.0\]; give numbers above 0",
        ),
        (["study=smoke", "study.search.scales={low: 2, high: 1, trials: 3}"], r"goes from 2 to 1; give 0 < low < high"),
        (["study=smoke", "study.search.scales={lo: 2, high: 1, trials: 3}"], r"unknown key study\.search\.scales\.lo"),
        (["study=smoke", "study.search.prune_p=2"], r"study\.search\.prune_p is 2\.0; give a number between 0 and 1"),
        (["study=smoke", "model.num_heads=3"], r"model\.hidden_size is 128 with model\.num_heads 3"),
        (["study=smoke", "on_failure=explode"], r"on_failure is 'explode'"),
        (["study=smoke", "benchmarks.v_niah_d.depths=[2.0]"], r"depths is \[2\.0\]; give numbers from 0 to 1"),
        (
            ["study=smoke", "benchmark=mlvu", "benchmarks.mlvu.kind=film"],
            r"mlvu\.kind is 'film'; allowed are needles, ",
        ),
        (["study=smoke", "benchmark=mlvu", "benchmarks.mlvu.scoring=fair"], r"benchmarks\.mlvu\.scoring is 'fair'"),
        (["study=smoke", "benchmark=mlvu", "benchmarks.mlvu.depths=[0]"], r"unknown key benchmarks\.mlvu\.depths"),
        (
            ["study=smoke", "benchmark=mlvu", "study.search.benchmark=mlvu"],
            r"contexts is \[32\]; mlvu has \[8000, 16000",
        ),
        (["study=smoke", "recipe.steps=[1"], r"recipe\.steps=\[1 cannot be read; close its brackets, and quote texts"),
        (
            ["study=smoke", "study.question=Was ist größer?"],
            r"""größer\? cannot be read; quote it: 'study\.question="Was ist größer\?"'$""",
        ),
        (["study=smoke", 'study.question=it\'s "b"'], r"""quote it: 'study\.question="it'"'"'s \\"b\\""'$"""),
        (["study=smoke", "store=/data/a,b"], r"To use it as string, quote the value: key='value1,value2'$"),
        (["quickstart"], r"'quickstart' is no override; write key=value"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_value_and_what_is_allowed(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config(overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.variants=[m_rope,nope]", "unknown variant 'nope'; known: vanilla"),
        ("study.variants=[nope]", "unknown variant 'nope'; known: vanilla"),
        (
            "study.variants=[m_rope,{name:mixed,positions:sequential,frequencies:nope}]",
            "unknown .*'nope'",
        ),
        ("study.variants=[m_rope,{name:mixed,layout:corner}]", "unknown key study.variants.layout"),
        (
            "study.variants=[m_rope,{name:mixed,positions:corner}]",
            "mixed has some parts only; give positions, frequencies",
        ),
        ("study.variants=[m_rope,mhrope]", "frequencies headwise: 2 key/value heads"),
        ("study.variants=[m_rope,m_rope]", "give each name once"),
        (
            "study.variants=[m_rope,{name:vanilla,published_scale:2}]",
            "vanilla has published_scale 2, and no scale to set",
        ),
        ("study.variants=[m_rope,{name:hope,published_scale:0}]", "published_scale of hope is 0; give a finite number"),
        (
            "study.contexts_frames=[32,33]",
            "study.contexts_frames has 33; give multiples of model.temporal_patch_size 2",
        ),
        ("study.search.contexts=[32,512]", "study.search.contexts has 512, but a film has 160 frames"),
        ("study.contexts_frames=[32,4096]", "study.contexts_frames has 4096, but a film has 160 frames"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_grid(load_config(["study=smoke", override])[0])


def test_on_qwen3_vl_where_no_scale_has_an_effect_none_is_searched_or_set() -> None:
    rules = "study.scale_rules=[published,equal,searched]"
    grid = build_grid(load_config(["study=smoke", rules, "model=qwen3_vl_8b", "dataset.frame_size=64"])[0])
    for trial in grid.trials:
        assert (trial.scalable, trial.search, trial.published_scale) == (False, None, None)
        (evaluation,) = {stage.fingerprint: stage for stage in trial.evaluations.values()}.values()
        assert evaluation.config.identity.scale is None


def test_a_mixed_cell_is_one_line() -> None:
    mixed = "{name:mixed,positions:corner,frequencies:temporal_zero,scaling:{kind:fixed,factor:0.5}}"
    grid = build_grid(load_config(["study=smoke", f"study.variants=[m_rope,{mixed}]"])[0])
    variant = grid.trials[1].variant
    assert (variant.positions.kind, variant.frequencies.kind) == ("corner", "temporal_zero")
    assert grid.trials[1].published_scale == 0.5


def test_placement_does_not_change_what_a_study_is(tmp_path: Path) -> None:
    here = build_grid(load_config(["study=smoke"])[0])
    there = build_grid(load_config(["study=smoke", f"store={tmp_path}", "cluster.num_cpus=7"])[0])
    assert here.fingerprint == there.fingerprint


def test_a_changed_recipe_changes_every_cell_but_not_the_data() -> None:
    here = build_grid(load_config(["study=smoke"])[0])
    there = build_grid(load_config(["study=smoke", "recipe.lr=0.01"])[0])
    assert not {c.stage.fingerprint for c in here.cells} & {c.stage.fingerprint for c in there.cells}
    assert here.frames.fingerprint == there.frames.fingerprint


def test_a_variant_without_a_scale_shares_one_evaluation_between_the_scale_rules() -> None:
    grid = build_grid(load_config(["study=quickstart", "study.seeds=[0]"])[0])
    stages = {trial.variant.name: {stage.fingerprint for stage in trial.evaluations.values()} for trial in grid.trials}
    assert len(stages["vanilla"]) == 2  # one per benchmark
    assert len(stages["m_rope"]) == 4  # its published scale is the equal scale
    assert len(stages["hope"]) == 6


def test_the_scales_of_a_search_are_a_list_or_a_range() -> None:
    config, _ = load_config(["study=smoke", "study.search.scales={low: 0.25, high: 4, trials: 9}"])
    assert config.study.search.scales == ScaleRange(0.25, 4.0, trials=9)
    assert {trial.search.config.identity.num_points for trial in build_grid(config).trials if trial.search} == {9}
