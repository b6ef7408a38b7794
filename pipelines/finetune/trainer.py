"""One step of a training: a global batch, of which each worker takes its share.

B rows of a global batch, S tokens. What is hashed does not depend on the workers.
"""

import contextlib
import hashlib
import json
import resource
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from hope_core import Variant, compute_positions, draw_scales
from hope_core.modeling import vision_tokens
from pipelines.finetune.model import COMPUTE
from pipelines.finetune.recipe import Recipe
from pipelines.finetune.state import Used
from pipelines.models import RandomModel
from pipelines.pretrained import PretrainedModel
from pipelines.samples import IGNORED, Medium, Sample
from pipelines.video.budget import normalise
from pipelines.video.frames import FrameStore


class Trainer:
    """The optimiser's state, and what was really used."""

    def __init__(
        self,
        model_config: RandomModel | PretrainedModel,
        variant: Variant,
        recipe: Recipe,
        seed: int,
        *,
        model: Any,
        spread_model: Any,
        accelerator: Accelerator,
        frames: FrameStore,
        micro_batch_size: int | None,
        fsdp: bool,
    ) -> None:
        self.variant, self.recipe, self.seed = variant, recipe, seed
        self.model, self.spread_model, self.accelerator, self.frames = model, spread_model, accelerator, frames
        self.micro_batch_size, self.fsdp = micro_batch_size, fsdp
        self.tokens = vision_tokens(model.config)
        self.merge_size = model.config.vision_config.spatial_merge_size
        self.mean, self.std = model_config.normalisation
        self.used = Used()
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=recipe.lr,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
        )

    def step(self, step: int, epoch: int, batch: Sequence[Sample], lr: float) -> dict[str, float]:
        """One optimiser step on a global batch; the loss is the mean over the answers' tokens of the whole batch."""
        start = time.perf_counter()
        accelerator = self.accelerator
        positions = self._positions(batch, epoch)
        share = len(batch) // accelerator.num_processes
        own = range(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        size = self.micro_batch_size or share
        pieces = [own[first : first + size] for first in range(0, share, size)]
        answers = sum(_num_answers(sample) for sample in batch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        torch.manual_seed((self.seed * 1_000_003 + step) * 4096 + accelerator.process_index)  # dropout, if any
        found = torch.zeros(2, device=accelerator.device)
        for number, piece in enumerate(pieces):
            with self._sync(last=number == len(pieces) - 1):
                logits, labels = self._forward([batch[i] for i in piece], positions[:, piece.start : piece.stop])
                loss, accuracy = answer_loss(logits, labels)
                weight = sum(_num_answers(batch[i]) for i in piece) / answers
                found += torch.stack([loss.detach(), accuracy]) * weight
                # Workers' gradients are averaged, so each counts as many times as there are workers.
                accelerator.backward(loss * (weight * accelerator.num_processes))
        total_loss, total_accuracy = accelerator.reduce(found, "sum").tolist()
        if not np.isfinite(total_loss):
            raise FloatingPointError(
                f"the loss is {total_loss} at step {step}; lower recipe.lr or look at the positions"
            )
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, self.recipe.max_grad_norm)
        self.optimizer.step()
        tokens = sum(len(sample.input_ids) for sample in batch)
        return {
            "loss": total_loss,
            "accuracy": total_accuracy,
            "lr": lr,
            "tokens_per_s": tokens / (time.perf_counter() - start),
            "peak_memory_gib": _peak_memory_gib(accelerator.device),
        }

    def _positions(self, batch: Sequence[Sample], epoch: int) -> Tensor:
        """float32 (3, B, S) of the whole batch, and a note of what was used: every worker notes the same."""
        lengths = torch.tensor([len(sample.input_ids) for sample in batch])
        media = [medium for sample in batch for medium in sample.media]
        scales = [
            scale
            for sample in batch
            for scale in draw_scales(self.variant, len(sample.media), seed=self.seed, epoch=epoch, sample_id=sample.id)
        ]
        ids = _padded([sample.input_ids for sample in batch], 0)
        positions = compute_positions(
            self.variant,
            ids,
            tokens=self.tokens,
            image_grid_thw=_grid(media, "image"),
            video_grid_thw=_grid(media, "video"),
            attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            spatial_merge_size=self.merge_size,
            seconds_per_frame=[medium.seconds_per_cell for medium in media],
            scales=scales if self.variant.scalable else None,
        )
        rows = [positions.position_ids[:, row, :length] for row, length in enumerate(lengths.tolist())]
        scale_counts = Counter(dict(self.used.scales))
        scale_counts.update(positions.scales)
        self.used = Used(
            _chained(self.used.samples_sha256, json.dumps([sample.id for sample in batch]).encode()),
            _chained(self.used.position_ids_sha256, *(row.contiguous().numpy().tobytes() for row in rows)),
            tuple(sorted(scale_counts.items())),
        )
        return positions.position_ids

    def _sync(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Workers exchange gradients at the last piece of a batch only."""
        if self.accelerator.num_processes > 1 and self.fsdp:
            self.spread_model.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.spread_model)

    def _forward(self, rows: Sequence[Sample], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (rows, C, V) and labels (rows, C) of the C columns in which a row has an answer's token.

        Rows are padded at the right, where no token looks. All S logits over a real vocabulary would be gigabytes.
        """
        device, length = self.accelerator.device, max(len(sample.input_ids) for sample in rows)
        labels = _padded([sample.labels for sample in rows], IGNORED)[:, 1:]
        columns = (labels != IGNORED).any(0).nonzero().squeeze(1)
        media = [medium for sample in rows for medium in sample.media]
        ids = _padded([sample.input_ids for sample in rows], 0)
        visual = {}
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            grid = _grid(media, kind)
            if grid is not None:
                patches = [self.frames.rows(medium.id) for medium in media if medium.kind == kind]
                values = [torch.from_numpy(normalise(rows_of_one, self.mean, self.std)) for rows_of_one in patches]
                visual[name] = torch.cat(values).to(device)
                visual[f"{kind}_grid_thw"] = grid.to(device)
        kinds = (ids == self.tokens.image).int() + 2 * (ids == self.tokens.video).int()
        half = self.recipe.precision == "bf16"
        with torch.autocast(device.type, dtype=COMPUTE[self.recipe.precision], enabled=half):
            logits = self.spread_model(
                input_ids=ids.to(device),
                **visual,
                mm_token_type_ids=kinds.to(device),
                position_ids=positions[:, :, :length].to(device),
                use_cache=False,
                logits_to_keep=columns.to(device),
            ).logits
        return logits, labels[:, columns].to(device)


def answer_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy and share of right argmax over the answers' tokens.

    logits (B, C, V), each to predict the label (B, C) in its place.
    """
    answered = labels != IGNORED
    predicted, wanted = logits[answered], labels[answered]
    loss = functional.cross_entropy(predicted.float(), wanted)
    return loss, (predicted.argmax(-1) == wanted).float().mean()


def _grid(media: Sequence[Medium], kind: str) -> Tensor | None:
    """(T, H, W) of the media of one kind, (media, 3); None where there are none."""
    grids = [medium.grid for medium in media if medium.kind == kind]
    return torch.tensor(grids) if grids else None


def _num_answers(sample: Sample) -> int:
    """Tokens with loss: the first token of a row is predicted from nothing."""
    return sum(label != IGNORED for label in sample.labels[1:])


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


def _chained(before: str, *content: bytes) -> str:
    """The sha256 of a sequence that can be continued after a restart, which a running hash cannot."""
    digest = hashlib.sha256(before.encode())
    for part in content:
        digest.update(part)
    return digest.hexdigest()


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
