"""Running a study: plan, run what is missing, mirror it in MLflow, report."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.compose import load_config
from experiments.config import Config
from experiments.grid import Grid, build_grid, with_cells
from experiments.incomplete import incomplete_lines
from experiments.progress import Progress, counts, doing, duration
from experiments.settled import database_state, is_reported, note_reported, settle, settled_runs
from experiments.training import missing as training_missing
from pipelines.engine import Event, EventKind, Failure, Stage, State, Store, Summary, explain, plan, walk
from pipelines.engine.provenance import hide_passwords
from pipelines.engine.ray_runner import RayRunner

# A finished study run again, and commands that only look at the store, spend no seconds on importing MLflow and the
# report: what writes them brings them.
if TYPE_CHECKING:
    from experiments.mirror import Mirror
    from reports.results import StudyResults

DONE, SOME_FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
NOTHING_TO_DO = "nothing to do: every cell is done"


@dataclass(frozen=True)
class Study:
    """A composed study with its grid and store; nothing has been written yet. `selected`: what --only leaves of it.

    `resolved` and `command` are kept and shown, and have no password.
    """

    config: Config
    resolved: str
    command: str
    grid: Grid
    selected: Grid
    store: Store

    def again(self, command: str) -> str:
        """The command line that does `command` for this study."""
        return shlex.join(["hope", command, *shlex.split(self.command)[2:]])


def open_study(overrides: Sequence[str], *, only: str | None = None, command: str = "run") -> Study:
    """Compose and check everything. Raises ValueError in one line for a user's mistake; writes nothing."""
    config, resolved = load_config(overrides)
    store = Store(Path(config.store))
    grid = build_grid(config)
    selected = grid if only is None else restrict(grid, only)
    words = ["hope", command, *map(hide_passwords, overrides)]
    return Study(config, resolved, shlex.join(words), grid, selected, store)


def refuse_missing(study: Study, *, training: bool = True) -> None:
    """Raise ValueError where files that the selected cells, or their training, rest on are not here."""
    wanted = {cell.benchmark for cell in study.selected.cells}
    absent = [stages.missing for name, stages in study.grid.choice.items() if name in wanted]
    absent += [folder.missing for name, folder in study.grid.folders.items() if name in wanted]
    for line in [training_missing(study.config) if training else None, *absent]:
        if line:
            raise ValueError(line)


def restrict(grid: Grid, pattern: str) -> Grid:
    """The trials and cells whose id (hope-s0, or hope-s0/v_niah/64/searched) matches; * stands for anything."""
    # Not fnmatch: brackets are a part of names.
    wanted = re.compile(re.escape(pattern).replace(r"\*", ".*"))
    cells = tuple(cell for cell in grid.cells if any(wanted.fullmatch(name) for name in (cell.id, cell.trial.name)))
    if not cells:
        names = ", ".join(trial.name for trial in grid.trials[:12]) + (", ..." if len(grid.trials) > 12 else "")
        raise ValueError(f"--only {pattern!r} matches no cell; trials are {names}, cells TRIAL/BENCHMARK/FRAMES/RULE")
    return with_cells(grid, cells)


def run_study(study: Study, console: Console) -> int:
    """Run what is missing, write the report and print its summary; return the exit code."""
    try:
        return _run(study, console)
    except KeyboardInterrupt:  # while Ray starts, while the report is written, or once the runner has ended its stages
        say(console, f"interrupted; what is done is kept: {study.command} continues")
        return INTERRUPTED


