"""The bench runner: what it measures and where it writes."""

import torch

from tests.bench.__main__ import replaced
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
