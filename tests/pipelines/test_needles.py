import pytest

from pipelines.benchmarks.needles import ORDER, Needle, compose, split_films
from pipelines.benchmarks.videos import RETRIEVAL, NeedleVideo
from tests.pipelines.world import benchmark

FILMS = {f"film/{number:03d}": 60 for number in range(5)}
NEEDLES = [
    Needle(f"needle/{marker}_{value}", marker, f"find {marker}", str(value))
    for marker in ("red", "green", "blue", "cyan", "white")
    for value in range(4)
]


BY_MEDIA = {needle.media: needle for needle in NEEDLES}


def videos(context_frames: int = 96, **settings: int) -> list[NeedleVideo]:
    chosen = benchmark(**settings)
    return compose(chosen, films=FILMS, needles=NEEDLES, context_frames=context_frames, frames_per_cell=2)


def needle_at(video: NeedleVideo, question: str) -> list[tuple[int, Needle]]:
    """The needles that the prompt's marker stands on, in time order."""
    marker = question.split()[1]
    shown = [(cell, BY_MEDIA[media]) for cell, media in sorted(video.insertions)]
    return [(cell, needle) for cell, needle in shown if needle.marker == marker]


def test_validation_and_test_films_share_none_and_cover_all() -> None:
    validation, test = (split_films(FILMS, "v_niah", 1, split) for split in ("validation", "test"))
    assert not validation.keys() & test.keys()
    assert validation | test == FILMS


def test_a_split_that_leaves_no_test_film_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_validation_films is 1 of 1 films"):
        split_films({"film/000": 60}, "v_niah", 1, "test")


@pytest.mark.parametrize("period_frames", [0, 16])
def test_the_retrieval_answer_is_the_only_needle_of_its_marker(period_frames: int) -> None:
    for video in videos(period_frames=period_frames, videos_per_depth=8):
        question = next(q for q in video.questions if q.kind == RETRIEVAL)
        ((_, needle),) = needle_at(video, question.prompt)
        assert needle.answer == question.answer


@pytest.mark.parametrize("period_frames", [0, 16])
def test_the_order_answer_is_the_first_or_last_twin_and_the_twins_differ(period_frames: int) -> None:
    words = set()
    for video in videos(period_frames=period_frames, videos_per_depth=8):
        question = next(q for q in video.questions if q.kind == ORDER)
        word = question.prompt.split()[0]
        words.add(word)
        twins = [needle.answer for _, needle in needle_at(video, question.prompt)]
        assert len(twins) == 2
        assert twins[0] != twins[1]
        assert question.answer == twins[0 if word == "first" else 1]
    assert words == {"first", "last"}


def test_both_answers_lie_at_the_depth() -> None:
    for video in videos(period_frames=0, videos_per_depth=8):
        for question in video.questions:
            cell = next(c for c, needle in needle_at(video, question.prompt) if needle.answer == question.answer)
            film_cells_before = cell - sum(place < cell for place, _ in video.insertions)
            assert film_cells_before == round(video.depth * video.num_film_cells)


def test_distractors_stand_at_whole_periods_from_the_needle() -> None:
    for video in videos(period_frames=16):
        asked = {q.prompt.split()[1] for q in video.questions}
        at_depth = round(video.depth * video.num_film_cells)
        distractors = [
            cell - sum(place < cell for place, _ in video.insertions)
            for cell, media in video.insertions
            if BY_MEDIA[media].marker not in asked
        ]
        assert len(distractors) >= video.num_film_cells // 8 - 1
        assert all((place - at_depth) % 8 == 0 and place != at_depth for place in distractors)


def test_v_niah_and_v_niah_d_ask_the_same_of_the_same_films() -> None:
    plain, distracted = videos(period_frames=0), videos(period_frames=16)
    assert [(v.film, v.start, v.questions) for v in plain] == [(v.film, v.start, v.questions) for v in distracted]


def test_every_insertion_has_a_cell_of_its_own_within_the_video() -> None:
    for video in videos():
        cells = [cell for cell, _ in video.insertions]
        assert len(set(cells)) == len(cells)
        assert 0 <= min(cells) <= max(cells) < video.num_cells


def test_a_context_longer_than_every_film_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="context 200 frames is 100 cells, but the longest film has 60"):
        videos(context_frames=200)