def _run(study: Study, console: Console) -> int:
    config, selected = study.config, study.selected
    planned = plan(study.store, selected.targets)
    found = counts(planned)
    missing = len(planned) - found[State.DONE]
    say(console, f"study {config.study.name}: {len(selected.cells)} cells from {len(planned)} stages, {missing} to run")
    if missing == 0 and (runs := settled_runs(study)) and is_reported(study, runs):
        say(console, NOTHING_TO_DO)
        incomplete = print_incomplete(study, console)
        show_report(study, console)
        return SOME_FAILED if incomplete else DONE
    slots = config.cluster.num_cpus or os.cpu_count() or 1
    runner = RayRunner(
        study.store,
        num_cpus=config.cluster.num_cpus,
        num_gpus=config.cluster.num_gpus,
        address=config.cluster.address,
        on_failure=config.on_failure,
        max_retries=config.cluster.max_retries,
    )
    with runner:
        try:
            if missing:
                runner.check([item.stage for item in planned if item.state != State.DONE])
            mirror = open_mirror(study, console)  # the database is made here, before any stage runs
        except ValueError as error:
            print(f"hope: {error}", file=sys.stderr)
            return MISTAKE
        with Progress(planned, slots=slots, console=console) as progress:

            def on_event(event: Event) -> None:
                progress.on_event(event)
                mirror.note(event)

            summary = runner.run(selected.targets, on_event)
    if summary.was_interrupted:
        raise KeyboardInterrupt
    run_id = mirror.finish(ok=summary.ok)
    print_failures(study, summary, console)
    if missing == 0 and mirror.written == 0:
        say(console, NOTHING_TO_DO)
    else:
        say(console, f"ran {len(summary.finished)} stages in {duration(summary.elapsed_s)}")
    incomplete = print_incomplete(study, console)
    reported = report_mirrored(study, console, mirror, run_id, whole=summary.ok)
    return DONE if summary.ok and reported and not incomplete else SOME_FAILED


def open_mirror(study: Study, console: Console) -> Mirror:
    """The study's mirror, open. Raises ValueError for a database or experiment that a person must see to first."""
    from experiments.mirror import Mirror

    mirror = Mirror(
        study.config,
        study.grid,
        study.store,
        resolved=study.resolved,
        command=study.command,
        tell=lambda line: say(console, line),
    )
    mirror.open()
    return mirror


def report_mirrored(study: Study, console: Console, mirror: Mirror, run_id: str | None, *, whole: bool) -> bool:
    """Report the study run and copy the report into it; False, with one line, while the tracking server is away.

    A report that was made of the same runs stays. `whole`: every selected cell is done and told to MLflow.
    """
    from experiments.mirror import UNREACHABLE

    try:
        if run_id is not None:
            with mirror.reporting():
                database = database_state(study.config.tracking)
                runs = mirror.digest_of_runs()
                kept = is_reported(study, runs)
                if kept:
                    show_report(study, console)
                else:
                    make_report(study, console, load_results(study, run_id))
                    if kept := mirror.attach_report():
                        note_reported(study, runs)
                if kept:
                    if whole:
                        settle(study, database=database, runs=runs)
                    return True
    except ValueError as error:  # every cell failed
        say(console, str(error))
        return False
    except UNREACHABLE as error:
        say(console, hide_passwords(" ".join(str(error).split()))[:200])
    say(console, f"done, but not in MLflow yet; once the tracking server is back: {study.again('sync')}")
    return False


def sync_study(study: Study, console: Console) -> int:
    """Write to MLflow what the store holds of the study and MLflow does not, then the report."""
    planned = plan(study.store, study.grid.targets)
    try:
        mirror = open_mirror(study, console)
    except ValueError as error:
        print(f"hope: {error}", file=sys.stderr)
        return MISTAKE
    for item in planned:
        artifact, failure = study.store.get(item.stage), study.store.failure(item.stage)
        if artifact or failure:
            mirror.note(Event(EventKind.CACHED if artifact else EventKind.FAILED, item.stage, artifact, failure))
    ok = all(item.state == State.DONE for item in planned)
    run_id = mirror.finish(ok=ok)
    if run_id is not None:
        say(console, f"{mirror.written} runs written to MLflow")
    incomplete = print_incomplete(study, console)
    reported = report_mirrored(study, console, mirror, run_id, whole=ok)
    return DONE if ok and reported and not incomplete else SOME_FAILED


def load_results(study: Study, run_id: str) -> StudyResults:
    """What MLflow holds of one study run. Raises ValueError in one line where that cannot be reported."""
    from reports.results import load_study

    return load_study(study.config.tracking, study.config.study.name, run_id=run_id)


