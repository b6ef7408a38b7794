from pathlib import Path

from pipelines.engine import Resources, Stage, Store, ignore
from pipelines.engine.frontier import Frontier
from tests.pipelines.engine.toys import add, toy


def started(store: Store, stages: list[Stage]) -> Frontier:
    frontier = Frontier(store, stages, ignore)
    frontier.start()
    return frontier


def test_stages_are_taken_in_the_order_given_those_of_busy_process_groups_last(store: Store, desk: Path) -> None:
    stages = [toy(add, f"{group}{number}", desk, process_group=group) for group in "ab" for number in range(2)]
    stages.append(toy(add, "c", desk))
    frontier = started(store, stages)
    assert frontier.take(busy={"b"}) is stages[0]
    assert frontier.take(busy={"a"}) is stages[2]
    assert frontier.take(busy={"a", "b"}) is stages[4]  # any process may run it
    assert frontier.take(busy={"a", "b"}) is stages[1]  # no core idles while anything is ready
    frontier.give_back(stages[0])
    assert frontier.take() is stages[0]
    assert frontier.take() is stages[3]
    assert frontier.take() is None


def test_a_stage_that_does_not_fit_waits_and_is_named_once_for_its_size(store: Store, desk: Path) -> None:
    large = [toy(add, f"large{group}", desk, resources=Resources(num_cpus=4), process_group=group) for group in "ab"]
    small = toy(add, "small", desk, process_group="c")
    frontier = started(store, [*large, small])
    assert frontier.take(lambda needs: needs.num_cpus == 1, {"c"}) is small
    assert frontier.take(lambda needs: needs.num_cpus == 1) is None
    assert frontier.next_of_each_size() == large[:1]
