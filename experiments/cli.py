"""The command line: `hope`, also `python -m experiments`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.commands import (
    Command,
    prepare_compare,
    prepare_doctor,
    prepare_explain,
    prepare_launch,
    prepare_plan,
    prepare_report,
    prepare_rerun,
    prepare_run,
    prepare_schedule_add,
    prepare_schedule_list,
    prepare_schedule_remove,
    prepare_schedule_start,
    prepare_status,
    prepare_sync,
    prepare_theory,
    prepare_ui,
    prepare_variants,
)

OVERRIDES_HELP = (
    "study=NAME and any group=choice or key=value, as in: study=quickstart recipe.steps=300; benchmark=NAME adds one"
)
EXIT_CODES = "exit codes: 0 done, 1 some cells failed or are incomplete, 2 bad config or usage, 130 interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. A user's mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes all positional arguments of a command at once; overrides may also follow its options.
    if rest and ("overrides" not in args or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    elif rest:
        args.overrides += rest
    quiet_libraries()
    try:
        run: Command = args.prepare(args)
    except ValueError as error:
        print(f"hope: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        return run()
    except KeyboardInterrupt:  # outside the part of a run that ends its stages first
        print("hope: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hope",
        description="Ablation experiments on multimodal RoPE variants for long video: plan, run, verdict.",
        epilog=examples("run study=smoke", "COMMAND --help"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str,
        help_line: str,
        prepare: Callable[[argparse.Namespace], Command],
        *lines: str,
    ) -> argparse.ArgumentParser:
        group, _, last = name.rpartition(" ")
        sub = (schedules if group else commands).add_parser(
            last,
            help=help_line,
            description=help_line[0].upper() + help_line[1:] + ".",
            epilog=examples(*(f"{name} {line}".rstrip() for line in lines)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(prepare=prepare)
        return sub

    def takes_study(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES_HELP)
        return sub

    def takes_store(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("overrides", nargs="*", metavar="store=FOLDER", help="the store of a study, default outputs")

    run = takes_study(
        command(
            "run",
            "plan a study, run what is missing, report",
            prepare_run,
            "study=quickstart",
            "study=smoke store=/data/hope tracking_uri=http://127.0.0.1:5000",
            "study=quickstart study.seeds=[0] recipe.steps=300",
            "study=quickstart --only 'hope-s0*'",
        )
    )
    run.add_argument("--only", metavar="PATTERN", help="run only the trials or cells whose id matches, * for anything")
    takes_study(
        command(
            "rerun",
            "evaluate existing checkpoints on new or changed benchmarks; trains nothing",
            prepare_rerun,
            "study=quickstart benchmark=v_niah",
            "study=quickstart",
        )
    )
    schedule = commands.add_parser(
        "schedule",
        help="re-run at cron times or when a benchmark's folder changes",
        epilog=examples("schedule add nightly --cron '0 3 * * *' study=quickstart", "schedule start"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    schedules = schedule.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = command(
        "schedule add",
        "add a re-run to the schedule of the study's store",
        prepare_schedule_add,
        "nightly --cron '0 3 * * *' study=quickstart",
        "mlvu --watch /data/mlvu study=quickstart benchmark=v_niah",
    )
    add.add_argument("name", metavar="NAME", help="letters, digits, - and _")
    when = add.add_mutually_exclusive_group(required=True)
    when.add_argument("--cron", metavar="TIMES", help="minute hour day month weekday, in this machine's time zone")
    when.add_argument("--watch", type=Path, metavar="FOLDER", help="run when a file below this folder changed")
    add.add_argument(
        "--every-s", type=float, default=60.0, metavar="S", help="seconds between looks at the folder, default 60"
    )
    takes_study(add)
    takes_store(
        command(
            "schedule list",
            "show what is scheduled, when next, how it ended last",
            prepare_schedule_list,
            "store=/data/hope",
        )
    )
    remove = command(
        "schedule remove", "take a re-run off the schedule", prepare_schedule_remove, "nightly store=/data/hope"
    )
    remove.add_argument("name", metavar="NAME")
    takes_store(remove)
    start = command(
        "schedule start",
        "run the schedule in the foreground until Ctrl-C; what was missed runs once",
        prepare_schedule_start,
        "store=/data/hope",
        "store=/data/hope --once   (for a crontab)",
    )
    start.add_argument("--once", action="store_true", help="run what is due now, and end")
    takes_store(start)
    plan = takes_study(
        command(
            "plan",
            "show the cells, what is cached, the expected cost and what differences the grid can tell",
            prepare_plan,
            "study=quickstart",
            "study=quickstart --cells",
        )
    )
    plan.add_argument("--cells", action="store_true", help="list every cell's id and state")
    plan.add_argument("--json", action="store_true", help="as JSON, with every cell")
    explain = takes_study(
        command(
            "explain",
            "say why a cell would run: the fields that differ from what is stored",
            prepare_explain,
            "study=quickstart recipe.lr=0.002 --cell hope-s0/v_niah/64/searched",
        )
    )
    explain.add_argument("--cell", required=True, metavar="ID", help="TRIAL/BENCHMARK/FRAMES/RULE, or a pattern with *")
    takes_study(
        command(
            "status",
            "show what is done, running and failed, with causes",
            prepare_status,
            "study=quickstart",
        )
    )
    takes_study(command("report", "build the report again from MLflow alone", prepare_report, "study=quickstart"))
    takes_study(
        command(
            "sync",
            "write to MLflow what the store holds and MLflow does not, then the report",
            prepare_sync,
            "study=quickstart",
        )
    )
    launch = takes_study(
        command(
            "launch",
            "run a study as a Ray job on a cluster, or print a manifest that does",
            prepare_launch,
            "--address http://HEAD:8265 --follow study=quickstart store=/shared/hope",
            "--address http://HEAD:8265 --job hope-quickstart-20260101-120000 --follow",
            "--print rayjob --image IMAGE --claim CLAIM study=quickstart store=/shared/hope",
            "--print slurm --workers 4 --gpus 8 study=quickstart store=/shared/hope",
        )
    )
    launch.add_argument("--address", metavar="URL", help="the cluster's job server, http://HEAD:8265")
    launch.add_argument("--follow", action="store_true", help="print the job's log until it ends, and exit as it did")
    launch.add_argument("--job", metavar="ID", help="show a job that was launched")
    launch.add_argument("--rerun", action="store_true", help="hope rerun instead of hope run")
    launch.add_argument("--print", choices=("rayjob", "cronjob", "slurm"), help="print a manifest instead")
    launch.add_argument("--image", help="the image of the manifest's containers, with HoPE Lab in it")
    launch.add_argument("--claim", help="the persistent volume claim that holds the store")
    launch.add_argument(
        "--workers", type=int, default=1, metavar="N", help="of a manifest: nodes that run stages, default 1"
    )
    launch.add_argument("--cpus", type=int, default=8, metavar="N", help="of each worker, default 8")
    launch.add_argument("--gpus", type=int, default=0, metavar="N", help="of each worker, default 0")
    launch.add_argument("--memory-gib", type=int, default=32, metavar="N", help="of each worker, default 32")
    compare = command(
        "compare",
        "compare two trials cell by cell, on the questions that both answered",
        prepare_compare,
        "m_rope-s0 hope-s0 study=quickstart",
    )
    compare.add_argument("trials", nargs=2, metavar="TRIAL", help="a trial's name, as in hope-s0")
    takes_study(compare)
    variants = command("variants", "list the registered variants", prepare_variants, "", "--json")
    variants.add_argument("--json", action="store_true", help="as JSON, with every part")
    theory = command(
        "theory", "tables and figures of semantic preference", prepare_theory, "m_rope videorope hope --out theory"
    )
    compared = ["m_rope", "videorope", "hope", "hope_x"]
    theory.add_argument(
        "variants", nargs="*", default=compared, metavar="VARIANT", help=f"default {' '.join(compared)}"
    )
    theory.add_argument(
        "--out", type=Path, default=Path("outputs/theory"), metavar="FOLDER", help="default outputs/theory"
    )
    ui = command(
        "ui",
        "serve the MLflow dashboard of a store on 127.0.0.1",
        prepare_ui,
        "",
        "store=/data/hope --port 5001",
    )
    takes_store(ui)
    ui.add_argument("--port", type=int, default=5000, metavar="N", help="default 5000")
    takes_store(
        command("doctor", "show what works here and what would be used", prepare_doctor, "", "store=/data/hope")
    )
    return parser


def examples(*lines: str) -> str:
    """The end of a help text."""
    return "\n".join(["examples:", *(f"  hope {line}" for line in lines), "", EXIT_CODES])


def quiet_libraries() -> None:
    """Keep progress bars and telemetry of libraries out of the way of ours."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
