"""The Ray runner: workers, nodes and launchers that die, processes per group, resources, and Ray only if needed."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hope_core import get_variant
from pipelines.engine import Event, RayRunner, Resources, Stage, Store, Workers
from pipelines.engine.lease import is_dead
from pipelines.finetune import FinetunePlacement, finetune_stage
from tests.pipelines import world
from tests.pipelines.engine import toys
from tests.pipelines.engine.conftest import ROOT, Launch
from tests.pipelines.engine.toys import add, runs, toy

RayRunners = Callable[..., RayRunner]


@pytest.mark.parametrize("way", ["exit", "kill"])
def test_a_stage_whose_worker_dies_is_tried_again_and_goes_on_from_its_partial_files(
    ray_runner: RayRunners, store: Store, desk: Path, way: str
) -> None:
    stage = toy(toys.die_once, "a", desk, extra=way, resumable=True)
    events: list[Event] = []
    summary = ray_runner().run([stage], events.append)
    assert [event.kind.value for event in events] == ["planned", "started", "retrying", "started", "finished"]
    assert summary.artifacts[stage.fingerprint].result == {"found": ["partial.txt"]}
    record = store.record(stage.name, stage.fingerprint)
    assert record is not None
    assert record.attempt == 2
    assert store.leases.holders() == {}


def test_a_local_ray_asks_for_a_token_of_this_launch_only(ray_up: None) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_stage_whose_worker_always_dies_is_a_failure_after_its_retries(
    ray_runner: RayRunners, store: Store, desk: Path
) -> None:
    stage, above = toy(toys.die, "a", desk), toy(add, "other", desk)
    summary = ray_runner(max_retries=2).run([stage, above])
    [(_, failure)] = summary.failed
    assert (failure.kind, failure.attempt) == ("infrastructure", 3)
    assert store.failure(stage) == failure
    assert (store.root / failure.log).read_text().count("about to die") == 3
    assert [stage.label for stage in summary.finished] == [above.label]
    assert len(runs(desk, "a")) == 3
    assert store.leases.holders() == {}


def test_groups_never_share_a_process_and_a_group_reuses_its_own(
    ray_runner: RayRunners, store: Store, desk: Path
) -> None:
    for part in range(3):  # one after the other, so that each could reuse the process of the one before
        stages = [toy(add, f"{group}-{part}", desk, process_group=group) for group in ("x", "y")]
        assert ray_runner().run([*stages, toy(add, f"none-{part}", desk)]).ok
    pids: dict[str, set[int]] = {"x": set(), "y": set(), "none": set()}
    for run in runs(desk):
        pids[run["key"].split("-")[0]].add(run["pid"])
    assert pids["x"].isdisjoint(pids["y"])
    assert pids["none"].isdisjoint(pids["x"] | pids["y"])
    assert len(pids["x"]) < 3
    assert len(pids["y"]) < 3


def test_each_gpu_stage_has_a_process_of_its_own_and_leaves_the_device_free(ray_runner: RayRunners, desk: Path) -> None:
    # Ray counts GPUs as it is told to: none is needed here.
    needs = Resources(num_gpus=1)
    stages = [toy(add, f"{number}", desk, resources=needs, process_group="trial") for number in range(2)]
    assert ray_runner().run(stages).ok
    pids = {run["pid"] for run in runs(desk)}
    assert len(pids) == 2
    toys.wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_stage_and_the_tasks_that_it_starts_see_the_gpus_that_each_asked_for(
    ray_runner: RayRunners, desk: Path
) -> None:
    def told(key: str, *, starts: str, **options: Any) -> Any:
        stage = toy(toys.tell_gpus, key, desk, extra=starts, **options)
        return ray_runner().run([stage]).artifacts[stage.fingerprint].result

    for number, options in enumerate(({}, {"process_group": "trial"}, {})):  # the last in the process of the first
        assert told(f"{number}", starts="0 1", **options) == {"own": "", "of tasks": ["", "0"]}
    on_gpu = told("on gpu", starts="0", resources=Resources(num_gpus=1), process_group="trial")
    assert on_gpu == {"own": "0", "of tasks": [""]}


def test_stages_run_at_once_as_their_resources_allow(ray_runner: RayRunners, desk: Path) -> None:
    running: Counter[float] = Counter()
    most = {"all": 0.0, "together": 0}

    def observe(event: Event) -> None:
        needs = event.stage.resources.num_cpus
        if event.kind == "started":
            running[needs] += 1
        elif event.kind == "finished":
            running[needs] -= 1
        most["all"] = max(most["all"], sum(cpus * count for cpus, count in running.items()))
        most["together"] = max(most["together"], sum(running.values()))

    sizes = [0.5, 1, 2] * 4
    stages = [toy(add, f"{i}", desk, resources=Resources(num_cpus=size)) for i, size in enumerate(sizes)]
    assert ray_runner().run(stages, observe).ok
    assert most["all"] == 2
    assert most["together"] >= 2


TOO_LARGE: list[dict[str, Any]] = [
    {"resources": Resources(num_cpus=64)},
    {"resources": Resources(num_gpus=2)},
    {"resources": Resources(memory_gib=10**6)},
    {"resources": Resources(num_cpus=0), "workers": Workers(3, Resources())},
    {"resources": Resources(num_cpus=0), "workers": Workers(2, Resources(num_gpus=1))},
]


@pytest.mark.parametrize("needs", TOO_LARGE)
def test_a_stage_that_fits_no_node_is_refused_in_one_line_before_anything_runs(
    ray_runner: RayRunners, desk: Path, needs: dict[str, Any]
) -> None:
    stages = [toy(add, "a", desk), toy(add, "big", desk, **needs)]
    with pytest.raises(ValueError, match="lower what it asks for") as caught:
        ray_runner().run(stages)
    assert "\n" not in str(caught.value)
    assert runs(desk) == []
    ray_runner(max_in_flight=1).check(stages)  # where the cluster may grow, nothing is too large


def test_a_training_of_more_workers_than_the_cluster_holds_at_once_is_refused(ray_runner: RayRunners) -> None:
    dataset, frames = world.data_stages(Path())

    def of(num_workers: int, gpus: int) -> Stage:
        placement = FinetunePlacement(world.MODEL, num_workers=num_workers, gpus_per_worker=gpus)
        hope = get_variant("hope")
        return finetune_stage(
            hope, world.MODEL, world.RECIPE, 0, dataset=dataset, frames=frames, group="g", placement=placement
        )

    ray_runner().check([of(2, 0), of(1, 1)])
    told = r"needs 4 times \{'CPU': 1, 'GPU': 1\} at once but the nodes have \{'CPU': 2.0, 'GPU': 1.0\}: lower"
    with pytest.raises(ValueError, match=told):
        ray_runner().check([of(4, 1)])


def test_a_stage_gets_as_many_threads_as_it_asked_cpus_for_in_a_reused_process_too(
    ray_runner: RayRunners, desk: Path
) -> None:
    for cpus in (2, 1):
        needs = Resources(num_cpus=cpus)
        stage = toy(toys.tell_threads, f"{cpus}", desk, resources=needs, process_group="threads")
        summary = ray_runner().run([stage])
        assert summary.artifacts[stage.fingerprint].result == {"torch": cpus, "omp": f"{cpus}"}


def test_a_finished_study_never_imports_ray(store: Store, desk: Path, launch: Launch) -> None:
    assert launch("a,b", "add").wait() == 0
    code = (
        "import sys; from tests.pipelines.engine.launcher import main; main(*sys.argv[1:]); "
        "print('ray' in sys.modules, 'torch' in sys.modules)"
    )
    arguments = [str(store.root), str(desk), "a,b", "add", "ray", ""]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False False"
    assert len(runs(desk)) == 2


def test_a_stage_that_no_interrupt_reaches_is_killed_after_the_grace_time(
    ray_runner: RayRunners, store: Store, desk: Path
) -> None:
    hanging, bad = toy(toys.ignore_interrupts, "hanging", desk), toy(toys.fail, "bad", desk)

    def observe(event: Event) -> None:
        if event.kind == "started" and event.stage is hanging:
            toys.wait_until(lambda: runs(desk, "hanging"))

    summary = ray_runner(on_failure="stop", grace_s=0.2).run([hanging, bad], observe)
    assert summary.interrupted == (hanging,)
    assert store.leases.holders() == {}
    [run] = runs(desk, "hanging")
    toys.wait_until(lambda: not Path(f"/proc/{run['pid']}").exists())


@pytest.mark.slow
def test_a_signal_reaches_a_launcher_that_started_ray_itself(store: Store, desk: Path, launch: Launch) -> None:
    # Ray puts its own handler of SIGTERM in place when it starts, and reads its auth settings when it is imported.
    launcher = launch("a,b,c", "wait_for_gate", runner="ray, imported first")
    toys.wait_until(lambda: len(runs(desk)) == 2)
    launcher.terminate()
    out, _ = launcher.communicate()
    assert launcher.returncode == 0
    counts = {"finished": 0, "cached": 0, "failed": 0, "interrupted": 2, "not_run": 1, "was_interrupted": True}
    assert json.loads(out.splitlines()[-1]) == counts
    assert store.leases.holders() == {}
    assert store.failures() == []


@pytest.mark.slow
def test_after_kill_9_of_the_launcher_another_goes_on_at_once(
    ray_runner: RayRunners, store: Store, desk: Path, launch: Launch
) -> None:
    launcher = launch("a,b", "wait_for_gate", runner="ray")
    toys.wait_until(lambda: len(runs(desk)) == 2)
    launcher.kill()
    launcher.wait()
    # Of the two workers one may still have had the time to give its lease back.
    toys.wait_until(lambda: all(is_dead(holder) for holder in store.leases.holders().values()))
    (desk / "gate").touch()
    events: list[Event] = []
    stages = [toy(toys.wait_for_gate, key, desk, resumable=True) for key in ("a", "b")]
    summary = ray_runner().run(stages, events.append)
    assert len(summary.artifacts) == 2
    assert all("partial.txt" in artifact.result["found"] for artifact in summary.artifacts.values())
    assert "waiting" not in {event.kind.value for event in events}
    assert store.leases.holders() == {}


def test_killed_again_and_again_a_run_ends_as_if_it_had_not_been(store: Store, desk: Path, launch: Launch) -> None:
    keys = [f"{number}" for number in range(30)]
    kills = 8
    for kill in range(kills):
        launcher = launch(",".join(keys), "add")
        assert launcher.stdout is not None
        for line in launcher.stdout:
            if line.startswith("started") and int(line.split()[1]) % (kill + 2) == 1:
                break
        launcher.kill()
        launcher.wait()
    assert launch(",".join(keys), "add").wait() == 0
    assert [store.get(toy(add, key, desk)).result for key in keys] == [{"value": 1}] * len(keys)  # type: ignore[union-attr]
    counted = Counter(run["key"] for run in runs(desk))
    assert counted.keys() == set(keys)
    assert counted.total() <= len(keys) + kills, "a kill costs at most the stage that it hit"
    # One who was killed between publishing and giving back leaves a lease: dead, on a stage that is done.
    assert all(is_dead(holder) for holder in store.leases.holders().values())


CLUSTER = """
import sys
from pathlib import Path
import psutil
from ray.cluster_utils import Cluster
from pipelines.engine import RayRunner, Resources, Store, Workers
from tests.pipelines.engine import toys

