"""A whole run whose tracking server is killed in the middle and started again: python -m tests.experiments.server_away

Prints the run's lines and, at the end, that every run is in MLflow once.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.experiments.conftest import SMALL
from tests.experiments.runs import check_tree, runs_of
from tests.experiments.servers import TrackingServer


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="hope-server-away-") as folder:
        server = TrackingServer(Path(folder) / "server")
        server.start()
        study = [*SMALL, f"store={Path(folder) / 'out'}", f"tracking_uri={server.uri}"]
        command = [sys.executable, "-m", "experiments", "run", *study]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert run.stdout
        try:
            for line in run.stdout:
                print(line, end="", flush=True)
                if "finished finetune m_rope" in line:
                    server.stop()
                    print("-- the server was killed", flush=True)
                if "tracking server is away" in line:
                    os.kill(run.pid, signal.SIGSTOP)  # so that the server is back before the run ends
                    server.start()
                    os.kill(run.pid, signal.SIGCONT)
                    print("-- the server was started again", flush=True)
            assert run.wait() == 0
            check_tree(study)
            print(f"{len(runs_of(study))} runs, each once, the tree complete")
        finally:
            run.kill()
            server.stop()


if __name__ == "__main__":
    main()
