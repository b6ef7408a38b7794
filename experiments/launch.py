"""`hope launch`: the same study as a Ray job on a cluster, or a manifest that starts one."""

import asyncio
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.compose import CONF, load_config
from pipelines.engine import hide_passwords

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SOURCES = ("hope_core", "pipelines", "experiments", "reports", "conf")
MAX_PACKAGE_MIB = 10
TEMPLATES = {"rayjob": "rayjob.yaml.j2", "cronjob": "cronjob.yaml.j2", "slurm": "slurm.sh.j2"}
# KubeRay and Kubernetes put endings to these names, and have 63 characters for the whole.
LONGEST_NAMES = {"rayjob": 47, "cronjob": 52}
AUTH_MODES = ("token", "disabled")
POLL_S = 1.0
# Ray's answer while a head that has just come up has no job agent yet.
NO_AGENT = "No available agent to submit job"
AGENT_TIMEOUT_S, FIRST_WAIT_S = 120.0, 1.0


@dataclass(frozen=True)
class Node:
    """What each worker of a manifest has, and the image and the claim of the store, which Slurm needs not."""

    workers: int
    cpus: int
    gpus: int
    memory_gib: int
    image: str | None = None
    claim: str | None = None


def study_words(overrides: Sequence[str], *, command: str, cluster: bool) -> list[str]:
    """`hope run ...` as the cluster runs it. Raises ValueError for a study or a store that cannot be there."""
    config, _ = load_config(overrides)
    if any("\n" in override for override in overrides):
        raise ValueError("an override holds a line break; write it in one line")
    if not any(override.startswith("store=") for override in overrides):
        raise ValueError("no store given; add store=FOLDER, a full path on a disk that all nodes share")
    if not Path(config.store).is_absolute():
        raise ValueError(f"store {config.store!r} is no full path; give that of a folder that all nodes share")
    joins = ["cluster=address"] if cluster and not any(word.startswith("cluster=") for word in overrides) else []
    return [*command.split(), *overrides, *joins]


def submit(address: str, words: Sequence[str], name: str) -> str:
    """Send this installation's source to the cluster and start the job; its id.

    Raises ValueError where the cluster does not answer or takes no job.
    """
    client = connect(address)
    job = f"hope-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    with staged_source() as folder:

        def send() -> str:
            return client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=job,
                runtime_env={"working_dir": str(folder), "env_vars": {"RAY_USAGE_STATS_ENABLED": "0"}},
                metadata={"command": shlex.join(map(hide_passwords, words))},
            )

        try:
            return once_there_is_an_agent(send)
        except (OSError, RuntimeError) as error:  # requests has a ConnectionError of its own
            raise ValueError(f"job server {address}: {str(error).strip().splitlines()[0]}") from None


def once_there_is_an_agent(send: Callable[[], str]) -> str:
    """Call `send` again, after ever longer waits, while Ray answers that its head has no job agent yet.

    Raises what it raised last when that has gone on for AGENT_TIMEOUT_S, and whatever else it raises at once.
    """
    started, wait_s = time.monotonic(), FIRST_WAIT_S
    while True:
        try:
            return send()
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() + wait_s - started > AGENT_TIMEOUT_S:
                raise
        time.sleep(wait_s)
        wait_s *= 2


def connect(address: str) -> "JobSubmissionClient":
    """A client of the cluster's job server. Raises ValueError in one line where there is none, or no token for it.

    Ray takes the token from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. The mode is said here,
    as Ray's own default depends on what ran on this machine before.
    """
    if not re.fullmatch(r"https?://[^/]+/?", address):
        raise ValueError(f"--address is {address!r}; give the job server as http://HOST:8265")
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    if mode not in AUTH_MODES:
        raise ValueError(f"RAY_AUTH_MODE is {mode!r}; it may be {' or '.join(AUTH_MODES)}")
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if mode == "token" and not named and not (Path.home() / ".ray" / "auth_token").exists():
        raise ValueError(
            "no token for the cluster: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or RAY_AUTH_MODE=disabled for a "
            "cluster without tokens"
        )
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        client.list_jobs()  # the first request that needs the token
    except (OSError, RuntimeError, RayError) as error:
        raise ValueError(f"job server {address}: {str(error).strip().splitlines()[0]}") from None
    return client


