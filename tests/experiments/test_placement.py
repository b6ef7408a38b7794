from experiments.compose import load_config
from experiments.grid import build_grid


def test_who_trains_on_a_gpu_answers_on_one_and_gets_the_same_stages() -> None:
    on_cpu = build_grid(load_config(["study=smoke"])[0])
    on_gpu = build_grid(load_config(["study=smoke", "cluster.training.gpus_per_worker=1"])[0])
    here, there = on_cpu.trials[1], on_gpu.trials[1]
    assert [stage.fingerprint for stage in there.stages()] == [stage.fingerprint for stage in here.stages()]
    assert {stage.resources.num_gpus for stage in here.stages()} == {0}
    assert {stage.resources.num_gpus for stage in there.stages()} == {1}
    assert there.search


def test_a_search_of_several_scales_at_once_leaves_the_gpus_to_its_tasks() -> None:
    grid = build_grid(load_config(["study=smoke", "cluster.training.gpus_per_worker=1", "cluster.search_workers=2"])[0])
    search = grid.trials[1].search
    assert search
    assert (search.resources.num_gpus, search.config.placement.gpus_per_worker) == (0, 1)


def test_the_chunks_of_every_stage_that_answers_are_the_clusters() -> None:
    grid = build_grid(load_config(["study=smoke", "benchmark=video_mme", "cluster.chunk_tokens=77"])[0])
    trial = grid.trials[1]
    answering = [trial.search, *trial.evaluations.values()]
    assert {stage.name for stage in answering if stage} == {"scale_search", "evaluate", "evaluate_choice"}
    assert {stage.config.placement.chunk_tokens for stage in answering if stage} == {77}