store, desk = Path(sys.argv[1]), Path(sys.argv[2])
checks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}
head = {"num_cpus": 2, "include_dashboard": False, "_system_config": checks}
cluster = Cluster(initialize_head=True, head_node_args=head)
lost = cluster.add_node(num_cpus=1, num_gpus=1)
cluster.wait_for_nodes()
stages = [toys.toy(toys.wait_for_gate, f"{i}", desk, resumable=True) for i in range(3)]
above = [toys.toy(toys.nothing, f"{i}", desk, inputs={"x": stage}) for i, stage in enumerate(stages)]
inputs = {f"{i}": stage for i, stage in enumerate(above)}
on_gpu = toys.toy(toys.nothing, "top", desk, inputs=inputs, resources=Resources(num_gpus=1))
retried, waited = [], []

def observe(event):
    if event.kind == "started" and event.stage is stages[2] and not retried:
        toys.wait_until(lambda: len(toys.runs(desk)) == 3)
        raylet = psutil.Process(lost.all_processes["raylet"][0].process.pid)
        for process in [*raylet.children(recursive=True), raylet]:
            process.kill()
    if event.kind == "retrying":
        (desk / "gate").touch()
        retried.append(event.message)
    if event.kind == "waiting" and event.stage is on_gpu:
        waited.append(event.message)
        cluster.add_node(num_cpus=1, num_gpus=1)

with RayRunner(Store(store), address=cluster.address, poll_s=0.05, backoff_s=0.01) as runner:
    runner.check([toys.toy(toys.nothing, "spread", desk, workers=Workers(3, Resources()))])
    refused = []
    try:  # three CPUs are there, but each worker needs its own on one node
        runner.check([toys.toy(toys.nothing, "split", desk, workers=Workers(2, Resources(num_cpus=1.5)))])
    except ValueError as error:
        refused.append(str(error))
    summary = runner.run([on_gpu], observe)
print(summary.ok, len(summary.finished), len(retried), waited, len(refused), flush=True)
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_ends_with_every_stage_once_it_has_what_they_need(store: Store, desk: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", CLUSTER, str(store.root), str(desk)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    told = "True 7 1 [\"no node with {'CPU': 1, 'GPU': 1} is there now\"] 1"
    assert done.stdout.splitlines()[-1:] == [told], done.stderr[-2000:]
    assert Counter(run["key"] for run in runs(desk)).total() == 4
    assert store.leases.holders() == {}
