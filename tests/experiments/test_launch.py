import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import psutil
import pytest
import yaml

from experiments import launch
from experiments.cli import build_parser, main
from experiments.compose import load_config
from tests.experiments.servers import free_port
from tests.experiments.test_rerun import GROWN

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
STUDY = ("study=smoke", "store=/store/hope", "study.seeds=[0,1]", "study.question='It\\'s: \"a\" #b <c>'")
NODE = ("--image", "registry.example/hope:1", "--claim", "hope-store", "--workers", "2", "--gpus", "4")


def printed(kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["launch", "--print", kind, *NODE, *STUDY]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["rayjob", "cronjob"])
def test_a_manifest_is_what_the_published_schema_asks_for(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = yaml.safe_load(printed(kind, capsys))
    schema = json.loads((GOLDEN / f"{kind}_schema.json").read_text())
    jsonschema.validate(manifest, schema)
    misspelt = yaml.safe_load(yaml.safe_dump(manifest).replace("containers:", "container:"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt, schema)


def test_a_rayjob_runs_the_study_on_its_own_cluster_behind_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    spec = yaml.safe_load(printed("rayjob", capsys))["spec"]
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {spec['entrypoint']}"], capture_output=True, text=True)
    assert said.stdout.splitlines() == ["hope", "run", *STUDY, "cluster=address"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    container = workers["template"]["spec"]["containers"][0]
    assert (workers["replicas"], container["resources"]["limits"]["nvidia.com/gpu"]) == (2, "4")


def test_a_cronjob_scores_and_never_trains(capsys: pytest.CaptureFixture[str]) -> None:
    spec = yaml.safe_load(printed("cronjob", capsys))["spec"]
    container = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["hope", "rerun", *STUDY]
    assert spec["concurrencyPolicy"] == "Forbid"


def test_a_slurm_script_starts_a_head_and_workers_and_exits_as_the_study_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "job.sh"
    script.write_text(printed("slurm", capsys))
    tools = tmp_path / "bin"
    tools.mkdir()
    notes = tmp_path / "notes"
    note = f'#!/bin/bash\necho "$(basename "$0") $RAY_AUTH_MODE ${{#RAY_AUTH_TOKEN}} $*" >> {notes}\n'
    stubs = {"srun": note, "ray": "#!/bin/bash\n", "hope": note + "exit 1\n"}
    stubs |= {"scontrol": "#!/bin/bash\necho one; seq 100000\n"}
    stubs |= {"getent": "#!/bin/bash\necho 10.0.0.1 one; seq 100000\n"}
    for name, text in stubs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(["bash", str(script)], env=os.environ | slurm | {"PATH": path}, check=False)
    assert ended.returncode == 1
    while len(lines := notes.read_text().splitlines()) < 3:  # srun writes beside the script
        time.sleep(0.05)
    (study,) = (line for line in lines if line.startswith("hope"))
    (head,) = (line for line in lines if "--head" in line)
    (worker,) = set(lines) - {study, head}
    assert "srun token 64 --overlap --nodes=1 --ntasks=1 --nodelist=one ray start --head" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--exclude=one ray start --block --address=10.0.0.1:20007" in worker
    assert study == f"hope token 64 run {' '.join(STUDY)} cluster=address cluster.address=10.0.0.1:20007"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study=smoke", "store=/s"], "give --address http://HEAD:8265, or --print"),
        (["--print", "rayjob", "study=smoke", "store=/s"], "needs --image"),
        (["--print", "slurm", "study=smoke"], "no store given; add store=FOLDER"),
        (["--print", "slurm", "study=smoke", "store=outputs"], "store 'outputs' is no full path"),
        (["--print", "slurm", "study=nope", "store=/s"], "unknown study 'nope'"),
        (["--print", "slurm", "--cpus", "0", "study=smoke", "store=/s"], "--cpus is 0; give at least 1"),
        (["--print", "slurm", "--gpus", "-1", "study=smoke", "store=/s"], "--gpus is -1; give at least 0"),
        (
            ["--print", "rayjob", *NODE, "study=smoke", "store=/s", f"study.name={'x' * 43}"],
            f"would be hope-{'x' * 43}, of 48 characters; it may have 47: give a shorter study.name",
        ),
        (["--address", "head:8265", "study=smoke", "store=/s"], "give the job server as http://HOST:8265"),
        (["--print", "slurm", "study=smoke", "store=s3://bucket/hope"], "'s3://bucket/hope' is no full path"),
        (["--job", "x"], "--job shows a job of the cluster at --address"),
    ],
)
def test_a_launch_that_cannot_be_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_cluster_without_a_token_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["launch", "--address", "http://127.0.0.1:1", "study=smoke", "store=/s"]) == 2
    assert "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or RAY_AUTH_MODE=disabled" in capsys.readouterr().err


