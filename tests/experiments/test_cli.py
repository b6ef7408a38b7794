import json
import re
import socket
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.compose import load_config
from experiments.grid import build_grid
from hope_core import list_variants
from pipelines.engine import LocalRunner, Store


@pytest.mark.parametrize(
    "command",
    [
        "",
        "run",
        "rerun",
        "schedule",
        "schedule add",
        "schedule list",
        "schedule remove",
        "schedule start",
        "plan",
        "explain",
        "status",
        "report",
        "sync",
        "launch",
        "compare",
        "variants",
        "theory",
        "ui",
        "doctor",
    ],
)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes" in text
    assert f"  hope {command}" in text.partition("examples:\n")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "study=nope"], "unknown study 'nope'"),
        (["plan", "study=smoke", "recipe.stpes=1"], "unknown key recipe.stpes"),
        (["plan", "study=frequency_allocation", "model=qwen2_vl_2b"], "the model that was chosen has no such key"),
        (["plan", "study=layout", "model=qwen2_vl_2b"], "give a multiple, such as dataset.frame_size=56"),
        (
            ["plan", "study=smoke", "benchmarks.v_niah_d.num_validation_films=4"],
            "benchmarks.v_niah_d.num_validation_films is 4 of 4 films; leave at least one for validation",
        ),
        (["run", "study=smoke", "--only", "nobody"], "--only 'nobody' matches no cell"),
        (["theory", "nope"], "unknown variant 'nope'"),
        (["theory", "hope", "--out", "/etc/passwd"], "--out '/etc/passwd' cannot be made (File exists); give a folder"),
        (["doctor", "color=red"], "'color=red' is not understood here"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["run", "plan", "status"])
def test_a_store_that_is_no_folder_is_a_mistake_of_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert main([command, "study=smoke", f"store={tmp_path / 'file'}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_a_store_that_cannot_be_written_is_a_mistake_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "study=smoke", "store=/proc/hope"]) == 2
    assert re.fullmatch(
        r"hope: store /proc/hope cannot be written .*: choose another folder\n", capsys.readouterr().err
    )


def test_a_report_of_a_study_that_never_ran_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "study=smoke", f"store={tmp_path / 'out'}"]) == 2
    assert "run a study first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_plan_counts_cells_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "study=quickstart", f"store={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert "360 cells = 12 trials x 10 contexts of 2 benchmarks x 3 scale rules" in said
    assert "v_niah: cannot resolve less than" in said
    assert "FLOP/s a core" in said
    assert not (tmp_path / "out").exists()


def test_a_plan_that_could_tell_nothing_apart_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    two = "study.variants=[m_rope,hope]"
    assert main(["plan", "study=quickstart", two, f"store={tmp_path / 'out'}"]) == 0
    assert "cannot resolve any difference; add to study.seeds" in capsys.readouterr().out


def test_every_cell_of_a_plan_has_its_id_and_state(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = load_config(small)
    trial = build_grid(config).trials[0]
    LocalRunner(Store(Path(config.store))).run([trial.finetune])
    assert main(["plan", *small, "--cells"]) == 0
    said = capsys.readouterr().out
    assert "missing  hope-s0/v_niah_d/128/searched" in said
    assert "1 done, 1 to run" in next(line for line in said.splitlines() if "finetune" in line)
    assert "recorded durations of like stages" in said
    assert "one seed tells nothing apart" in said
    assert main(["plan", *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {cell["id"]: cell["state"] for cell in found["cells"]}["m_rope-s0/v_niah_d/32/published"] == "missing"
    assert next(stage for stage in found["stages"] if stage["name"] == "finetune")["done"] == 1
    assert found["resolutions"][0]["difference"] is None


def test_the_registry_is_listed_whole_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:]] == list_variants()
    assert main(["variants", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == list_variants()


def test_a_cluster_that_does_not_answer_is_one_line_and_no_run(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # nothing listens there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["run", *small, f"cluster.address={address}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hope: no Ray cluster answers at {address}")
    assert "leave out cluster.address" in line
    assert not (tmp_path / "out" / "mlflow.db").exists()


def test_the_doctor_names_what_would_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"store={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("torch", "sdpa", "decord", "ray", "mlflow", str(tmp_path)))


def test_the_doctor_fails_on_a_store_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", "/proc/hope"):  # no folder; nobody can make a file there
        assert main(["doctor", f"store={store}"]) == 1
        assert "FAIL  store" in capsys.readouterr().out
