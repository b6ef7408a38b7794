"""The rows of one forward as a model takes them: padded to the longest, or one behind the other.

R rows, S tokens of the longest, P tokens of all. Positions and loss of a row are the same in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.samples import IGNORED, Sample


@dataclass(frozen=True)
class Batch:
    """A forward's tokens.

    input_ids and labels (R, S), or (1, P) packed; a label is of the token that its column predicts. position_ids
    (3, R, S), or (4, 1, P) with the text row first.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor


def padded(rows: Sequence[Sample], positions: Tensor) -> Batch:
    """Rows below each other, padded at the right, where no token looks; positions (3, R, at least S)."""
    input_ids = padded_ids(rows)
    labels = torch.full_like(input_ids, IGNORED)
    for row, sample in enumerate(rows):
        labels[row, : len(sample.labels)] = _predicted(sample)
    return Batch(input_ids, labels, positions[:, :, : input_ids.shape[1]])


def packed(rows: Sequence[Sample], positions: Tensor) -> Batch:
    """Rows behind each other, none padded; positions (3, R, at least S).

    The text row numbers each row's tokens from 0. transformers finds the rows by it, and lets no token look into
    another: it must stay integral where a variant's own positions are fractions.
    """
    lengths = [len(sample.input_ids) for sample in rows]
    text = torch.cat([torch.arange(length) for length in lengths])
    own = torch.cat([positions[:, row, :length] for row, length in enumerate(lengths)], dim=1)
    return Batch(
        torch.tensor([[token for sample in rows for token in sample.input_ids]]),
        torch.cat([_predicted(sample) for sample in rows])[None],
        torch.cat((text[None].to(own.dtype), own))[:, None],
    )


def padded_ids(rows: Sequence[Sample]) -> Tensor:
    """(R, S), zeros at the right."""
    length = max(len(sample.input_ids) for sample in rows)
    return torch.tensor([[*sample.input_ids, *[0] * (length - len(sample.input_ids))] for sample in rows])


def _predicted(sample: Sample) -> Tensor:
    """The label of each token's successor: the last one has none, and the first is predicted from nothing."""
    return torch.tensor([*sample.labels[1:], IGNORED])
