"""The fine-tune stage: one trial's model, on one worker in the stage's own task or on several under Ray Train."""

from pipelines.finetune.placement import Placement
from pipelines.finetune.recipe import HeldOut, Lora, Recipe
from pipelines.finetune.stage import FinetuneIdentity, FinetunePlacement, finetune_stage

__all__ = ["FinetuneIdentity", "FinetunePlacement", "HeldOut", "Lora", "Placement", "Recipe", "finetune_stage"]
