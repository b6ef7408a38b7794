"""Where and how a training runs, and where it keeps what a restart goes on from."""

from dataclasses import dataclass

PROGRESS = "progress"


@dataclass(frozen=True)
class Placement:
    """Where and how a training runs; no part of its identity.

    `micro_batch_size`: rows of one forward of one worker, null for its whole share; gradients add up to the batch.
    `packed`: the rows of a forward stand behind each other, each looking at itself alone, in place of padded to the
    longest. Flash attention then does the rows' work and no more; SDPA masks all tokens of the forward against all.
    `checkpoint_steps`: steps between two checkpoints that a killed training goes on from, null for none.
    """

    device: str = "cpu"
    micro_batch_size: int | None = None
    packed: bool = False
    checkpoint_steps: int | None = 100
    gradient_checkpointing: bool = False
    fsdp: bool = False
    attention: str = "auto"
