from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from tests.emulated_device import emulated_device


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """An emulated accelerator, which a training and an evaluation find when they ask where to run."""
    AcceleratorState._reset_state(True)
    with emulated_device() as device:
        PartialState(cpu=True)
        PartialState._shared_state["device"] = device
        monkeypatch.setattr("pipelines.attention.lent_device", lambda: device)
        yield device
    AcceleratorState._reset_state(True)