def find_job(client: "JobSubmissionClient", job: str) -> str:
    """The job's id. Raises ValueError where the cluster has no such job."""
    if job not in (known := [found.submission_id for found in client.list_jobs()]):
        raise ValueError(f"no job {job!r} on the cluster; there are {', '.join(filter(None, known)) or 'none'}")
    return job


@contextmanager
def staged_source() -> Iterator[Path]:
    """A folder with the project's own source only. Raises ValueError when something large has got among it."""
    root = CONF.parent
    with tempfile.TemporaryDirectory(prefix="hope-launch-") as folder:
        for part in SOURCES:
            shutil.copytree(root / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        sizes = {path: path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()}
        if sum(sizes.values()) > MAX_PACKAGE_MIB * 2**20:
            largest = max(sizes, key=lambda path: sizes[path])
            raise ValueError(
                f"the source to send has {sum(sizes.values()) / 2**20:.0f} MiB, more than {MAX_PACKAGE_MIB}; the "
                f"largest file is {largest.relative_to(folder)}: move what is no source out of {root}"
            )
        yield Path(folder)


def show(client: "JobSubmissionClient", job: str, *, follows: bool) -> int:
    """Print a job's state and, if it is followed, its log until it ends; its exit code, 0 while it runs."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        info = client.get_job_info(job)
        if follows:
            asyncio.run(tail())
            while not (info := client.get_job_info(job)).status.is_terminal():
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        print(f"job {job} goes on")
        return 130
    print(f"job {job}: {info.status.value.lower()}")
    return job_exit_code(info) if info.status.is_terminal() else 0


def job_exit_code(info: Any) -> int:
    """The exit code of the study's own process; 1 for a job that ended without one."""
    if info.status == "SUCCEEDED":
        return 0
    code = info.driver_exit_code
    return code if code and code > 0 else 1


def manifest(kind: str, words: Sequence[str], name: str, node: Node) -> str:
    """A RayJob, a CronJob or a Slurm script that runs the words. Raises ValueError where something is missing."""
    if kind != "slurm" and (node.image is None or node.claim is None):
        raise ValueError(f"--print {kind} needs --image, one with HoPE Lab, and --claim, the volume claim of the store")
    for field, least in {"workers": 1, "cpus": 1, "gpus": 0, "memory_gib": 1}.items():
        if getattr(node, field) < least:
            raise ValueError(f"--{field.replace('_', '-')} is {getattr(node, field)}; give at least {least}")
    job = re.sub(r"[^a-z0-9]+", "-", f"hope-{name}".lower()).strip("-")
    if len(job) > (longest := LONGEST_NAMES.get(kind, len(job))):
        raise ValueError(
            f"the name of the {kind} would be {job}, of {len(job)} characters; it may have {longest}: give a shorter "
            "study.name"
        )
    import ray

    store = Path(next(word.removeprefix("store=") for word in reversed(words) if word.startswith("store=")))
    resources = {"cpu": str(node.cpus), "memory": f"{node.memory_gib}Gi"}
    templates = Environment(loader=FileSystemLoader(CONF / "cluster"), undefined=StrictUndefined, trim_blocks=True)
    templates.filters["json"] = json.dumps  # JSON is YAML; jinja's own filter escapes quotes for HTML
    return templates.get_template(TEMPLATES[kind]).render(
        vars(node),
        name=job,
        command=shlex.join(words),
        words=list(words),
        mount=str(store if len(store.parts) == 2 else store.parent),
        ray_version=ray.__version__,
        worker_resources=resources | ({"nvidia.com/gpu": str(node.gpus)} if node.gpus else {}),
    )
