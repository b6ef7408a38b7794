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

from hope_core import Positions, Variant, compute_positions, draw_scales
from hope_core.modeling import vision_tokens
from pipelines.finetune.layout import packed, padded, padded_ids
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
        packs: bool,
        fsdp: bool,
    ) -> None:
        self.variant, self.recipe, self.seed = variant, recipe, seed
        self.model, self.spread_model, self.accelerator, self.frames = model, spread_model, accelerator, frames
        self.micro_batch_size, self.fsdp = micro_batch_size, fsdp
        self.lay_out = packed if packs else padded
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
        shows = [bool(sample.media) for sample in batch]
        for number, piece in enumerate(pieces):
            with self._sync(last=number == len(pieces) - 1):
                logits, labels = self._forward([batch[i] for i in piece], positions[:, piece.start : piece.stop])
                loss, accuracy = answer_loss(logits, labels)
                weight = sum(_num_answers(batch[i]) for i in piece) / answers
                found += torch.stack([loss.detach(), accuracy]) * weight
                if self.fsdp and self.recipe.train_vision and any(shows) and not any(shows[i] for i in piece):
                    loss = loss + self._tower_without_effect()
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

    @torch.no_grad()
    def held_out_loss(self, rows: Sequence[Sample]) -> float:
        """Mean loss over the answers' tokens of rows that are not trained on; nothing in it is drawn.

        A dynamic variant is measured at the factor 1, which every published set of choices has: draws would be noise
        between two measurements, and the factor of its evaluation is chosen later. Every other one has its own.
        """
        workers, index = self.accelerator.num_processes, self.accelerator.process_index
        size = self.micro_batch_size or self.recipe.batch_size // workers
        pieces = [rows[first : first + size] for first in range(0, len(rows), size)]
        found = torch.zeros(1, device=self.accelerator.device)
        self.spread_model.eval()
        for first in range(index, index + len(pieces), workers):  # each worker as often: sharded weights are gathered
            piece = pieces[first % len(pieces)]
            scales = [self.variant.factor or 1.0 for sample in piece for _ in sample.media]
            loss, _ = answer_loss(*self._forward(piece, self._compute(piece, scales).position_ids))
            if first < len(pieces):
                found += loss * sum(map(_num_answers, piece))
        self.spread_model.train()
        if self.fsdp:
            self.spread_model.reshard()  # which only a backward does by itself
        total = self.accelerator.reduce(found, "sum").item() / sum(map(_num_answers, rows))
        if not np.isfinite(total):
            raise FloatingPointError(f"the held-out loss is {total}; lower recipe.lr or look at the positions")
        return total

    def _positions(self, batch: Sequence[Sample], epoch: int) -> Tensor:
        """float32 (3, B, S) of the whole batch, and a note of what was used: every worker notes the same."""
        scales = [
            scale
            for sample in batch
            for scale in draw_scales(self.variant, len(sample.media), seed=self.seed, epoch=epoch, sample_id=sample.id)
        ]
        positions = self._compute(batch, scales)
        rows = [positions.position_ids[:, row, : len(sample.input_ids)] for row, sample in enumerate(batch)]
        scale_counts = Counter(dict(self.used.scales))
        scale_counts.update(positions.scales)
        self.used = Used(
            _chained(self.used.samples_sha256, json.dumps([sample.id for sample in batch]).encode()),
            _chained(self.used.position_ids_sha256, *(row.contiguous().numpy().tobytes() for row in rows)),
            tuple(sorted(scale_counts.items())),
        )
        return positions.position_ids

    def _compute(self, batch: Sequence[Sample], scales: Sequence[float]) -> Positions:
        """Positions of rows padded at the right, with a factor for each of their media."""
        lengths = torch.tensor([len(sample.input_ids) for sample in batch])
        media = [medium for sample in batch for medium in sample.media]
        ids = padded_ids(batch)
        return compute_positions(
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

    def _sync(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Workers exchange gradients at the last piece of a batch only."""
        if self.accelerator.num_processes > 1 and self.fsdp:
            self.spread_model.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.spread_model)

    def _tower_without_effect(self) -> Tensor:
        """0 with gradients of zero for the trained tower: sharded ones are exchanged by all workers or by none.

        torch's own set_reduce_scatter_unused_params has no zeros of the dtype in which earlier pieces' gradients wait.
        """
        return 0 * torch.stack([parameter.sum() for parameter in self.model.model.visual.parameters()]).sum()

    def _forward(self, rows: Sequence[Sample], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C, V) and labels (B, C) of the C columns in which a row has an answer's token to predict.

        B is 1 where rows are packed. All S logits over a real vocabulary would be gigabytes.
        """
        device = self.accelerator.device
        batch = self.lay_out(rows, positions)
        ids = batch.input_ids
        columns = (batch.labels != IGNORED).any(0).nonzero().squeeze(1)
        media = [medium for sample in rows for medium in sample.media]
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
                position_ids=batch.position_ids.to(device),
                use_cache=False,
                logits_to_keep=columns.to(device),
            ).logits
        return logits, batch.labels[:, columns].to(device)


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
