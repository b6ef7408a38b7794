"""What each `hope` command does: `prepare_NAME` checks the arguments and returns the work that is left to do.

A prepare function raises ValueError for a user's mistake and writes nothing. Libraries are imported by the command that
needs them, so that `hope --help` is quick.
"""

import argparse
import json
from collections.abc import Callable

Command = Callable[[argparse.Namespace], int]


def prepare_run(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.study import open_study, run_study

    study = open_study(args.overrides, only=args.only)
    return lambda _: run_study(study, Console())


def prepare_rerun(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.rerun import open_rerun, rerun

    work = open_rerun(args.overrides)
    return lambda _: rerun(work, Console())


def prepare_plan(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.study import open_study, print_plan

    study = open_study(args.overrides)

    def plan(_: argparse.Namespace) -> int:
        print_plan(study, Console())
        return 0

    return plan


def prepare_explain(args: argparse.Namespace) -> Command:
    from experiments.study import open_study, print_explanation

    study = open_study(args.overrides, only=args.cell)

    def explain(_: argparse.Namespace) -> int:
        print_explanation(study)
        return 0

    return explain


def prepare_status(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.study import open_study, print_status

    study = open_study(args.overrides)
    return lambda _: print_status(study, Console())


def prepare_report(args: argparse.Namespace) -> Command:
    from rich.console import Console

    from experiments.study import make_report, open_study
    from experiments.tracking import find_study_run

    study = open_study(args.overrides)
    run_id = find_study_run(study.config, study.grid)

    def report(_: argparse.Namespace) -> int:
        make_report(study, Console(), run_id)
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
    return lambda _: sync_study(study, Console())


def prepare_compare(args: argparse.Namespace) -> Command:
    from experiments.study import open_study
    from experiments.tracking import find_study_run
    from reports.compare import compare
    from reports.results import load_study

    study = open_study(args.overrides)
    run_id = find_study_run(study.config, study.grid)
    results = load_study(study.config.tracking, study.config.study.name, run_id=run_id)
    comparison = compare(results, *args.trials)

    def show(_: argparse.Namespace) -> int:
        print(comparison.text())
        return 0

    return show


def prepare_variants(args: argparse.Namespace) -> Command:
    from hope_core import get_variant, list_variants

    def show(_: argparse.Namespace) -> int:
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

    def theory(_: argparse.Namespace) -> int:
        run(args.variants, args.out)
        return 0

    return theory


def prepare_ui(args: argparse.Namespace) -> Command:
    from experiments.doctor import output_folder, serve_ui

    store = output_folder(args.overrides)
    if not (store / "mlflow.db").is_file():
        raise ValueError(
            f"store {str(store)!r} has no mlflow.db; run a study first, or name its store: hope ui store=..."
        )
    return lambda _: serve_ui(store, args.port)


def prepare_doctor(args: argparse.Namespace) -> Command:
    from experiments.doctor import output_folder, print_health

    store = output_folder(args.overrides)
    return lambda _: print_health(store)
