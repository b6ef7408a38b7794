"""What theory says of a study's variants, for its record and so for its report."""

import math

from experiments.config import Config
from experiments.training import cell_side
from experiments.trials import Trial
from pipelines.pretrained import PretrainedModel

# rope_theta of published checkpoints, whose config.json is not at hand where a study is only planned or mirrored.
THETA_OF = {"qwen2_vl": 1e6, "qwen2_5_vl": 1e6, "qwen3_vl": 5e6}


def preference_curve(config: Config, trial: Trial) -> dict[str, list[float]]:
    """Semantic preference of a trial's variant at distances in frames, up to 16 times the longest context.

    At the model's head size and base and the data's frame size, from cell to cell, the variant at its published scale
    (1 without one).
    """
    import torch  # here, as a study is told to MLflow once, and found there without torch, which takes two seconds

    from hope_core.theory import over_frames

    model, side = config.model, cell_side(config)
    last = 16 * max(config.study.contexts_frames) // model.temporal_patch_size
    cells = torch.unique(torch.logspace(0, math.log10(last), 60).round())
    values = over_frames(
        trial.variant,
        cells,  # what the layouts step by; theory calls them frames
        scale=trial.published_scale or 1.0,
        rows=side,
        columns=side,
        head_dim=model.head_dim,
        rope_theta=THETA_OF[model.family] if isinstance(model, PretrainedModel) else model.rope_theta,
    )
    frames = cells * model.temporal_patch_size
    return {"frames": frames.tolist(), "values": [round(value, 4) for value in values.tolist()]}
