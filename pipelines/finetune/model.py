"""The model of a trial: built, its variant installed, what is trained chosen, spread over the workers, and saved."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedTokenizerBase

from hope_core import Variant
from hope_core.modeling import install
from pipelines.attention import choose_attention
from pipelines.finetune.recipe import Lora, Recipe
from pipelines.models import RandomModel, build_model
from pipelines.pretrained import PREPROCESSOR, Normalisation, PretrainedModel

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_model(
    config: RandomModel | PretrainedModel,
    variant: Variant,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    attention: str,
    device: torch.device,
    gradient_checkpointing: bool,
) -> Any:
    """The model with its variant on the device, in train mode; only what the recipe trains requires gradients."""
    compute = COMPUTE[recipe.precision]
    implementation = choose_attention(attention, device, compute)
    if isinstance(config, RandomModel):
        model = build_model(config, tokenizer, seed=seed)
        model.set_attn_implementation(implementation)
    else:
        model = config.load(dtype=COMPUTE[recipe.weights_precision], attention=implementation)
    install(model, variant)
    if not recipe.train_vision:
        model.model.visual.requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if recipe.lora is not None:
        model = _with_lora(model, recipe.lora, seed)
    return model.to(device).train()


def spread(model: Any, accelerator: Accelerator, recipe: Recipe, *, fsdp: bool) -> Any:
    """The model that the loop calls: itself on one worker, else data parallel, with its weights sharded for `fsdp`.

    Torch's own fully_shard, not accelerate's plugin of it, which refuses a CPU and could not be tested without GPUs.
    """
    if accelerator.num_processes == 1 or not fsdp:
        return accelerator.prepare_model(model, device_placement=False)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    half = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if recipe.precision == "bf16" else {}
    policy = MixedPrecisionPolicy(**half, cast_forward_inputs=False)  # positions must stay float32
    inner = (model.get_base_model() if recipe.lora else model).model
    # The tower belongs to the whole model, which every forward gathers: its blocks run where a piece shows a medium,
    # once for pictures and once for videos, so workers would gather them at different times. During a step each worker
    # has the tower whole.
    for layer in inner.language_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def save_model(
    model: Any, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, normalisation: Normalisation, path: Path
) -> None:
    """Write a checkpoint that `hope_core.modeling.load` reads, adapters merged, with all that its inputs need."""
    plain = model.merge_and_unload() if recipe.lora else model
    plain.save_pretrained(path)
    tokenizer.save_pretrained(path)
    mean, std = normalisation
    (path / PREPROCESSOR).write_text(json.dumps({"image_mean": mean, "image_std": std}), encoding="utf-8")


def _with_lora(model: Any, lora: Lora, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model  # seconds to import, and most trainings need none of it

    parts = model.model.language_model.named_modules()
    known = {name.rpartition(".")[2] for name, part in parts if isinstance(part, torch.nn.Linear)}
    if unknown := set(lora.targets) - known:
        raise ValueError(
            f"recipe.lora.targets has {sorted(unknown)[0]!r}; the language model's layers have "
            f"{', '.join(sorted(known))}: name some of them"
        )
    targets = "|".join(map(re.escape, lora.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(
            model,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=rf".*language_model\..*\.({targets})",
            ),
        )
