import pytest
import ray

from experiments.cli import main
from experiments.compose import load_config


def test_a_finished_study_starts_no_ray_and_keeps_its_report_until_a_file_of_it_is_changed(
    finished: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = load_config(finished)[0].report_dir / "report.html"
    assert main(["run", *finished]) == 0
    first = capsys.readouterr().out
    whole, made = report.read_bytes(), report.stat().st_mtime_ns

    assert main(["run", *finished]) == 0
    again = capsys.readouterr().out
    assert "nothing to do: every cell is done" in again
    assert first.splitlines()[-8:] == again.splitlines()[-8:]  # the same table
    assert report.stat().st_mtime_ns == made
    assert not ray.is_initialized()

    report.write_text("edited")
    report.with_name("tables.tex").unlink()
    assert main(["run", *finished]) == 0
    assert report.read_bytes() == whole
    assert report.with_name("tables.tex").is_file()