def test_only_source_is_sent_and_no_large_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with launch.staged_source() as folder:
        assert sorted(path.name for path in folder.iterdir()) == sorted(launch.SOURCES)
        assert (folder / "experiments" / "cli.py").is_file()
        assert not list(folder.rglob("__pycache__"))
    monkeypatch.setattr(launch, "MAX_PACKAGE_MIB", 0)
    with pytest.raises(ValueError, match=r"the source to send has \d+ MiB, more than 0"), launch.staged_source():
        pass


def test_a_head_without_a_job_agent_yet_is_asked_again_and_any_other_answer_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = importlib.util.find_spec("ray.dashboard.modules.job.job_head")
    assert spec
    assert launch.NO_AGENT in Path(str(spec.origin)).read_text()  # what this version of Ray answers
    monkeypatch.setattr(launch, "FIRST_WAIT_S", 0.0)
    answers = iter([launch.NO_AGENT, launch.NO_AGENT, "", launch.NO_AGENT, "Internal error"])
    asked = []

    def send() -> str:
        asked.append(answer := next(answers))
        if answer:
            raise RuntimeError(f"Request failed with status code 500: {answer}, please try again later.")
        return "job"

    assert launch.once_there_is_an_agent(send) == "job"
    with pytest.raises(RuntimeError, match="Internal error"):
        launch.once_there_is_an_agent(send)
    assert len(asked) == 5
    monkeypatch.setattr(launch, "AGENT_TIMEOUT_S", -1.0)
    answers = iter([launch.NO_AGENT])
    with pytest.raises(RuntimeError, match=launch.NO_AGENT):
        launch.once_there_is_an_agent(send)


def test_every_command_of_the_page_is_understood() -> None:
    page = (ROOT / "docs" / "run-on-a-cluster.md").read_text()
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("hope ")]
    assert len(commands) > 10
    for command in commands:
        args, rest = build_parser().parse_known_args(command)
        assert not [word for word in rest if word.startswith("-")]
        load_config([word for word in [*args.overrides, *rest] if not word.startswith("store=")] or ["study=smoke"])


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The job server of a Ray head on this machine that asks for a token; the token is in the environment."""
    folder = Path("/tmp") / f"hope-ray-{os.getpid()}"  # its sockets' paths may have 107 characters
    port, dashboard = free_port(), free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={folder}"]
    command += [f"--ray-client-server-port={free_port()}", "--node-ip-address=127.0.0.1"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    while True:
        assert process.poll() is None, (tmp_path / "head.log").read_text()
        try:
            launch.connect(address).list_jobs()
            break
        except (ValueError, RuntimeError):
            time.sleep(0.5)
    yield address
    started = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    started += [
        each.pid for each in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(each.info["cmdline"] or [])
    ]
    for pid in set(started):
        if psutil.pid_exists(pid):
            psutil.Process(pid).kill()
    process.wait()


@pytest.mark.soak
def test_a_launched_rerun_runs_on_the_cluster_from_the_source_that_was_sent(
    finished: list[str], head: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert main(["launch", "--address", head, "--rerun", "--follow", *finished, *GROWN]) == 0
    said = capfd.readouterr().out
    assert "ran 4 stages" in said
    assert "succeeded" in said
    job = said.split("job ", 1)[1].split(";")[0]
    command = [sys.executable, "-m", "experiments", "launch", "--address", head, "--job", job]
    stranger = os.environ | {"RAY_AUTH_TOKEN": "wrong"}
    refused = subprocess.run(command, env=stranger, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert main(["launch", "--address", head, "--job", "nobody"]) == 2
    assert f"no job 'nobody' on the cluster; there are {job}" in capfd.readouterr().err
