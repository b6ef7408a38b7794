"""docs/add-a-benchmark.md as it is written, a released folder with faults and needles from one, in one whole study."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.compose import CONF, load_config
from experiments.grid import build_grid
from tests.experiments.conftest import ONE_TRIAL
from tests.experiments.runs import check_tree, runs_of
from tests.pages import ROOT, blocks
from tests.pipelines.benchmarks.miniatures import settings, write_faults, write_video
from tests.pipelines.folders import asked_in_a_study, write_folder

PAGE = ROOT / "docs" / "add-a-benchmark.md"
(RECORD,), (BENCHMARK,) = blocks(PAGE, "json"), blocks(PAGE, "yaml")
COMMANDS = [shlex.split(line) for line in blocks(PAGE, "")[0].splitlines()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a config of its own, to which the page's benchmark is added."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.compose.CONF", tmp_path / "conf")
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "benchmark" / "zoo.yaml").write_text(BENCHMARK, encoding="utf-8")
    return tmp_path


def write_zoo(folder: Path) -> None:
    record = json.loads(RECORD)
    lines = []
    for number in range(3):
        write_video(folder / "videos" / f"zoo{number}.mp4", seed=number)
        lines.append(json.dumps({**record, "clip": f"zoo{number}"}))
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_a_folder_that_is_not_there_is_refused_in_one_line_and_can_be_planned(
    here: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *small, "benchmark=zoo"]) == 2
    assert "set benchmarks.zoo.root=FOLDER" in capsys.readouterr().err
    assert not (here / "out").exists()
    assert main(["plan", *small, "benchmark=zoo"]) == 0
    assert "evaluate_choice" in capsys.readouterr().out


def test_changed_content_is_a_new_question_set_and_the_folders_place_is_none(here: Path, small: list[str]) -> None:
    write_zoo(here / "data" / "zoo")

    def cells(*overrides: str) -> dict[str, tuple[str, str]]:
        grid = build_grid(load_config([*small, "benchmark=zoo", *overrides])[0])
        return {cell.id: (cell.question_set, cell.stage.fingerprint) for cell in grid.cells}

    before = cells()
    shutil.copytree(here / "data" / "zoo", here / "elsewhere")
    assert cells(f"benchmarks.zoo.root={here / 'elsewhere'}") == before
    with (here / "data" / "zoo" / "questions.jsonl").open("a") as file:
        file.write("\n" + RECORD.strip().replace("passes by", "stands"))
    after = cells()
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "/zoo/" in name}


@pytest.mark.slow
def test_the_page_runs_and_needles_do_and_a_folder_with_faults_ends_with_error_rows_and_exit_code_1(
    here: Path, finished: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_zoo(here / "data" / "zoo")
    write_faults(here / "faults")
    write_folder(here / "needles")
    # The released folder, with a budget that suits the tiny model; its validation questions choose the scale.
    given = settings("longvideobench", root=str(here / "faults"), drop=None, contexts_tokens=[16])
    (here / "conf" / "benchmark" / "faults.yaml").write_text(json.dumps(given | {"name": "faults"}), encoding="utf-8")
    written, again = ([word for word in words[2:] if not word.startswith("study=")] for words in COMMANDS)
    assert [words[:2] for words in COMMANDS] == [["hope", "run"], ["hope", "rerun"]]
    assert again == written
    overrides = [
        *finished,
        "cluster.decode_workers=1",  # beside the stages, as in every study unless it says otherwise
        *written,
        "benchmark=faults",
        *asked_in_a_study(here / "needles"),
        *ONE_TRIAL,
        "study.scale_rules=[searched]",
        "study.search={benchmark: faults, contexts: [16]}",
    ]
    assert main(["run", *overrides]) == 1
    output = capsys.readouterr().out
    assert re.search(r"incomplete hope-s0/faults/16/searched: \d+ questions ended in an error", output)
    assert re.findall(r"incomplete hope-s0/(\w+)", output) == ["faults"]
    assert output.count("finished features hope-s0") == 1  # of the folder, for all its benchmarks

    config, _ = load_config(overrides)
    stages = {cell.benchmark: cell.stage for cell in build_grid(config).cells}
    path = Path(config.store) / "artifacts" / "evaluate_choice" / stages["faults"].fingerprint / "questions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    causes = {line["id"].split("/")[0]: line["error"] for line in lines if line["error"]}
    tested = {line["id"].split("/")[0] for line in lines}
    faulty = {f"vid{video}_{asked}" for video in (4, 5, 6) for asked in (0, 1)} | {"vid7_0"}
    assert causes.keys() == faulty & tested
    assert {"vid4_0", "vid5_0", "vid6_0"} & causes.keys()

    check_tree(overrides)
    cells = {run.data.tags["key"]: run.data for run in runs_of(overrides) if run.data.tags["kind"] == "cell"}
    cell = cells["hope-s0/faults/16/searched"]
    assert cell.metrics["errors"] == len(causes)
    assert cell.tags["incomplete"] == str(len(causes))
    assert {"unparsed", "accuracy/published", "accuracy/macro", "accuracy/micro"} <= cell.metrics.keys()
    for name, questions in {"v_niah_published/6": 10, "v_niah_d_published/12": 10, "v_ruler_multi_key/12": 2}.items():
        cell = cells[f"hope-s0/{name}/searched"]
        assert (cell.metrics["questions"], cell.metrics["errors"]) == (questions, 0)
        assert 0 < cell.metrics["prefill/cells"] <= cell.metrics["prefill/naive_cells"]
        assert cell.tags["scorer"] == "exact_match@1"
    report = (config.report_dir / "report.md").read_text()
    assert all(
        title in report for title in ("V-NIAH-PUBLISHED", "V-NIAH-D-PUBLISHED", "V-RULER-MULTI-KEY", "(12 cells)")
    )
    for command, line in (("run", "nothing to do"), ("sync", "0 runs written")):
        assert main([command, *overrides]) == 1  # done, and still incomplete
        output = capsys.readouterr().out
        assert line in output
        assert "incomplete hope-s0/faults" in output
