import json
import re

import pytest

from pipelines.datasets import Media, Turn, check_quarantine, read_dataset
from tests.pages import ROOT, blocks

LLAVA_VIDEO = {
    "id": "RW587",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is cut?"},
        {"from": "gpt", "value": "An apple."},
        {"from": "human", "value": "With what?"},
        {"from": "gpt", "value": "A knife."},
    ],
    "data_source": "0_30_s_academic_v0_1",
    "video": "a.mp4",
}
SHAREGPT_A = {
    "conversations": [{"from": "human", "value": "<video>Why?"}, {"from": "gpt", "value": "So."}],
    "videos": ["a.mp4"],
}
SHAREGPT_B = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image> then <video> then <image>?"},
        {"role": "assistant", "content": "Yes."},
    ],
    "images": ["x.png", "y.png"],
    "videos": ["b.mp4"],
}


@pytest.fixture
def root(tmp_path):
    for name in ("a.mp4", "b.mp4", "x.png", "y.png"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def read(root):
    def read(*records, name="train.json"):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        text = "\n".join(lines) if name.endswith("l") else "[\n" + ",\n".join(lines) + "\n]\n"
        (root / name).write_text(text)
        return read_dataset(root / name, media_root=root)

    return read


def test_llava_video_keeps_every_turn_and_its_image_mark_means_the_video(read, root):
    (record,) = read(LLAVA_VIDEO).records
    assert record.id == "RW587"
    assert record.media == (Media("video", root / "a.mp4"),)
    assert record.turns == (
        Turn("user", "<video>\nWhat is cut?"),
        Turn("assistant", "An apple."),
        Turn("user", "With what?"),
        Turn("assistant", "A knife."),
    )


def test_both_sharegpt_forms_are_read_from_one_file(read, root):
    first, second = read(SHAREGPT_A, SHAREGPT_B).records
    assert first.turns == (Turn("user", "<video>Why?"), Turn("assistant", "So."))
    assert [turn.role for turn in second.turns] == ["system", "user", "assistant"]


def test_the_records_of_the_page_on_own_data_are_all_read(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("clips/a.mp4", "b.png"):
        (tmp_path / name).touch()
    (text,) = blocks(ROOT / "docs/train-on-your-data.md", "json")
    (tmp_path / "own.jsonl").write_text(text)
    dataset = read_dataset(tmp_path / "own.jsonl", media_root=tmp_path)
    assert dataset.quarantined == ()
    assert [[turn.role for turn in record.turns] for record in dataset.records] == [
        ["user", "assistant"],
        ["system", "user", "assistant"],
        ["user", "assistant"],
    ]
    assert [item.kind for record in dataset.records for item in record.media] == ["video", "video", "image", "video"]


def test_media_come_in_the_order_of_their_placeholders(read, root):
    (record,) = read(SHAREGPT_B).records
    assert [(item.kind, item.path.name) for item in record.media] == [
        ("image", "x.png"),
        ("video", "b.mp4"),
        ("image", "y.png"),
    ]


def test_plain_lines_put_the_media_before_the_question(read):
    lines = [
        {"question": "Who?", "answer": "Me.", "video": "a.mp4"},
        {"question": "Look <image> and <image>", "answer": 2, "images": ["x.png", "y.png"]},
        {"question": "No media?", "answer": "None."},
    ]
    dataset = read(*lines, name="train.jsonl")
    assert [record.turns[0].text for record in dataset.records] == [
        "<video>\nWho?",
        "Look <image> and <image>",
        "No media?",
    ]
    assert dataset.records[1].turns[1].text == "2"
    assert [len(record.media) for record in dataset.records] == [1, 2, 0]


def test_conversations_may_stand_in_json_lines_too(read):
    as_lines = read(LLAVA_VIDEO | {"id": 1}, SHAREGPT_B | {"id": 2}, name="train.jsonl")
    assert as_lines == read(LLAVA_VIDEO | {"id": 1}, SHAREGPT_B | {"id": 2})


def test_repeated_ids_are_told_apart_and_missing_ones_are_named_by_line(read):
    dataset = read(LLAVA_VIDEO, LLAVA_VIDEO, SHAREGPT_A)
    assert [record.id for record in dataset.records] == ["RW587", "RW587#2", "line-4"]


def test_an_id_that_looks_like_a_repeated_one_names_no_other_record(read):
    ids = ["a", "a", "a#2", "a", "a#2"]
    found = [record.id for record in read(*[LLAVA_VIDEO | {"id": name} for name in ids]).records]
    assert found == ["a", "a#2", "a#2#2", "a#3", "a#2#3"]


def test_a_records_own_system_prompt_comes_first_unless_a_turn_gives_one(read):
    given = {"system": "You are a pirate."}
    first, second, third = read(SHAREGPT_A | given, SHAREGPT_B | given, SHAREGPT_A | {"system": ""}).records
    assert first.turns[0] == Turn("system", "You are a pirate.")
    assert [turn.role for turn in first.turns] == ["system", "user", "assistant"]
    assert [turn.text for turn in second.turns if turn.role == "system"] == ["Be brief."]
    assert [turn.role for turn in third.turns] == ["user", "assistant"]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_byte_order_mark_in_front_costs_no_record(read, root, name):
    read(SHAREGPT_A, SHAREGPT_B, name=name)
    (root / name).write_bytes(b"\xef\xbb\xbf" + (root / name).read_bytes())
    dataset = read_dataset(root / name, media_root=root)
    assert (len(dataset.records), dataset.quarantined) == (2, ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"video": "absent.mp4"}, "no such video: .*absent.mp4"),
        ({"video": None}, "1 <image> in the text, but 0 such files"),
        ({"video": ["a.mp4", "b.mp4"]}, "1 <video> in the text, but 2 such files"),
        ({"video": 7}, "videos are not file names: [7]"),
        ({"conversations": "hello"}, "'conversations' is not a list"),
        ({"conversations": []}, "turns do not go user, assistant, user, ..., assistant: none"),
        ({"conversations": LLAVA_VIDEO["conversations"][:3]}, "turns do not go .*: user, assistant, user"),
        ({"conversations": LLAVA_VIDEO["conversations"][1:]}, "turns do not go .*: assistant, user, assistant"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "role 'tool' is none of human, user, gpt"),
        ({"conversations": [{"from": "human"}]}, "a message needs 'from' and a string 'value'"),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "<image>"}]},
            "a placeholder stands in an answer",
        ),
        ({"video": "data:video/mp4;base64," + "A" * 9000}, "no such video: .*data:video/mp4;base64,A{50,200}$"),
        (SHAREGPT_A | {"video": None, "system": "Look \ud83d"}, r"BadText: half of a character, '\\ud83d'"),
        ({"tools": '[{"name": "search"}]'}, "'tools' are not written into prompts here"),
    ],
)
def test_an_unusable_record_is_left_out_with_its_line_and_reason(read, change, reason):
    dataset = read(SHAREGPT_A, LLAVA_VIDEO | change, SHAREGPT_B)
    assert len(dataset.records) == 2
    (bad,) = dataset.quarantined
    assert bad.line == 3
    assert bad.id == "RW587"
    assert re.search(reason.replace("[7]", r"\[7\]"), bad.reason)


