"""A whole study on a cluster that loses a node; what the engine and its stages do then, their own tests show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.compose import load_config
from experiments.grid import build_grid
from pipelines.engine import walk
from tests.experiments.runs import attempts, check_tree

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
    pause = threading.Event()
    while not killed:
        pause.wait(0.05)  # looking all the time would take the stages' time
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


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_study_whose_cluster_loses_a_node_ends_with_all_cells(small: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.getcwd()}
    overrides = ["study.scale_rules=[equal]", *small]
    command = [sys.executable, "-c", CLUSTER, *overrides]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    (fingerprint,) = done.stdout.splitlines()[-1].split()[1:]
    config, _ = load_config(overrides)
    (hit,) = [stage.label for stage in walk(build_grid(config).targets) if stage.fingerprint == fingerprint]
    begun = attempts(overrides)
    assert begun.pop(hit) == 2, begun
    check_tree(overrides)
