"""What each `hope` command does: `prepare_NAME` checks the arguments and returns the work that is left to do.

A prepare function raises ValueError for a user's mistake and has then written nothing. Libraries are imported by the
command that needs them, so that `hope --help` is quick.
"""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Command = Callable[[], int]


def prepare_run(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.study import open_study, refuse_missing, run_study

    study = open_study(args.overrides, only=args.only)
    refuse_missing(study)
    study.store.prepare()
    return lambda: run_study(study, Console())


def prepare_rerun(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.rerun import open_rerun, rerun

    work = open_rerun(args.overrides)
    work.study.store.prepare()
    return lambda: rerun(work, Console())


def prepare_schedule_add(args: argparse.Namespace) -> Command:
    from experiments.schedule import Schedule, cron, every, make_task

    trigger = cron(args.cron) if args.cron is not None else every(args.every_s)
    task = make_task(args.name, args.overrides, crontab=args.cron, watch=args.watch)
    with Schedule(Path(task.store)) as schedule:
        job = schedule.add(trigger, task)

    def show() -> int:
        start = f"hope schedule start {shlex.quote(f'store={task.store}')}"
        print(f"{job.id}: next {job.next_run_time:%Y-%m-%d %H:%M:%S %Z}; {start} runs it")
        return 0

    return show


def prepare_schedule_list(args: argparse.Namespace) -> Command:
    from experiments.firing import read_firings
    from experiments.schedule import Schedule, Task
    from pipelines.engine import hide_passwords

    store = scheduled_store(args.overrides)

    def show() -> int:
        last = {firing.job: firing for firing in read_firings(store)}
        with Schedule(store) as schedule:
            for job in schedule.jobs():
                task = Task(**job.kwargs["task"])
                ended = f"last exit code {last[job.id].exit_code}" if job.id in last else "not run yet"
                print(f"{job.id}  next {job.next_run_time:%Y-%m-%d %H:%M:%S %Z}  {job.trigger}  {ended}")
                words = ["hope", "rerun", *map(hide_passwords, task.overrides)]
                print(f"  {task.cause}: {shlex.join(words)}")
        return 0

    return show


def prepare_schedule_remove(args: argparse.Namespace) -> Command:
    from experiments.schedule import Schedule

    with Schedule(scheduled_store(args.overrides)) as schedule:
        schedule.remove(args.name)
    return lambda: 0


def prepare_schedule_start(args: argparse.Namespace) -> Command:
    from experiments.schedule import AlreadyRunning, Schedule

    store = scheduled_store(args.overrides)

    def start() -> int:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with Schedule(store) as schedule:
                schedule.run(lambda line: print(line, flush=True), once=args.once)
        except AlreadyRunning as error:
            print(f"hope: {error}", file=sys.stderr)
            return 0 if args.once else 2  # a cron entry that meets the former one still at work is no fault
        except KeyboardInterrupt:
            return 130
        return 0

    return start


def prepare_launch(args: argparse.Namespace) -> Command:
    from experiments import launch
    from experiments.compose import load_config

    if args.job is not None:
        if args.address is None or args.overrides:
            raise ValueError("--job shows a job of the cluster at --address; give no study with it")
        client = launch.connect(args.address)
        job = launch.find_job(client, args.job)
        return lambda: launch.show(client, job, follows=args.follow)
    if (args.address is None) == (args.print is None):
        raise ValueError("give --address http://HEAD:8265, or --print with one of rayjob, cronjob, slurm")
    config, _ = load_config(args.overrides)
    if args.print is not None:
        words = launch.study_words(
            args.overrides,
            command="hope rerun" if args.rerun or args.print == "cronjob" else "hope run",
            cluster=args.print != "cronjob",
        )
        node = launch.Node(args.workers, args.cpus, args.gpus, args.memory_gib, args.image, args.claim)
        text = launch.manifest(args.print, words, config.study.name, node)

        def show_manifest() -> int:
            print(text)
            return 0

        return show_manifest
    command = f"python -m experiments {'rerun' if args.rerun else 'run'}"
    words = launch.study_words(args.overrides, command=command, cluster=True)
    job = launch.submit(args.address, words, config.study.name)

    def show() -> int:
        print(f"job {job}; hope launch --address {args.address} --job {job} --follow shows it", flush=True)
        return launch.show(launch.connect(args.address), job, follows=True) if args.follow else 0

    return show


def scheduled_store(overrides: Sequence[str]) -> Path:
    """The store named by `store=FOLDER`. Raises ValueError where it has no schedule."""
    from experiments.doctor import output_folder

    store = output_folder(overrides)
    if not (store / "schedule.db").is_file():
        raise ValueError(
            f"store {str(store)!r} has no schedule; hope schedule add NAME ..., or name its store: store=..."
        )
    return store


def prepare_plan(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.planning import plan_json, print_plan
    from experiments.study import open_study

    study = open_study(args.overrides)

    def plan() -> int:
        if args.json:
            print(plan_json(study))
        else:
            print_plan(study, Console(), cells=args.cells)
        return 0

    return plan


def prepare_explain(args: argparse.Namespace) -> Command:
    from experiments.study import open_study, print_explanation

    study = open_study(args.overrides, only=args.cell)

    def explain() -> int:
        print_explanation(study)
        return 0

    return explain


def prepare_status(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.study import open_study, print_status

    study = open_study(args.overrides)
    return lambda: print_status(study, Console())


def prepare_report(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.lookup import find_study_run
    from experiments.study import load_results, make_report, open_study

    study = open_study(args.overrides)
    results = load_results(study, find_study_run(study.config, study.grid))

    def report() -> int:
        make_report(study, Console(), results)
        return 0

    return report


def prepare_sync(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.study import open_study, sync_study

    study = open_study(args.overrides)
    if not any(study.store.has(trial.finetune) or study.store.failure(trial.finetune) for trial in study.grid.trials):
        raise ValueError(
            f"store {study.config.store} holds nothing of study {study.config.study.name!r} with these settings; run "
            "it first, or give the overrides it was run with"
        )
    study.store.prepare()
    return lambda: sync_study(study, Console())


def prepare_compare(args: argparse.Namespace) -> Command:
    from experiments.lookup import find_study_run
    from experiments.study import load_results, open_study
    from reports.compare import compare

    study = open_study(args.overrides)
    results = load_results(study, find_study_run(study.config, study.grid))
    comparison = compare(results, *args.trials)

    def show() -> int:
        print(comparison.text())
        return 0

    return show


def prepare_variants(args: argparse.Namespace) -> Command:
    from hope_core import get_variant, list_variants

    def show() -> int:
        known = [get_variant(name) for name in list_variants()]
        if args.json:
            print(json.dumps([variant.to_dict() for variant in known], indent=1))
            return 0
        rows = [("variant", "positions", "frequencies", "scaling")]
        rows += [(v.name, v.positions.kind, v.frequencies.kind, v.scaling.kind) for v in known]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return 0

    return show


def prepare_theory(args: argparse.Namespace) -> Command:
    from experiments.theory import run
    from hope_core import get_variant

    for name in args.variants:
        get_variant(name)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {str(args.out)!r} cannot be made ({error.strerror}); give a folder, or where one can be"
        ) from None

    def theory() -> int:
        run(args.variants, args.out)
        return 0

    return theory


def prepare_ui(args: argparse.Namespace) -> Command:
    from experiments.doctor import output_folder, serve_ui
    from experiments.lookup import readable
    from reports.dashboard import comparison_addresses

    store = output_folder(args.overrides)
    if not (store / "mlflow.db").is_file():
        raise ValueError(
            f"store {str(store)!r} has no mlflow.db; run a study first, or name its store: hope ui store=..."
        )
    database, server = f"sqlite:///{(store / 'mlflow.db').resolve()}", f"http://127.0.0.1:{args.port}"
    with readable(database):
        addresses = comparison_addresses(database, server)
    return lambda: serve_ui(store, args.port, addresses)


def prepare_doctor(args: argparse.Namespace) -> Command:
    from experiments.doctor import output_folder, print_health

    store = output_folder(args.overrides)
    return lambda: print_health(store)