@pytest.mark.parametrize("record", ["{broken", "[1]", '"text"', '{"unknown": 1}', "[" * 100_000])
def test_a_line_that_is_no_record_is_left_out(read, record):
    dataset = read(SHAREGPT_A, record, SHAREGPT_B, name="train.jsonl")
    assert len(dataset.records) == 2
    assert dataset.quarantined[0].line == 2


def test_lines_are_counted_through_records_that_span_several(root):
    text = json.dumps([SHAREGPT_A, LLAVA_VIDEO | {"video": "absent.mp4"}, SHAREGPT_B], indent=2)
    (root / "train.json").write_text(text)
    (bad,) = read_dataset(root / "train.json", media_root=root).quarantined
    lines = text.split("\n")
    assert lines[bad.line - 1].strip() == "{"
    assert "RW587" in lines[bad.line]


def test_more_than_the_limit_stops_with_one_line_that_names_the_first():
    check_quarantine("train.json", ["line 9 (a): no such video"], 100, 0.01)
    with pytest.raises(ValueError, match=r"2 of 100 are unusable, over the limit of 1.00%; first: line 9 ") as caught:
        check_quarantine("train.json", ["line 9 (a): no such video", "line 10 (b): no such video"], 100, 0.01)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "is not a JSON array of records; JSON lines need the suffix .jsonl"),
        ('[{"a": 1},\n{"a": ]', "line 2 is not JSON"),
        ("[", "line 1 is not JSON"),
        ("", "is not a JSON array"),
        ("[\n" + "[" * 100_000, "line 2 nests its brackets too deeply"),
    ],
)
def test_a_damaged_array_is_refused_with_its_line(root, text, message):
    (root / "train.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_dataset(root / "train.json", media_root=root)


def test_an_absent_file_is_refused_in_one_line(root):
    with pytest.raises(ValueError, match=r"cannot read records from .*absent\.json"):
        read_dataset(root / "absent.json", media_root=root)
