"""Ratios on a shared machine: contestants take turns, and each counts with its best round."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of a table. `target` says what the figure should be."""

    what: str
    ours: str
    against: str
    ratio: float | None = None
    target: str = ""


def best_seconds(contestants: dict[str, Work], *, rounds: int = 15) -> dict[str, float]:
    """The fastest of `rounds` turns of each, after one turn to warm up."""
    best = dict.fromkeys(contestants, float("inf"))
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def peak_bytes(work: Work) -> int:
    """The most memory that torch held at once for this work on the CPU, over what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = work()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    del kept
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def time_row(what: str, ours: Work, against: Work, *, target: str, rounds: int = 15) -> Row:
    best = best_seconds({"ours": ours, "against": against}, rounds=rounds)
    return Row(
        what, f"{best['ours'] * 1e3:.2f} ms", f"{best['against'] * 1e3:.2f} ms", best["ours"] / best["against"], target
    )


def memory_row(what: str, ours: Work, against: Work, *, target: str) -> Row:
    own, other = peak_bytes(ours), peak_bytes(against)
    return Row(what, f"{own / 2**20:.1f} MiB", f"{other / 2**20:.1f} MiB", own / other, target)


def one_thread() -> None:
    torch.set_num_threads(1)
