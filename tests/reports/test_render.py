"""A report is complete, stands alone, repeats, and never runs what the data says."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from reports.figures import Look, scale_response
from reports.render import ReportFiles, write_report
from reports.results import StudyResults, load_study
from reports.svg import inline
from reports.table_texts import summary_table
from reports.theory_figures import slot_figure
from reports.verdicts import judge
from tests.reports.bulk import write_study_in_bulk
from tests.reports.conftest import EVIL, STUDY
from tests.reports.design import PAIR, QUICKSTART, Design
from tests.reports.factory import write_study


@pytest.fixture(scope="module")
def files(results: StudyResults, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report(results, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(files: ReportFiles) -> str:
    return files.html.read_text()


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.headings: list[str] = []
        self.outside: list[str] = []
        self._heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._heading = tag in ("h1", "h2", "h3")
        if self._heading:
            self.headings.append("")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "aria-label" and tag == "svg":
                self.images.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name.startswith("on") or (
                name in ("src", "href", "srcset", "data") and not re.match("#|data:", value or "")
            ):
                self.outside.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self._heading:
            self.headings[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._heading = False


def test_the_same_study_reported_in_another_process_gives_the_same_bytes(
    store: str, files: ReportFiles, tmp_path: Path
) -> None:
    work = "import sys; from pathlib import Path; from reports.render import write_report; "
    work += "from reports.results import load_study; write_report(load_study(*sys.argv[1:3]), Path(sys.argv[3]))"
    elsewhere = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", work, store, STUDY.name, str(tmp_path)], check=True, env=elsewhere)
    written = [path.relative_to(files.html.parent) for path in files.html.parent.rglob("*") if path.is_file()]
    assert len(written) > 15
    for name in written:
        assert (tmp_path / name).read_bytes() == (files.html.parent / name).read_bytes(), name


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(html: str) -> None:
    page = Page(html)
    assert page.outside == []
    assert not {"script", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    assert "url(" not in html.replace("url(#", "")
    assert "@import" not in html
    outside = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_hostile_text_stays_text(html: str, files: ReportFiles) -> None:
    assert EVIL not in html
    assert "&lt;script&gt;" in html
    assert EVIL not in files.markdown.read_text()
    assert Page(html).headings[0] == STUDY.question


def test_question_verdict_and_one_figure_come_first(html: str) -> None:
    header = html[html.index("<header>") : html.index("</header>")]
    assert "Beyond the training length, with each variant at its searched scale, on V-NIAH" in header
    assert "<figure>" in header


def test_every_section_is_there_and_every_link_inside_leads_somewhere(html: str) -> None:
    page = Page(html)
    wanted = ["Results", "Accuracy against context length", "Depth of the needle", "Choosing the temporal scale"]
    wanted += ["Kinds of question", "Ablation: what each axis does", "The variants", "Training", "Published numbers"]
    wanted += ["Errors", "Costs", "Every cell", "Method"]
    assert [heading for heading in wanted if heading not in page.headings] == []
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_says_in_words_what_it_shows(html: str) -> None:
    alts = [alt for alt in Page(html).images if alt]
    for start in ("Accuracy against context", "Difference to", "Validation accuracy", "Training loss", "Which axis"):
        assert any(alt.startswith(start) for alt in alts), start


def test_every_cell_leads_to_its_run_and_command(html: str, results: StudyResults) -> None:
    for cell in results.cells.itertuples():
        assert cell.run_id in html
        assert cell.command in html
    assert results.run_id in html


def test_what_the_costs_leave_out_is_said(html: str) -> None:
    assert "Left out: drawing, decoding and encoding the videos" in html[html.index('id="costs"') :]


def test_failures_are_listed_with_their_cause(html: str, files: ReportFiles) -> None:
    assert "RuntimeError: &lt;script&gt;" in html
    assert "Not finished: 1 of 72 cells" in html
    assert "RuntimeError" in files.markdown.read_text()


def test_published_numbers_stand_only_beside_the_same_benchmark_and_context(
    results: StudyResults, html: str, tmp_path: Path
) -> None:
    assert "No published number" in html
    reference = tmp_path / "reference.csv"
    rows = (
        "p,their-7B,hope,v_niah,64,63.56,table 4\np,their-7B,hope,v_niah,640,11.11,t\np,their-7B,hope,mlvu,64,22.22,t\n"
    )
    reference.write_text(f"source,model,variant,benchmark,context,score_percent,note\n{rows}")
    page = write_report(results, tmp_path / "report", published=reference).html.read_text()
    assert "63.56" in page
    assert "Other models and other data" in page
    assert "11.11" not in page
    assert "22.22" not in page


def test_changes_since_the_last_time_are_listed_regressions_first(results: StudyResults, tmp_path: Path) -> None:
    asked = results.questions
    record = copy.deepcopy(results.record)
    record["benchmarks"]["v_niah"]["question_set"] = "000000"
    earlier = replace(results, run_id="former", questions=asked.assign(correct=asked.variant == "hope"), record=record)
    files = write_report(results, tmp_path / "report", earlier=earlier)
    for text in (unescape(file.read_text()).replace("\\", "") for file in (files.html, files.markdown)):
        assert text.index("Regression:") < text.index("m_rope on v_niah 64 searched: 0.0 →")
        assert "Compared with run former" in text
        assert "V-NIAH has other questions now (a1b2c3, then 000000)" in text


def test_unanswered_questions_and_unusable_data_are_named_with_their_cause(
    results: StudyResults, html: str, files: ReportFiles
) -> None:
    marked = html[html.index('<h2 id="results"') : html.index('<h2 id="contexts"')]
    in_columns = 3  # at 64, over all beyond the training length, and there beside the other rules
    assert marked.count("6 of 40 unanswered") == in_columns * len(STUDY.scale_rules)
    assert "18 questions that ended in an error count as wrong" in html
    assert "6 of 40 unanswered" in summary_table(results, judge(results))
    page = Page(html)
    assert {"Questions without an answer", "Data"} <= set(page.headings)
    for text in (html, files.markdown.read_text()):
        assert "no video stream &lt;script&gt;" in text
        assert "1 of 100 records could not be used" in text


def test_figures_are_files_that_stand_alone(files: ReportFiles) -> None:
    names = [path.name for path in sorted(files.figures.iterdir())]
    assert [name[3:] for name in names if "preference" in name or "slot" in name] == [
        "which-axis-each-rotary-slot-follows.svg",
        "semantic-preference.svg",
    ]
    for path in files.figures.iterdir():
        svg = ElementTree.parse(path).getroot()
        assert "color:#1b1f24" in svg.attrib["style"]
        assert "mathdefault" not in path.read_text()


def test_a_caption_of_any_length_and_script_names_a_file(results: StudyResults, tmp_path: Path) -> None:
    record = copy.deepcopy(results.record)
    record["benchmarks"]["v_niah"]["title"] = 100 * "ναός "
    files = write_report(replace(results, record=record), tmp_path / "report")
    names = [path.name for path in sorted(files.figures.iterdir())]
    assert len({name[:2] for name in names}) == len(names) > 5
    assert names[0].startswith("00-ναός-ναός-")
    assert max(len(name.encode()) for name in names) <= 107


def test_a_variant_of_four_indices_has_its_slots_drawn(results: StudyResults) -> None:
    record = copy.deepcopy(results.record)
    record["variants"][0]["slot_axes"] = [0, 1, 2, 3] * 8
    figure = slot_figure(replace(results, record=record))
    assert "vanilla: 8 t, 8 h, 8 w, 8 fourth" in figure.svg
    assert "pink: a fourth index" in figure.detail
    assert "pink" not in slot_figure(results).detail


def test_csv_heads_carry_their_units(files: ReportFiles) -> None:
    cells, verdicts = (file.read_text().splitlines()[0].split(",") for file in (files.cells_csv, files.verdicts_csv))
    assert {"accuracy [0..1]", "duration_s", "gpu_hours", "started_ms"} <= set(cells)
    assert {"accuracy [0..1]", "low [0..1]", "difference_value [0..1]", "difference_standard_error [0..1]"} <= set(
        verdicts
    )


def test_latex_is_balanced_whatever_the_titles_say(results: StudyResults, tmp_path: Path) -> None:
    record = copy.deepcopy(results.record)
    record["benchmarks"]["v_niah"]["title"] = r"50 % of {a_b} & $x$ ~ \input{#1} ^"
    text = write_report(replace(results, record=record), tmp_path / "report").latex.read_text()
    bare = re.sub(r"\\[\\%&_#${}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not set("#~^%") & set(re.sub(r"\\text\w+\{\}", "", bare))
    assert sorted(re.findall(r"\\begin\{(\w+)\}", text)) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    for table in text.split(r"\begin{tabular}")[1:]:
        body = table[: table.index(r"\bottomrule")]
        width = len(body[1 : body.index("}")])
        rows = [row for row in re.split(r"\\\\", body[body.index(r"\toprule") :]) if "&" in row]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {width}


def test_the_summary_says_variant_context_accuracy_and_verdict(results: StudyResults) -> None:
    lines = summary_table(results, judge(results)).splitlines()
    assert lines[0] == "V-NIAH, scale searched on validation questions"
    assert lines[1].split()[:2] == ["variant", "scale"]
    assert lines[3].startswith("m_rope (baseline)  none")
    assert re.search(r"hope +0\.5 .*\d+\.\d \[\d+–\d+\] [+−]\d+\.\d [▲▼○△▽]", "\n".join(lines))


def test_latex_and_markdown_hold_the_same_cells(results: StudyResults, files: ReportFiles) -> None:
    row = judge(results).query("scale_rule == 'searched' and context == '64' and variant == 'hope'").iloc[0]
    number = f"{100 * row.accuracy:.1f}"
    assert number in files.latex.read_text()
    assert number in files.markdown.read_text()
    assert files.latex.read_text().count(r"\toprule") == len(STUDY.scale_rules)


def test_one_seed_is_said_not_judged(root: Path, tmp_path: Path) -> None:
    uri = write_study(root, Design(name="one seed", variants=PAIR, seeds=(0,), scale_rules=("published",)))
    results = load_study(uri, "one seed")
    assert set(judge(results).verdict) == {"", "cannot tell"}
    page = write_report(results, tmp_path / "report").html.read_text()
    assert "One seed only" in page
    assert "nothing can be told beyond this seed" in page


def test_a_study_that_excludes_its_published_cells_is_reported_whole(root: Path, tmp_path: Path) -> None:
    design = Design(name="not as published", variants=QUICKSTART)
    cells = product((v.name for v in QUICKSTART), design.seeds, design.benchmarks, design.contexts, ("published",))
    results = load_study(write_study_in_bulk(root, replace(design, excluded=frozenset(cells))), design.name)
    files = write_report(results, tmp_path / "report")
    assert [line.split()[0] for line in files.summary.read_text().splitlines()[2:-2]] == [v.name for v in QUICKSTART]
    assert "As published" not in files.html.read_text()
    assert files.latex.read_text().count(r"\toprule") == 1


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on PATH")
@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint_or_a_request(files: ReportFiles, tmp_path: Path) -> None:
    shots = {}
    for scheme, value in (("dark", 0), ("light", 1)):
        net_log, shots[scheme] = tmp_path / f"{scheme}.json", tmp_path / f"{scheme}.png"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        options += ["--enable-logging=stderr", f"--blink-settings=preferredColorScheme={value}"]
        options += [f"--user-data-dir={tmp_path / scheme}", f"--log-net-log={net_log}", "--window-size=1280,1600"]
        done = subprocess.run(
            ["chromium", *options, "--dump-dom", f"--screenshot={shots[scheme]}", files.html.as_uri()],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "CONSOLE" not in done.stderr
        assert requests_of_pages(net_log) == []
        shown = Page(done.stdout)
        assert shown.headings == Page(files.html.read_text()).headings
        assert shown.headings[0] == STUDY.question
        assert shown.images == Page(files.html.read_text()).images
        assert "script" not in shown.tags
    assert all(shot.stat().st_size > 50_000 for shot in shots.values())
    assert shots["light"].read_bytes() != shots["dark"].read_bytes()


def requests_of_pages(net_log: Path) -> list[str]:
    """URLs that a page asked for; what the browser asks for itself has no origin."""
    events = json.loads(net_log.read_text())["events"]
    started = [event["params"] for event in events if "initiator" in event.get("params", {})]
    asked = [params["url"] for params in started if params["initiator"] != "not an origin" and "url" in params]
    return [url for url in asked if not url.startswith(("file:", "data:"))]


def test_a_search_over_a_range_has_legible_ticks_and_a_line_for_each_seed() -> None:
    rows = [
        (seed, 0.25 * 1.21**place + seed / 100, 0.5, 0.3, 0.7, "complete", place == 3, {})
        for seed in (0, 1)
        for place in range(15)
    ]
    columns = ["seed", "scale", "accuracy", "low", "high", "state", "chosen", "per_kind"]
    svg = scale_response("s", "alt", pd.DataFrame(rows, columns=columns), Look("#0072B2", "-", "o"), 1.0)
    ticks = [
        label for label in re.findall(r">([\d.]+)</text>", svg) if label not in {"0", "20", "40", "60", "80", "100"}
    ]
    assert ticks == ["0.25", "0.5", "1", "2", "4"]
    assert svg.count("stroke-width: 1.2") == 2


def test_numbers_that_a_figure_shows_are_not_shortened() -> None:
    svg = '<svg viewBox="0 0 1 1">\n<g id="text_1"><text x="1.23456">0.125 $x$</text></g></svg>'
    assert '<text x="1.23">0.125 $x$</text>' in inline(svg, "a < b")
