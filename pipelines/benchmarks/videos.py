"""Composed videos and their questions: what every needle benchmark makes and the evaluation answers.

A *cell* is one temporal patch of the model (temporal_patch_size frames).
"""

from dataclasses import dataclass

RETRIEVAL = "retrieval"  # the kind of question that asks for one needle


@dataclass(frozen=True)
class Question:
    """One scored item: the model must answer `prompt` with `answer`.

    Scored is whether the model's first choice is every token of the answer; with `options`, which of them it names.
    """

    id: str
    kind: str
    prompt: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeedleVideo:
    """Film cells `start..start + num_film_cells`, the media of `insertions` (final cell, media id) put in between.

    `before` is the text in front of the video. `context` is in the benchmark's own unit. `depth` is None where its
    needles have no one depth.
    """

    id: str
    film: str
    start: int
    num_film_cells: int
    context: int
    depth: float | None
    insertions: tuple[tuple[int, str], ...]
    questions: tuple[Question, ...]
    before: str = ""

    @property
    def num_cells(self) -> int:
        return self.num_film_cells + len(self.insertions)

    @property
    def media(self) -> tuple[str, ...]:
        """The ids of all that is shown."""
        return (self.film, *(media for _, media in self.insertions))
