"""The bench runner: what it measures and where it writes."""

import pytest
import torch

from tests.bench import gpu_check
from tests.bench.__main__ import replaced
from tests.bench.bench_preprocess import _busy_frames_per_s
from tests.bench.measure import best_seconds, peak_bytes


def test_a_table_takes_the_place_of_the_old_one_and_of_nothing_else() -> None:
    document = "# Title\n\n<!-- a -->\nold\n<!-- /a -->\n\n<!-- b -->\nkept\n<!-- /b -->\n"
    once = replaced(document, "a", r"new \1")
    assert once == document.replace("old", r"new \1")
    assert replaced(once, "a", "old") == document


def test_a_first_table_goes_to_the_end() -> None:
    assert replaced("# Title\n", "a", "new") == "# Title\n\n<!-- a -->\nnew\n<!-- /a -->\n"


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def one_after_the_other() -> torch.Tensor:
        first = torch.zeros(2**18)
        del first
        return torch.zeros(2**18)

    def together() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(2**18), torch.zeros(2**18)

    assert peak_bytes(one_after_the_other) == 2**20
    assert peak_bytes(together) == 2**21


def test_contestants_take_turns() -> None:
    order: list[str] = []
    best = best_seconds({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert order == ["a", "b"] * 3
    assert all(seconds > 0 for seconds in best.values())


def test_the_gpu_check_gives_a_line_for_stock_and_for_each_variant() -> None:
    table = gpu_check.report(gpu_check.TINY, torch.device("cpu")).splitlines()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("| sdpa")]
    assert [line[:2] for line in lines] == [["sdpa", name] for name in ("stock", *gpu_check.VARIANTS, gpu_check.PACKED)]
    assert all(float(line[2].replace(",", "")) > 0 for line in lines)
    assert table[-1].startswith("`auto` is sdpa. flash_attention_2 needs a CUDA device")


def test_the_gpu_check_trains_the_language_model_on_the_text_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = gpu_check.build(gpu_check.TINY, torch.device("cpu"), "sdpa")
    row = gpu_check.make_row(gpu_check.TINY, model)
    assert row["input_ids"].shape == (1, gpu_check.TINY.tokens)
    assert int((row["labels"] == -100).sum()) == 3 * 4 * 4 // 4 + 2  # the video and its marks carry no loss
    assert not any(weight.requires_grad for weight in model.model.visual.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_check_without_a_gpu_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert capsys.readouterr() == ("", "no CUDA device: not run\n")


def test_decoding_speed_counts_the_time_in_which_all_workers_are_busy() -> None:
    one = [("one", float(second), 30) for second in range(1, 11)]
    in_step = [("other", float(second), 30) for second in range(1, 11)]
    between = [("other", second + 0.5, 30) for second in range(1, 10)]
    hung = ("other", 90.0, 30)  # at its end, when the first had run out
    assert _busy_frames_per_s([*in_step, *one]) == _busy_frames_per_s([*between, hung, *one]) == 60
