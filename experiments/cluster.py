"""The config group `cluster`: where stages run, and how each training is spread."""

from dataclasses import dataclass

from pipelines.attention import WISHES

LEAST = {"num_cpus": 1, "num_gpus": 0, "max_retries": 0, "decode_workers": 0, "chunk_tokens": 1, "search_workers": 1}


@dataclass(frozen=True)
class TrainingConfig:
    """How each training is spread: see FinetunePlacement and its Placement. With GPUs, a worker trains on them."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    micro_batch_size: int | None
    packed: bool
    checkpoint_steps: int | None
    gradient_checkpointing: bool
    fsdp: bool
    attention: str

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker", "micro_batch_size", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"cluster.training.{name} is {value}; it must be 1 or more")
        if self.gpus_per_worker not in (0, 1):
            raise ValueError(f"cluster.training.gpus_per_worker is {self.gpus_per_worker}; allowed are 0 and 1")
        if self.fsdp and self.workers == 1:
            raise ValueError("cluster.training.fsdp shards a model over workers; set cluster.training.workers above 1")
        if self.attention not in WISHES:
            raise ValueError(f"cluster.training.attention is {self.attention!r}; allowed are {', '.join(WISHES)}")


@dataclass(frozen=True)
class ClusterConfig:
    """Where stages run; no part of any result's identity. Null means all that the machine has, or no address.

    search_workers: scales of one trial that are measured at once. search_storage: a database for Optuna's trials (an
    SQLAlchemy URL), else a journal in the search's own folder.
    """

    address: str | None
    num_cpus: int | None
    num_gpus: int | None
    max_retries: int
    decode_workers: int
    chunk_tokens: int  # of a row that an evaluation reads in one forward: bounds its memory
    decode_timeout_s: float
    training: TrainingConfig
    search_workers: int
    search_storage: str | None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"cluster.{name} is {value}; it must be {least} or more")
        if not self.decode_timeout_s > 0:
            raise ValueError(f"cluster.decode_timeout_s is {self.decode_timeout_s}; it must be above 0")
