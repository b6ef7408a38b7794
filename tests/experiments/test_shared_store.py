"""One store used by several processes at once: two launchers, and a cluster that loses a node mid-study."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.compose import load_config
from experiments.grid import build_grid
from pipelines.engine import Store, walk
from tests.experiments.runs import check_tree

pytestmark = pytest.mark.slow

CLUSTER = """
import sys
import threading
import psutil
from ray.cluster_utils import Cluster
from experiments.cli import main
from experiments.compose import load_config
from experiments.grid import build_grid
from pipelines.engine import Store

overrides, store = sys.argv[1:], Store(sys.argv[-1].removeprefix("store="))
long = {trial.finetune.fingerprint for trial in build_grid(load_config(overrides)[0]).trials}
checks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}
head = {"num_cpus": 1, "include_dashboard": False, "_system_config": checks}
cluster = Cluster(initialize_head=True, head_node_args=head)
lost = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
killed = []

def lose_a_node():
    raylet = psutil.Process(lost.all_processes["raylet"][0].process.pid)
    while not killed:
        below = {process.pid: process for process in raylet.children(recursive=True)}
        for holder in store.leases.holders().values():
            if holder.owner and holder.owner.pid in below and holder.fingerprint in long and is_caught(holder):
                killed.append(holder.fingerprint)
                for process in [*below.values(), raylet]:
                    process.kill()
                break

def is_caught(holder):
    # Stops the process, and says whether it is inside the stage: begun (the log says so) and not yet published.
    log = store.log_path("finetune", holder.fingerprint)
    process = psutil.Process(holder.owner.pid)
    process.suspend()
    begun = log.exists() and "--- " in log.read_text()
    if begun and not store.get_artifact("finetune", holder.fingerprint):
        return True
    process.resume()
    return False

watch = threading.Thread(target=lose_a_node, daemon=True)
watch.start()
code = main(["run", f"cluster.address={cluster.address}", *overrides])
print("killed", *killed, flush=True)
cluster.shutdown()
sys.exit(code)
"""


def attempts(overrides: Sequence[str]) -> dict[str, int]:
    """How often each stage of the study was begun, by label, from the stages' logs."""
    config, _ = load_config(overrides)
    store = Store(config.store)
    stages = list(walk(build_grid(config).targets))
    assert all(store.has(stage) for stage in stages)
    logs = {stage.label: store.log_path(stage.name, stage.fingerprint).read_text() for stage in stages}
    return {label: sum(line.startswith("--- ") for line in text.splitlines()) for label, text in logs.items()}


def test_two_launchers_at_once_run_each_stage_once_and_both_end_well(small: list[str]) -> None:
    command = [sys.executable, "-m", "experiments", "run", *small]
    launchers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    ended = [launcher.communicate()[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(ended)
    assert all("report:" in output for output in ended)
    begun = attempts(small)
    assert set(begun.values()) == {1}, begun
    check_tree(small)


def test_a_study_whose_cluster_loses_a_node_ends_with_all_cells(small: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", CLUSTER, "recipe.steps=30", *small]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    (fingerprint,) = done.stdout.splitlines()[-1].split()[1:]
    overrides = ["recipe.steps=30", *small]
    config, _ = load_config(overrides)
    (hit,) = [stage.label for stage in walk(build_grid(config).targets) if stage.fingerprint == fingerprint]
    begun = attempts(overrides)
    assert begun.pop(hit) == 2, begun
    check_tree(overrides)
