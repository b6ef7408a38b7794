"""Kill a study with -9 at random moments, run it once more, and compare with a run that nothing interrupted.

    python -m tests.experiments.kills --kills 12 study=smoke

Every second kill takes the launcher alone, the others all of its processes, Ray's among them. Compared are every
question's prediction, the report's verdicts and question counts, and the tree of MLflow runs.
"""

import argparse
import random
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
        for kill in range(args.kills):
            launcher = launch(killed)
            after_s = rng.uniform(0, whole_s)
            try:
                launcher.wait(timeout=after_s)
                print(f"kill {kill + 1}: the run had ended after less than {after_s:.1f} s", flush=True)
                continue
            except subprocess.TimeoutExpired:
                victims = [psutil.Process(launcher.pid)]
                if kill % 2:
                    victims += victims[0].children(recursive=True)
                for victim in victims:
                    victim.kill()
                launcher.wait()
            what = "the launcher" if len(victims) == 1 else f"all {len(victims)} processes"
            done = len(list(Path(folder, "killed", "artifacts").glob("*/*/record.json")))
            print(f"kill {kill + 1}: {what} after {after_s:.1f} s, {done} artifacts", flush=True)
        assert launch(killed).wait() == 0
        assert numbers(killed) == numbers(whole), "predictions differ"
        for name in COMPARED:
            (one,), (other,) = (Path(folder, part).glob(f"reports/*/{name}") for part in ("whole", "killed"))
            assert one.read_bytes() == other.read_bytes(), f"{name} differs"
        check_tree(killed)
        print(f"equal after {args.kills} kills: {len(numbers(whole))} cells, {', '.join(COMPARED)}, MLflow runs")
    return 0


def launch(overrides: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "experiments", "run", *overrides], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
