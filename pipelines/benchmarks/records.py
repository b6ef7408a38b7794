"""Reading a multiple-choice benchmark's folder: its questions, as they are asked, and which of them are for validation.

A record that is no usable question is kept as one with its error, so that results count it.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Any

from pipelines.benchmarks.choice import ChoiceBenchmark, Fields
from pipelines.benchmarks.scoring import LETTERS
from pipelines.benchmarks.source import ABSENT, annotation_files, digest, read_rows
from pipelines.datasets import BadRecord, check_whole, unique_names

VALIDATION, TEST = "validation", "test"
INLINE_OPTION = re.compile(r"^\s*\(?([A-J])[).:]\s*(\S.*?)\s*$", re.MULTILINE)
# Braces of a template that are text, such as {"answer": "A"}, unless a field is called so.
NO_NAME = re.compile(r"[\"':,]|^\W+$")


@dataclass(frozen=True)
class ChoiceQuestion:
    """One question as the model is asked; `answer` is a letter. `error` says why it cannot be asked at all."""

    id: str
    video: str
    kind: str
    prompt: str
    options: tuple[str, ...]
    answer: str
    groups: Mapping[str, str]
    split: str
    error: str | None = None


@dataclass(frozen=True)
class Option:
    """A place among a record's options: how an answer may name it, and its text; None where the record has none."""

    index: int
    letter: str
    text: str | None


@dataclass(frozen=True)
class Survey:
    """What a benchmark's folder holds; `digest` is ABSENT where it has no annotation. Chance is of the test part."""

    digest: str
    questions: tuple[ChoiceQuestion, ...]
    dropped: int

    @property
    def chance(self) -> float | None:
        shares = [1 / len(q.options) for q in self.questions if q.split == TEST and q.error is None]
        return sum(shares) / len(shares) if shares else None

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({question.kind for question in self.questions}))


def survey(benchmark: ChoiceBenchmark) -> Survey:
    """Read the benchmark's annotation. A record that is no usable question becomes one with an error.

    Raises ValueError for a file that cannot be read, filters that leave nothing, a shipped split that tears a video.
    """
    root = Path(benchmark.root)
    files = annotation_files(root, benchmark.file)
    if not files:
        return Survey(ABSENT, (), 0)
    questions: list[ChoiceQuestion] = []
    shipped: dict[str, set[bool]] = {}
    name = unique_names()
    dropped = 0
    for path in files:
        for line, raw in read_rows(path):
            if isinstance(raw, Mapping) and not _kept(benchmark, raw):
                dropped += 1
                continue
            question = _question(benchmark, raw, path.stem, f"{path.stem}/{line}")
            questions.append(replace(question, id=name(question.id)))
            if benchmark.splits.field and isinstance(raw, Mapping):
                value = str(raw.get(benchmark.splits.field))
                shipped.setdefault(question.video, set()).add(value in benchmark.splits.validation)
    if not questions:
        raise ValueError(
            f"benchmarks.{benchmark.name}: {', '.join(map(str, files))} hold no question that its filters keep"
        )
    held = _validation_videos(benchmark, [question.video for question in questions], shipped)
    split = tuple(replace(q, split=VALIDATION if q.video in held else TEST) for q in questions)
    return Survey(digest(root, files, [question.video for question in split if question.video]), split, dropped)


def fill(template: str, values: Mapping[str, Any]) -> str:
    """The template with each {name} replaced; braces in the values stay. Raises BadRecord for a name not there."""

    def value(found: "re.Match[str]") -> str:
        if found[1] not in values and NO_NAME.search(found[1]):
            return found[0]
        return _value(values, found[1])

    return re.sub(r"\{([^{}\n]+)\}", value, template)


def _value(values: Mapping[str, Any], name: str) -> str:
    if values.get(name) is None:
        raise BadRecord(f"MissingField: the record has no {name!r}")
    return str(values[name])


def _kept(benchmark: ChoiceBenchmark, raw: Mapping[str, Any]) -> bool:
    return all(re.search(p, str(raw.get(field, ""))) for field, p in (benchmark.keep or {}).items()) and not any(
        re.search(p, str(raw.get(field, ""))) for field, p in (benchmark.drop or {}).items()
    )


