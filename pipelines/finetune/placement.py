"""Where and how a training runs, and where it keeps what a restart goes on from."""

from dataclasses import dataclass

PROGRESS = "progress"


@dataclass(frozen=True)
class Placement:
    """Where and how a training runs; no part of its identity.

    `micro_batch_size`: rows of one forward of one worker, null for its whole share; gradients add up to the batch.
    `checkpoint_steps`: steps between two checkpoints that a killed training goes on from, null for none.
    """

    device: str = "cpu"
    micro_batch_size: int | None = None
    checkpoint_steps: int | None = 100
    gradient_checkpointing: bool = False
    fsdp: bool = False
    attention: str = "auto"
