import pytest

from pipelines.models import build_tokenizer
from pipelines.samples import IGNORED, batch_order, build_sample

TOKENIZER = build_tokenizer(["find red", "first blue", "3", "7"])


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def test_only_answers_carry_loss() -> None:
    turns = [("find red", "3"), ("first blue", "7")]
    sample = build_sample("a", "v", turns, grid=(2, 4, 4), merge_size=2, tokenizer=TOKENIZER, encode=encode)
    carried = [i for i, label in enumerate(sample.labels) if label != IGNORED]
    assert TOKENIZER.convert_ids_to_tokens([sample.labels[i] for i in carried]) == ["3", "7"]
    assert [sample.input_ids[i] for i in carried] == [sample.labels[i] for i in carried]


def test_a_video_stands_as_one_placeholder_per_merged_patch_between_its_marks() -> None:
    sample = build_sample("a", "v", [], grid=(2, 4, 4), merge_size=2, tokenizer=TOKENIZER, encode=encode)
    tokens = TOKENIZER.convert_ids_to_tokens(list(sample.input_ids))
    assert tokens == ["<|vision_start|>", *["<|video_pad|>"] * 8, "<|vision_end|>"]


def test_a_phrase_is_one_token_and_unknown_text_is_marked() -> None:
    assert TOKENIZER.convert_ids_to_tokens(encode("find red\n3")) == ["find red", "3"]
    assert TOKENIZER.convert_ids_to_tokens(encode("find mauve")) == ["<|unknown|>"]


def test_batches_hold_one_length_and_each_sample_at_most_once() -> None:
    lengths = {f"s{i}": 10 + i % 3 for i in range(40)}
    batches = batch_order(lengths, batch_size=4, seed=0, epoch=0)
    assert all(len({lengths[s] for s in batch}) == 1 and len(batch) == 4 for batch in batches)
    used = [s for batch in batches for s in batch]
    assert len(set(used)) == len(used)
    assert len(used) > 40 - 3 * 4


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_the_order_changes_with_seed_and_epoch_and_with_nothing_else(seed: int, epoch: int) -> None:
    lengths = {f"s{i}": 10 for i in range(40)}
    backwards = dict(reversed(lengths.items()))
    first = batch_order(lengths, batch_size=4, seed=0, epoch=0)
    assert batch_order(backwards, batch_size=4, seed=0, epoch=0) == first
    assert batch_order(lengths, batch_size=4, seed=seed, epoch=epoch) != first
