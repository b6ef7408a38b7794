import pytest
from transformers import PreTrainedTokenizerBase

from pipelines.datasets import Turn
from pipelines.models import build_tokenizer
from pipelines.samples import (
    IGNORED,
    BadSample,
    Medium,
    RowLayout,
    Sample,
    batch_order,
    build_sample,
    conversation,
    default_system,
)
from tests.pipelines.tiny_checkpoint import chat_tokenizer

WORDS = build_tokenizer(["find red", "first blue", "3", "7"])
CHAT = chat_tokenizer()
VIDEO = Medium("video", "v", (2, 4, 4), seconds_per_cell=1.0)  # 8 tokens
PICTURE = Medium("image", "p", (1, 4, 4), seconds_per_cell=1.0)  # 4 tokens
ONE_VIDEO = (Turn("user", "<video>\nfind red"), Turn("assistant", "3"))
PICTURES = (
    Turn("user", "<image>\nWhat is it?"),
    Turn("assistant", "A cup."),
    Turn("user", "And <image> this?"),
    Turn("assistant", "A dog."),
)


def sample(
    turns: tuple[Turn, ...],
    media: list[Medium],
    tokenizer: PreTrainedTokenizerBase = CHAT,
    *,
    cutoff_len: int | None = None,
    timestamps: bool = False,
) -> Sample:
    layout = RowLayout(tokenizer, merge_size=2, timestamps=timestamps)
    pieces = conversation(turns, media, chat=tokenizer is CHAT, system=default_system(timestamps=timestamps))
    return build_sample("a", pieces, layout, encode=lambda text: encode(tokenizer, text), cutoff_len=cutoff_len)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def learned(row: Sample) -> str:
    return CHAT.decode([token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED])


def test_only_the_answers_of_a_conversation_carry_loss() -> None:
    turns = (*ONE_VIDEO, Turn("user", "first blue"), Turn("assistant", "7"))
    row = sample(turns, [VIDEO], WORDS)
    texts = [encode(WORDS, text)[0] for text in ("find red", "3", "first blue", "7")]
    assert row.input_ids[10:] == tuple(texts)
    assert row.labels == (*[IGNORED] * 11, texts[1], IGNORED, texts[3])


def test_a_video_stands_as_its_merged_tokens_between_two_marks() -> None:
    start, video, end = WORDS.convert_tokens_to_ids(["<|vision_start|>", "<|video_pad|>", "<|vision_end|>"])
    assert sample(ONE_VIDEO, [VIDEO], WORDS).input_ids[:10] == (start, *[video] * 8, end)


def test_a_chat_row_is_the_models_own_template_with_its_media_in_place() -> None:
    row = sample(PICTURES, [PICTURE, PICTURE])
    picture = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
    assert CHAT.decode(row.input_ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{picture}\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cup.<|im_end|>\n"
        f"<|im_start|>user\nAnd {picture} this?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
    )
    assert learned(row) == "A cup.<|im_end|>A dog.<|im_end|>"
    assert row.media == (PICTURE, PICTURE)


def test_a_row_begins_as_the_prompt_of_inference_does() -> None:
    prompt = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    row = sample((Turn("system", "Be brief."), Turn("user", "How are you?"), Turn("assistant", "Fine.")), [])
    ids = encode(CHAT, f"<|im_start|>system\nBe brief.<|im_end|>\n{prompt}")
    assert row.input_ids[: len(ids)] == tuple(ids)
    assert set(row.labels[: len(ids)]) == {IGNORED}


def test_a_cut_falls_before_the_medium_that_it_would_go_through_and_never_inside() -> None:
    whole = sample(PICTURES, [PICTURE, PICTURE])
    marks = [i for i, token in enumerate(whole.input_ids) if token == CHAT.convert_tokens_to_ids("<|vision_start|>")]
    lengths = set()
    for cutoff in range(marks[1] - 2, len(whole.input_ids) + 1):
        row = sample(PICTURES, [PICTURE, PICTURE], cutoff_len=cutoff)
        lengths.add(len(row.input_ids))
        assert row.input_ids == whole.input_ids[: len(row.input_ids)]
        assert len(row.input_ids) == (marks[1] if marks[1] < cutoff < marks[1] + 6 else cutoff)
        assert len(row.media) == 1 + (cutoff >= marks[1] + 6)
    assert marks[1] in lengths


def test_a_row_whose_answer_or_video_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(BadSample, match=r"cutoff_len 12 leaves no answer of \d+ tokens \(largest medium 10\)"):
        sample(ONE_VIDEO, [VIDEO], cutoff_len=12)


def test_a_row_whose_only_answer_is_its_first_token_is_refused_as_nothing_predicts_it() -> None:
    turns = (Turn("user", ""), Turn("assistant", "3"))
    for rest in ((), (Turn("user", "find red"),)):
        with pytest.raises(BadSample, match="it has no answer behind its first token"):
            sample((*turns, *rest), [], WORDS)
    with pytest.raises(BadSample, match="cutoff_len 2 leaves no answer of 3 tokens"):
        sample((*turns, Turn("user", "find red"), Turn("assistant", "7")), [], WORDS, cutoff_len=2)


def test_text_cannot_pass_for_a_video() -> None:
    with pytest.raises(BadSample, match="holds a special token"):
        sample((Turn("user", "see <|video_pad|>"), Turn("assistant", "no")), [])


def test_qwen3_vl_reads_each_cell_after_its_time_and_no_system_turn_of_its_template() -> None:
    text = CHAT.decode(sample(ONE_VIDEO, [VIDEO], timestamps=True).input_ids)
    cell = "<|vision_start|>" + 4 * "<|video_pad|>" + "<|vision_end|>"
    assert text.startswith(f"<|im_start|>user\n<0.2 seconds>{cell}<1.2 seconds>{cell}\nfind red")


def test_a_batch_has_rows_of_one_length_and_no_row_twice() -> None:
    lengths = {f"s{i:02d}": 10 + i % 3 for i in range(40)}
    batches = batch_order(lengths, batch_size=4, seed=0, epoch=0, equal_lengths=True)
    assert {len(batch) for batch in batches} == {4}
    assert all(len({lengths[sample_id] for sample_id in batch}) == 1 for batch in batches)
    used = [sample_id for batch in batches for sample_id in batch]
    assert len(used) == len(set(used)) == 36  # 14, 13 and 13 rows: three full batches of each length


def test_batches_of_any_length_leave_out_less_than_a_batch() -> None:
    lengths = {f"s{i:02d}": i for i in range(42)}
    batches = batch_order(lengths, batch_size=4, seed=0, epoch=0, equal_lengths=False)
    used = [sample_id for batch in batches for sample_id in batch]
    assert len(used) == len(set(used)) == 40


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_the_order_depends_on_seed_and_epoch_only(seed: int, epoch: int) -> None:
    lengths = {f"s{i}": 10 for i in range(32)}
    backwards = dict(reversed(lengths.items()))
    first = batch_order(lengths, batch_size=4, seed=0, epoch=0, equal_lengths=True)
    assert batch_order(backwards, batch_size=4, seed=0, epoch=0, equal_lengths=True) == first
    assert batch_order(lengths, batch_size=4, seed=seed, epoch=epoch, equal_lengths=True) != first
