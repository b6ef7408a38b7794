"""Which attention is chosen. What a GPU would answer is set here, as the suite runs without one."""

import dataclasses

import pytest
import torch

from pipelines import attention
from pipelines.attention import choose_attention, obstacle

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a compute capability with some flash attentions installed."""

    def gpu(capability, *installed):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        for name, kernel in list(attention.FLASH.items()):
            here = dataclasses.replace(kernel, is_installed=lambda name=name: name in installed)
            monkeypatch.setitem(attention.FLASH, name, here)

    return gpu


def test_without_a_gpu_auto_is_sdpa_and_plain_wishes_are_granted():
    assert choose_attention("auto", CPU, torch.bfloat16) == "sdpa"
    assert choose_attention("sdpa", CPU, torch.float32) == "sdpa"
    assert choose_attention("eager", CPU, torch.float32) == "eager"


@pytest.mark.parametrize(
    ("capability", "installed", "dtype", "chosen"),
    [
        ((8, 0), ["flash_attention_2"], torch.bfloat16, "flash_attention_2"),
        ((8, 0), ["flash_attention_2"], torch.float16, "flash_attention_2"),
        ((8, 0), ["flash_attention_2"], torch.float32, "sdpa"),
        ((8, 0), [], torch.bfloat16, "sdpa"),
        ((7, 5), ["flash_attention_2"], torch.bfloat16, "sdpa"),
        ((8, 9), ["flash_attention_3"], torch.bfloat16, "sdpa"),
        ((9, 0), ["flash_attention_3", "flash_attention_4"], torch.bfloat16, "flash_attention_3"),
        ((10, 0), ["flash_attention_4"], torch.bfloat16, "flash_attention_4"),
    ],
)
def test_auto_takes_flash_attention_when_gpu_dtype_and_package_allow(gpu, capability, installed, dtype, chosen):
    gpu(capability, *installed)
    assert choose_attention("auto", CUDA, dtype) == chosen


@pytest.mark.parametrize(
    ("wish", "device", "dtype", "reason"),
    [
        ("flash", CPU, torch.bfloat16, "attention is 'flash'; allowed are auto, sdpa, eager, flash_attention_2"),
        ("flash_attention_2", CPU, torch.bfloat16, "it needs a CUDA device, not cpu; use auto or sdpa"),
        ("flash_attention_2", CUDA, torch.float32, "it needs bfloat16 or float16, not float32"),
        ("flash_attention_3", CUDA, torch.bfloat16, "it needs the package flash-attn-3"),
        ("flash_attention_2", CUDA, torch.bfloat16, "it needs a GPU of compute capability 8.0, not 7.5"),
    ],
)
def test_a_wish_that_cannot_be_had_is_refused_in_one_line(gpu, wish, device, dtype, reason):
    gpu((7, 5), "flash_attention_2")
    with pytest.raises(ValueError, match=reason) as caught:
        choose_attention(wish, device, dtype)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_auto_chooses_can_be_loaded():
    from tests.hope_core.tiny import tiny_model

    chosen = choose_attention("auto", CUDA, torch.bfloat16)
    model = tiny_model("qwen2_vl").to(CUDA, torch.bfloat16)
    model.set_attn_implementation(chosen)
    assert model.config._attn_implementation == chosen
    assert (chosen == "sdpa") == all(obstacle(name, CUDA, torch.bfloat16) for name in attention.FLASH)
