"""Kill a study with -9 at random moments, run it once more, and compare with a run that nothing interrupted.

    python -m tests.experiments.kills --kills 12 study=smoke

Every second kill takes the launcher alone, the others all of its processes, Ray's among them. A study that ends before
the next kill is compared and begun anew. Compared are every question's prediction, the report's verdicts and question
counts, and the tree of MLflow runs.
"""

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.experiments.runs import check_tree, numbers

COMPARED = ("verdicts.csv", "questions.csv")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.experiments.kills", description=__doc__)
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="the study, as for hope run; without store=")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = [*args.overrides, f"store={folder}/whole"]
        killed = [*args.overrides, f"store={folder}/killed"]
        started = time.monotonic()
        assert launch(whole).wait() == 0
        whole_s = time.monotonic() - started
        print(f"uninterrupted: {whole_s:.0f} s", flush=True)
        kills = equal = 0
        while kills < args.kills:
            launcher = launch(killed)
            try:
                launcher.wait(timeout=rng.uniform(0, whole_s))
            except subprocess.TimeoutExpired:
                kills += 1
                num_victims = kill(launcher, everything=kills % 2 == 0)
                done = len(list(Path(folder, "killed", "artifacts").glob("*/*/record.json")))
                print(f"kill {kills}: {num_victims} processes, {done} artifacts so far", flush=True)
            else:
                assert launcher.returncode == 0
                compare(killed, whole)
                shutil.rmtree(f"{folder}/killed")
                equal += 1
                print(f"ended before the next kill, equal to the uninterrupted run; begun anew ({equal})", flush=True)
        assert launch(killed).wait() == 0
        compare(killed, whole)
        print(
            f"{kills} kills, {equal + 1} studies equal: {len(numbers(whole))} cells, {', '.join(COMPARED)}, MLflow runs"
        )
    return 0


def kill(launcher: "subprocess.Popen[bytes]", *, everything: bool) -> int:
    """Kill the launcher, or it and all processes below it; how many they were."""
    process = psutil.Process(launcher.pid)
    victims = [process, *(process.children(recursive=True) if everything else [])]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    launcher.wait()
    return len(victims)


def compare(killed: Sequence[str], whole: Sequence[str]) -> None:
    """Raise unless both stores hold the same predictions, verdicts and question counts, and a whole tree of runs."""
    assert numbers(killed) == numbers(whole), "predictions differ"
    for name in COMPARED:
        (one,), (other,) = (Path(part[-1].removeprefix("store=")).glob(f"reports/*/{name}") for part in (whole, killed))
        assert one.read_bytes() == other.read_bytes(), f"{name} differs"
    check_tree(killed)


def launch(overrides: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "experiments", "run", *overrides], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