def make_report(study: Study, console: Console, results: StudyResults) -> None:
    """Build the report of one study run, read from MLflow, and print the summary table and the report's path.

    It says what changed since the study's former run, where there is one.
    """
    from reports.render import write_report  # figures and tables: seconds of imports
    from reports.results import earlier_study

    write_report(results, study.config.report_dir, earlier=earlier_study(study.config.tracking, results))
    show_report(study, console)


def show_report(study: Study, console: Console) -> None:
    """Print the report's summary table, and where it and the runs are."""
    say(console, (study.config.report_dir / "summary.txt").read_text().rstrip())
    say(console, f"report: {study.config.report_dir / 'report.html'}")
    say(console, f"runs:   hope ui store={study.config.store}   (MLflow, experiment {study.config.study.name!r})")


def print_status(study: Study, console: Console) -> int:
    """Done, running, failed, incomplete; each failure with its cause, log and the command that runs just it."""
    planned = plan(study.store, study.grid.targets)
    found = counts(planned)
    by_fingerprint = {item.fingerprint: item for item in planned}
    done = sum(by_fingerprint[cell.stage.fingerprint].state == State.DONE for cell in study.grid.cells)
    say(
        console,
        f"study {study.config.study.name}: {done} of {len(study.grid.cells)} cells done; stages: "
        f"{found[State.DONE]} done, {found[State.LEASED]} running, {found[State.FAILED]} failed, "
        f"{found[State.MISSING]} to run",
    )
    if frames := study.store.get(study.grid.frames):
        say(console, f"data: {frames.result['quarantined_records']} of {frames.result['records']} records set apart")
    for item in planned:
        if item.state == State.LEASED:
            say(console, f"running {doing(item.stage)}")
        failure = study.store.failure(item.stage) if item.state == State.FAILED else None
        if failure:
            print_failure(study, item.stage, failure, study.again("run"), console)
    incomplete = print_incomplete(study, console)
    return SOME_FAILED if found[State.FAILED] or incomplete else DONE


def print_failures(study: Study, summary: Summary, console: Console) -> None:
    for stage, failure in summary.failed:
        print_failure(study, stage, failure, study.command, console)
    if summary.blocked:
        say(console, f"{len(summary.blocked)} stages rest on a failed one and were not run")


def print_failure(study: Study, stage: Stage, failure: Failure, command: str, console: Console) -> None:
    """The cause, the log, the config, and `command` for what this stage is needed for alone."""
    say(console, f"failed {stage.label}: {failure.error.splitlines()[0]}")
    say(console, f"  log: {study.store.root / failure.log}")
    say(console, f"  config: {json.dumps(failure.payload['config'])}")
    say(console, f"  again: {command}{only(study, stage)}")


def only(study: Study, stage: Stage) -> str:
    """The option that leaves of a study what one stage is needed for; none for a stage that several trials need."""
    cells = [cell for cell in study.grid.cells if cell.stage.fingerprint == stage.fingerprint]
    if cells:
        return f" --only {shlex.quote(cells[0].id)}"
    needed = [
        trial.name
        for trial in study.grid.trials
        if any(below.fingerprint == stage.fingerprint for below in walk(trial.stages()))
    ]
    return f" --only {shlex.quote(needed[0])}" if len(needed) == 1 else ""


def print_incomplete(study: Study, console: Console) -> bool:
    """The cells whose questions ended in errors, with the causes; whether there are any."""
    lines = incomplete_lines(study.selected.cells, study.store)
    for line in lines:
        say(console, line)
    return bool(lines)


def say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_explanation(study: Study) -> None:
    """For each stage behind the matching cells: done, or the fields in which it differs from its nearest record."""
    for item in plan(study.store, [cell.stage for cell in study.selected.cells]):
        stage = item.stage
        if item.state == State.DONE:
            print(f"done  {stage.label}")
            continue
        waits_for = [needed.label for needed in stage.inputs.values() if not study.store.has(needed)]
        if waits_for:
            print(f"runs  {stage.label}: rests on {', '.join(waits_for)}")
            continue
        nearest, differences = explain(study.store, stage)
        if nearest is None:
            print(f"runs  {stage.label}: no {stage.name} stage has run in this store")
        for difference in differences:
            print(f"runs  {stage.label}: {difference.path}: {difference.old} -> {difference.new}")
