"""Released formats read by the YAML files in conf/benchmark alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.records import TEST, VALIDATION, ChoiceQuestion, from_lines, survey, to_lines
from pipelines.benchmarks.source import ABSENT
from tests.pipelines.benchmarks.miniatures import MINIATURES, settings, write_faults

PROMPTS = Path(__file__).parent / "golden_prompts.json"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp(name) for name in MINIATURES}
    for name, root in roots.items():
        MINIATURES[name](root)
    return roots


def benchmark(name: str, root: Path, **changes: Any) -> ChoiceBenchmark:
    return TypeAdapter(ChoiceBenchmark).validate_python(settings(name, root=str(root), **changes))


@pytest.mark.parametrize("name", MINIATURES)
def test_each_released_format_is_read_whole_and_asked_as_published(name: str, folders: dict[str, Path]) -> None:
    found = survey(benchmark(name, folders[name]))
    assert [question.error for question in found.questions] == [None] * len(found.questions)
    assert all((folders[name] / question.video).is_file() for question in found.questions)
    assert found.questions[0].prompt == json.loads(PROMPTS.read_text(encoding="utf-8"))[name]
    assert from_lines("\n".join(json.dumps(line) for line in to_lines(found.questions))) == found.questions


def test_mlvu_asks_its_multiple_choice_tasks_and_leaves_generation_out(folders: dict[str, Path]) -> None:
    found = survey(benchmark("mlvu", folders["mlvu"]))
    assert found.kinds == ("count", "plotQA")
    assert (len(found.questions), found.dropped) == (16, 1)
    assert [question.answer for question in found.questions[:4]] == ["A", "B", "B", "C"]
    assert found.questions[0].video == "video/1_plotQA/plotQA_0.mp4"
    assert found.chance == 0.25


def test_longvideobench_leaves_out_questions_with_subtitles_unless_told(folders: dict[str, Path]) -> None:
    root = folders["longvideobench"]
    kept = survey(benchmark("longvideobench", root))
    assert not any("subtitle" in question.prompt for question in kept.questions)
    assert (len(kept.questions), kept.dropped) == (4, 4)
    assert len(survey(benchmark("longvideobench", root, drop=None)).questions) == 8
    assert {question.groups["duration_group"] for question in kept.questions} == {"15", "600"}


def test_both_forms_of_longvideobench_ask_the_same(folders: dict[str, Path]) -> None:
    forms = ("longvideobench", "longvideobench_lmms_eval")
    raw, lmms = (survey(benchmark(form, folders[form])).questions for form in forms)
    assert [(q.id, q.prompt, q.options, q.answer) for q in raw] == [(q.id, q.prompt, q.options, q.answer) for q in lmms]
    assert {len(question.options) for question in lmms} == {4, 5}


def test_options_inside_the_question_are_found(folders: dict[str, Path]) -> None:
    question = survey(benchmark("mlvu_lmms_eval", folders["mlvu_lmms_eval"])).questions[1]
    assert question.options == ("a red car", "a blue boat", "a green tree", "a white dog")
    assert question.answer == "B"


@pytest.mark.parametrize("name", MINIATURES)
def test_validation_and_test_share_no_video_and_the_seed_decides(name: str, folders: dict[str, Path]) -> None:
    def videos(split: str, seed: int) -> frozenset[str]:
        found = survey(benchmark(name, folders[name], splits={"validation_share": 0.5, "seed": seed}))
        return frozenset(question.video for question in found.questions if question.split == split)

    assert videos(VALIDATION, 0)
    assert videos(TEST, 0)
    assert not videos(VALIDATION, 0) & videos(TEST, 0)
    assert videos(VALIDATION, 0) == videos(VALIDATION, 0)
    assert len({videos(VALIDATION, seed) for seed in range(8)}) > 1


def test_a_shipped_split_is_used_and_one_that_tears_a_video_is_refused(folders: dict[str, Path]) -> None:
    root = folders["video_mme"]
    shipped = survey(benchmark("video_mme", root, splits={"field": "duration", "validation": ["long"]}))
    assert {(question.groups["duration"], question.split) for question in shipped.questions} == {
        ("long", VALIDATION),
        ("short", TEST),
    }
    torn = {"field": "task_type", "validation": ["Counting Problem"]}
    with pytest.raises(ValueError, match=r"puts questions of video data/yt0\.mp4 on both sides"):
        survey(benchmark("video_mme", root, splits=torn))


def test_the_digest_follows_content_and_not_the_place(folders: dict[str, Path], tmp_path: Path) -> None:
    here = folders["mlvu"]
    moved = tmp_path / "moved"
    shutil.copytree(here, moved)
    before = survey(benchmark("mlvu", here)).digest
    assert survey(benchmark("mlvu", moved)).digest == before
    (moved / "README.md").write_text("not named by a record")
    assert survey(benchmark("mlvu", moved)).digest == before

    video = moved / "video" / "1_plotQA" / "plotQA_0.mp4"
    video.write_bytes(video.read_bytes() + b"\0")
    larger = survey(benchmark("mlvu", moved)).digest
    video.unlink()
    gone = survey(benchmark("mlvu", moved)).digest
    records = moved / "json" / "4_count.json"
    records.write_text(records.read_text().replace("scene 0", "scene 9"))
    assert len({before, larger, gone, survey(benchmark("mlvu", moved)).digest}) == 4


def test_an_absent_folder_can_be_planned_and_says_what_to_do(tmp_path: Path) -> None:
    absent = benchmark("mlvu", tmp_path / "nothing")
    assert survey(absent).digest == ABSENT
    assert "set benchmarks.mlvu.root=FOLDER" in absent.absent()


def test_a_record_that_is_no_question_is_kept_with_its_cause(tmp_path: Path) -> None:
    good = {"video": "v.mp4", "question": "Which?", "candidates": ["x", "y"], "answer": "y", "question_type": "ego"}
    lines = [
        json.dumps(good),
        "not json",
        json.dumps([1]),
        json.dumps({**good, "candidates": []}),
        json.dumps({**good, "answer": "z"}),
        json.dumps({key: value for key, value in good.items() if key != "video"}),
        json.dumps({**good, "video": "../v.mp4"}),
        json.dumps({**good, "question": None}),
        json.dumps({**good, "candidates": list("abcdefghijkl"), "answer": "a"}),
        json.dumps({**good, "question": "With {braces} and {letter}?"}),
        json.dumps({**good, "question": "Cut \ud83d"}),
        "[" * 100_000,
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = survey(benchmark("mlvu", tmp_path, file="*.jsonl", keep=None)).questions
    causes = [None if question.error is None else question.error.split(":")[0] for question in found]
    assert causes == [
        None,
        "BadRecord",
        "BadRecord",
        "NoOptions",
        "BadAnswer",
        "MissingField",
        "BadPath",
        "MissingField",
        "TooManyOptions",
        None,
        "BadText",
        "BadRecord",
    ]
    assert len({question.id for question in found}) == len(found)
    assert found[9].prompt.startswith("With {braces} and {letter}?\n(A) x\n(B) y\n")


def asked_once(root: Path, record: dict[str, Any], **changes: Any) -> ChoiceQuestion:
    """The question of one record with a video, a question and options."""
    (root / "q.jsonl").write_text(json.dumps({"video": "v.mp4", "question": "Which?", **record}), encoding="utf-8")
    (question,) = survey(benchmark("mlvu", root, file="q.jsonl", keep=None, **changes)).questions
    return question


@pytest.mark.parametrize("name", ["question text", "question-text", "meta.question", "Q/A (en)", "wer?", "问题"])
def test_a_field_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    record = {
        name: "With {braces} and {my hint}?",
        "my hint": "{question}",
        "candidates": ["{x y}", "y"],
        "answer": "y",
    }
    changes = answered_by("text")
    changes["fields"]["question"] = name
    question = asked_once(tmp_path, record, **changes, prompt=f"{{question}}{{{name}}}{{my hint}}\n{{options}}")
    assert question.error is None
    asked = "With {braces} and {my hint}?"
    assert question.prompt == f"{asked}{asked}{{question}}\n(A) {{x y}}\n(B) y"


@pytest.mark.parametrize("name", ["hint", "my hint", "my-hint", "meta.hint", "Q/A (en)"])
@pytest.mark.parametrize("template", ["media", "option", "prompt"])
def test_a_field_that_the_record_lacks_is_an_error_in_every_template(tmp_path: Path, template: str, name: str) -> None:
    usual = {"media": "{video}", "option": "({letter}) {text}", "prompt": "{question}\n{options}"}
    record = {"candidates": ["x", "y"], "answer": "y"}
    filled = {template: f"{usual[template]}{{{name}}}"}
    question = asked_once(tmp_path, {**record, name: "z"}, **answered_by("text"), **filled)
    assert (question.error, (question.video + question.prompt).count("z") > 0) == (None, True)
    for lacking in ({}, {name: None}):
        question = asked_once(tmp_path, {**record, **lacking}, **answered_by("text"), **filled)
        assert question.error == f"MissingField: the record has no {name!r}"


def test_a_question_field_that_the_record_lacks_is_an_error(tmp_path: Path) -> None:
    changes = answered_by("text")
    changes["fields"]["question"] = "question text"
    question = asked_once(tmp_path, {"candidates": ["x", "y"], "answer": "y"}, **changes)
    assert question.error == "MissingField: the record has no 'question text'"


def test_braces_of_a_template_that_hold_no_name_are_text(tmp_path: Path) -> None:
    record = {"candidates": ["x", "y"], "answer": "y"}
    told = 'Say {"answer": "A"}, \\boxed{} or {A, B}.'
    question = asked_once(tmp_path, record, **answered_by("text"), prompt="{question}\n{options}\n" + told)
    assert (question.error, question.prompt) == (None, f"Which?\n(A) x\n(B) y\n{told}")


def answered_by(answer_is: str, options: Any = "candidates") -> dict[str, Any]:
    return {"fields": {"question": "question", "options": options, "answer": "answer", "answer_is": answer_is}}


GAP = ["G", "N/A", "PG", "R"]


@pytest.mark.parametrize(
    ("options", "answer_is", "answer"),
    [
        (GAP, "index", 2),
        (GAP, "letter", "C"),
        (GAP, "text", "PG"),
        ([None, "G", None, "PG", "R"], "index", 3),
        ([None, "G", None, "PG", "R"], "letter", "(d)"),
        (["A. G", "N/A", "C. PG", "D. R"], "letter", "C"),
        (["A. G", "N/A", "C. PG", "D. R"], "index", 2),
        (["A. G", "N/A", "B. PG", "C. R"], "letter", "B"),
        (["A. G", "N/A", "B. PG", "C. R"], "index", 2),
        (["G", "PG", *["N/A"] * 9, "R"], "letter", "B"),
    ],
)
def test_an_answer_counts_the_options_that_are_left_out(
    tmp_path: Path, options: list[Any], answer_is: str, answer: Any
) -> None:
    question = asked_once(tmp_path, {"candidates": options, "answer": answer}, **answered_by(answer_is))
    assert (question.error, question.options, question.answer) == (None, ("G", "PG", "R"), "B")
    assert "(A) G\n(B) PG\n(C) R\n" in question.prompt


def test_options_in_fields_of_their_own_keep_their_letters_where_one_is_missing(tmp_path: Path) -> None:
    record = {"a": "G", "b": None, "d": "PG", "e": "R", "answer": "D"}
    question = asked_once(tmp_path, record, **answered_by("letter", ["a", "b", "c", "d", "e"]))
    assert (question.error, question.options, question.answer) == (None, ("G", "PG", "R"), "B")


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["A. car", "B. boat"], "B. boat"),
        (["A. car", "B. boat"], "(B) boat "),
        (["A. car", "B. boat"], "boat"),
        (["car", "boat"], "B. boat"),
        (["A. boat", "B. boat"], "B. boat"),
        (["A. Smith", "C. Jones"], "C. Jones"),
    ],
)
def test_an_answer_by_text_may_carry_its_letter(tmp_path: Path, options: list[str], answer: str) -> None:
    question = asked_once(tmp_path, {"candidates": options, "answer": answer}, **answered_by("text"))
    assert (question.error, question.answer) == (None, "B")


def test_an_answer_whose_letter_and_text_disagree_is_an_error(tmp_path: Path) -> None:
    record = {"candidates": ["A. car", "B. boat"], "answer": "A. boat"}
    question = asked_once(tmp_path, record, **answered_by("text"))
    assert question.error == "BadAnswer: answer is 'A. boat', which is no text of 2 options"


def test_an_option_inside_the_question_stays_whatever_it_says(tmp_path: Path) -> None:
    record = {"question": "Which?\n(A) G\n(B) N/A\n(C) PG", "answer": "C"}
    question = asked_once(tmp_path, record, **answered_by("letter", None))
    assert (question.error, question.options, question.answer) == (None, ("G", "N/A", "PG"), "C")


@pytest.mark.parametrize(("answer_is", "answer"), [("index", 1), ("letter", "B"), ("text", "N/A")])
def test_an_answer_that_is_left_out_of_the_options_is_an_error(tmp_path: Path, answer_is: str, answer: Any) -> None:
    question = asked_once(tmp_path, {"candidates": GAP, "answer": answer}, **answered_by(answer_is))
    assert question.error == f"BadAnswer: answer is {answer!r}, an option that is null or N/A"


@pytest.mark.parametrize(
    ("answer_is", "answer"),
    [("index", 4), ("index", -1), ("letter", "E"), ("letter", ""), ("text", "X"), ("text", None)],
)
def test_an_answer_that_names_no_option_is_an_error(tmp_path: Path, answer_is: str, answer: Any) -> None:
    record = {"candidates": ["G", "None", "PG", "R"], "answer": answer}
    question = asked_once(tmp_path, record, **answered_by(answer_is))
    assert question.error == f"BadAnswer: answer is {answer!r}, which is no {answer_is} of 4 options"


def test_more_options_than_letters_are_refused_with_their_marks_too(tmp_path: Path) -> None:
    options = [f"{letter}. {letter.lower()}" for letter in "ABCDEFGHIJKL"]
    question = asked_once(tmp_path, {"candidates": options, "answer": "A"}, **answered_by("letter"))
    assert question.error == "TooManyOptions: the record has 12 options; at most 10 are read"


def test_questions_of_one_id_are_told_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    write_faults(tmp_path)
    records = json.loads((tmp_path / "lvb_val.json").read_text())
    (tmp_path / "lvb_val.json").write_text(json.dumps([records[0], records[0]]))
    assert [q.id for q in survey(benchmark("longvideobench", tmp_path)).questions] == ["vid0_0", "vid0_0#2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1}', "is not a JSON array"), ('[{"a": 1},', "is not JSON"), ("[]", "hold no question")],
)
def test_a_file_that_gives_nothing_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "lvb_val.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        survey(benchmark("longvideobench", tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_parquet_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"cannot read records from .*x\.parquet") as caught:
        survey(benchmark("video_mme", tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{question}"}, "does not show the options"),
        ({"contexts_tokens": []}, "contexts_tokens is"),
        ({"file": "/zoo/q.jsonl"}, r"mlvu\.file is '/zoo/q\.jsonl'; give a path or glob below benchmarks\.mlvu\.root"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"drop": {"question": "("}}, "is no pattern"),
        ({"splits": {"validation_share": 1.0}}, "validation_share is 1.0"),
        ({"splits": {"field": "part"}}, "go together"),
        ({"fields": {"question": "q", "options": "o", "answer": "a", "answer_is": "number"}}, "answer_is"),
    ],
)
def test_a_definition_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark("mlvu", tmp_path, **changes)


def test_budgets_are_those_of_the_papers() -> None:
    found = TypeAdapter(ChoiceBenchmark).validate_python({**settings("mlvu"), "budget": {}})
    budgets = [
        found.budget.at(tokens, patch_size=14, merge_size=2, temporal_patch_size=2)
        for tokens in (8000, 16000, 32000, 64000)
    ]
    assert [budget.max_frames for budget in budgets] == [56, 112, 224, 448]
    assert [budget.total_pixels for budget in budgets] == [6_272_000 * times for times in (1, 2, 4, 8)]
    assert {budget.fps for budget in budgets} == {2.0}