def _question(benchmark: ChoiceBenchmark, raw: Any, file: str, place: str) -> ChoiceQuestion:
    wanted = benchmark.fields
    record: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    blank = ChoiceQuestion(
        id=str(record.get(wanted.id, place)) if wanted.id else place,
        video="",
        kind=str(record.get(wanted.kind, "")) if wanted.kind else "all",
        prompt="",
        options=(),
        answer="",
        groups={name: str(record.get(name, "")) for name in wanted.groups},
        split=TEST,
    )
    if not record:
        cause = f"not JSON: {raw.msg}" if isinstance(raw, json.JSONDecodeError) else f"a {type(raw).__name__}"
        return replace(blank, error=f"BadRecord: {cause}")
    try:
        blank = replace(blank, video=_media(fill(benchmark.media, {**record, "file": file})))
        asked = _value(record, wanted.question)
        given = _options(wanted.options, record, asked)
        options = tuple(option.text for option in given if option.text is not None)
        if len(options) < 2:
            raise BadRecord(f"NoOptions: the record has {len(options)} options; a choice needs two")
        if len(options) > len(LETTERS):
            raise BadRecord(f"TooManyOptions: the record has {len(options)} options; at most {len(LETTERS)} are read")
        lines = [
            fill(benchmark.option, {**record, "letter": letter, "text": option})
            for letter, option in zip(LETTERS, options, strict=False)
        ]
        prompt = fill(benchmark.prompt, {**record, "question": asked, "options": "\n".join(lines)})
        check_whole(prompt)
        answer = _answer(wanted, record, given)
    except BadRecord as error:
        return replace(blank, error=str(error))
    return replace(blank, prompt=prompt, options=options, answer=answer)


def _media(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise BadRecord(f"BadPath: {path!r} leads out of the benchmark's folder")
    return path


def _options(where: str | tuple[str, ...] | None, record: Mapping[str, Any], asked: str) -> list[Option]:
    if where is None:
        found = INLINE_OPTION.findall(asked)
        return [
            Option(number, letter, text)
            for number, (letter, text) in enumerate(found)
            if letter == LETTERS[number : number + 1]
        ]
    given = [record.get(name) for name in where] if isinstance(where, tuple) else record.get(where)
    if not isinstance(given, list):
        return []
    texts = {place: str(option) for place, option in enumerate(given) if option not in (None, "N/A")}
    in_place = dict(enumerate(ascii_uppercase))
    # "A. Apples": the letter is the option template's to write. Letters count those left out too, or only the others.
    for letters in (in_place, dict(zip(texts, ascii_uppercase, strict=False))):
        bare = {place: _unmarked(text, letters.get(place, "")) for place, text in texts.items()}
        if None not in bare.values():
            break
    else:
        letters, bare = in_place, dict(texts)
    return [Option(place, letters.get(place, ""), bare.get(place)) for place in range(len(given))]


def _unmarked(text: str, letter: str) -> str | None:
    """The text behind its letter, None if it does not begin with that."""
    found = re.match(rf"\(?{letter}[.):]\s*(.*)$", text, re.S) if letter else None
    return found[1] if found else None


def _answer(fields: Fields, record: Mapping[str, Any], given: Sequence[Option]) -> str:
    """The letter under which the option is asked that the record's answer names among those given."""
    value = record.get(fields.answer)
    named = [option for option in given if _names(value, fields.answer_is, option)]
    kept = [option for option in given if option.text is not None]
    asked = [letter for letter, option in zip(LETTERS, kept, strict=False) if option in named]
    if len(asked) == 1:
        return asked[0]
    if named and not asked:
        raise BadRecord(f"BadAnswer: {fields.answer} is {value!r}, an option that is null or N/A")
    raise BadRecord(f"BadAnswer: {fields.answer} is {value!r}, which is no {fields.answer_is} of {len(kept)} options")


def _names(value: Any, answer_is: str, option: Option) -> bool:
    if value is None:
        return False
    if answer_is == "letter":
        return str(value).strip().strip("().").upper() == option.letter != ""
    if answer_is == "index":
        return isinstance(value, int) and value == option.index
    text, wanted = str(value).strip(), "N/A" if option.text is None else option.text.strip()
    return wanted in (text, _unmarked(text, option.letter))


def _validation_videos(
    benchmark: ChoiceBenchmark, videos: Sequence[str], shipped: Mapping[str, set[bool]]
) -> frozenset[str]:
    splits = benchmark.splits
    if splits.field:
        torn = sorted(video for video, sides in shipped.items() if len(sides) == 2)
        if torn:
            raise ValueError(
                f"benchmarks.{benchmark.name}.splits.field {splits.field!r} puts questions of video {torn[0]} on both "
                "sides; drop it, and a seeded split by video is made"
            )
        return frozenset(video for video, sides in shipped.items() if sides == {True})
    names = sorted({video for video in videos if video}, key=lambda name: _rank(splits.seed, name))
    share = round(splits.validation_share * len(names))
    if splits.validation_share and len(names) > 1:
        share = min(max(share, 1), len(names) - 1)
    return frozenset(names[:share])


def _rank(seed: int, video: str) -> str:
    return hashlib.sha256(f"{seed}/{video}".encode()).hexdigest()


def to_lines(questions: Sequence[ChoiceQuestion]) -> Iterator[dict[str, Any]]:
    for question in questions:
        yield asdict(question)


def from_lines(text: str) -> tuple[ChoiceQuestion, ...]:
    """Questions as the questions stage wrote them, one JSON object a line."""
    lines = map(json.loads, text.splitlines())
    return tuple(ChoiceQuestion(**{**line, "options": tuple(line["options"])}) for line in lines)
