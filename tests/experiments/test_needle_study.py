"""Needle benchmarks from a folder in one whole study of a checkpoint on disk, whose vision tower is frozen."""

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from experiments.cli import main
from experiments.compose import load_config
from experiments.grid import build_grid
from experiments.planning import plan_study
from experiments.study import open_study
from experiments.study_record import study_record
from pipelines.benchmarks.folder import SOURCE
from pipelines.engine import Event, EventKind, LocalRunner, Store, walk
from pipelines.features import features_stage
from tests.pipelines.folders import asked_in_a_study, write_folder
from tests.pipelines.tiny_checkpoint import write_checkpoint
from tests.pipelines.world import MODEL


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the study of either family; a picture of its folder is no picture."""
    root = tmp_path_factory.mktemp("needles")
    write_folder(root / "data")
    (root / "data" / "needles" / "yellow.png").write_bytes(b"no picture")
    model = write_checkpoint(root / "weights", MODEL, family=request.param)
    sizes = ("head_dim", "num_key_value_heads", "patch_size", "spatial_merge_size", "temporal_patch_size")
    return [
        "study=smoke",
        {"qwen2_vl": "model=qwen2_vl_2b", "qwen3_vl": "model=qwen3_vl_8b"}[request.param],
        "model.name=small",
        f"model.path={model.path}",
        *(f"model.{size}={getattr(model, size)}" for size in sizes),
        *("recipe.train_vision=false", "recipe.equal_lengths=false"),
        *("recipe.steps=2", "recipe.warmup_steps=1", "recipe.batch_size=2", "cluster.decode_workers=0"),
        *("dataset.num_train_videos=8", "dataset.num_films=2", "dataset.film_frames=40"),
        *("study.contexts_frames=[16]", "study.scale_rules=[searched]"),
        "study.search={benchmark: v_niah_published, contexts: [6], scales: [0.5, 1.0]}",
        *asked_in_a_study(root / "data"),
        f"store={root / 'out'}",
    ]


def features_of(overrides: list[str]) -> list[str]:
    """The labels of the features stages that a study rests on."""
    return [stage.label for stage in walk(build_grid(load_config(overrides)[0]).targets) if stage.name == "features"]


def test_a_frozen_tower_encodes_once_for_all_variants_seeds_and_scales(asked: list[str]) -> None:
    wide = [*asked, "study.seeds=[0,1]", "study.scale_rules=[published,equal,searched]"]
    assert features_of(wide) == ["features of small's frozen tower"] * 2  # of drawn films, and of the folder's
    assert len(features_of([*wide, "recipe.train_vision=true"])) == 2 * 4
    costs = {cost.name: cost.to_run for cost in plan_study(open_study(wide)).costs}
    assert (costs["features"], costs["finetune"]) == (2, 4)


def test_a_benchmark_whose_cells_are_all_excluded_is_no_part_of_the_study(asked: list[str]) -> None:
    config, _ = load_config([*asked, "study.exclude=[{benchmark: v_niah_d}]"])
    assert study_record(config, build_grid(config))["benchmarks"].keys() == config.benchmarks.keys() - {"v_niah_d"}


@pytest.fixture(scope="module")
def begun(asked: list[str]) -> Counter[str]:
    """How many stages of each name began until the study was done."""
    config, _ = load_config(asked)
    found: Counter[str] = Counter()

    def count(event: Event) -> None:
        found[event.stage.name] += event.kind == EventKind.STARTED

    assert LocalRunner(Store(config.store)).run(build_grid(config).targets, count).ok
    return found


def test_each_film_goes_through_the_frozen_tower_once_for_all_trials(begun: Counter[str]) -> None:
    assert (begun["features"], begun["finetune"], begun["evaluate"]) == (2, 2, 8)


def test_shared_features_are_byte_for_byte_those_of_a_trials_own_checkpoint(
    asked: list[str], begun: Counter[str]
) -> None:
    config, _ = load_config(asked)
    grid, store = build_grid(config), Store(config.store)
    trial, shown = grid.trials[0], grid.folders["v_niah_published"].frames
    own = features_stage(trial.finetune, shown, media=(f"{SOURCE}/",), group=trial.name)
    (shared,) = (s for s in walk(grid.targets) if s.name == "features" and shown in s.inputs.values())
    artifacts = LocalRunner(store).run([own, shared]).artifacts
    paths = [artifacts[stage.fingerprint].path / "features.safetensors" for stage in (own, shared)]
    assert torch.equal(*(load_file(path)["cells"] for path in paths))


def test_every_cell_has_its_questions_and_errors(asked: list[str], begun: Counter[str]) -> None:
    config, _ = load_config(asked)
    for cell in build_grid(config).cells:
        made = Store(config.store).get(cell.stage)
        assert made
        found = made.result["contexts"][str(cell.context)]
        assert found["questions"] == {"v_ruler_multi_key": 2, "v_niah_d": 12}.get(cell.benchmark, 10)
        assert (found["errors"] > 0) == cell.benchmark.endswith("_published")  # the picture that is none


def test_the_status_names_incomplete_cells_and_exits_with_1(
    asked: list[str], begun: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", *asked]) == 1
    said = capsys.readouterr().out
    assert "12 of 12 cells done" in said
    assert "incomplete m_rope-s0/v_niah_published/6/searched: 2 questions ended in an error" in said
    assert "yellow.png: UnreadableFile" in said
    assert "incomplete m_rope-s0/v_ruler" not in said
