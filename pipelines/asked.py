"""What an evaluation asks: a needle benchmark, with its records where they come from a folder, as composed videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.benchmarks import needles, niah, ruler
from pipelines.benchmarks.folder import SOURCE
from pipelines.benchmarks.needles import NeedleBenchmark, split_films
from pipelines.benchmarks.niah import NiahBenchmark, NiahRecord
from pipelines.benchmarks.ruler import NOISE, STACK, RulerBenchmark, RulerRecord
from pipelines.benchmarks.videos import NeedleVideo
from pipelines.features import FILM_PREFIX, Features, read_needles
from pipelines.models import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class NiahQuestions:
    """A benchmark without the place of its folder, and the records read from it."""

    benchmark: NiahBenchmark
    records: tuple[NiahRecord, ...]

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def num_videos_per_context(self) -> int:
        return len(self.benchmark.depths) * max(1, len(self.records))


@dataclass(frozen=True)
class RulerQuestions:
    """A benchmark without the place of its folder, and the records read from it."""

    benchmark: RulerBenchmark
    records: tuple[RulerRecord, ...]

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def num_videos_per_context(self) -> int:
        return len(self.benchmark.depths) * max(1, len(self.records))


Asked = NeedleBenchmark | NiahQuestions | RulerQuestions


def read_folder(benchmark: NiahBenchmark | RulerBenchmark, *, absent: bool = False) -> NiahQuestions | RulerQuestions:
    """Read a folder benchmark's records; none of an absent folder, which can be planned and not run.

    Raises ValueError in one line where they cannot be used.
    """
    placeless = replace(benchmark, root="")
    if isinstance(placeless, NiahBenchmark):
        assert isinstance(benchmark, NiahBenchmark)
        return NiahQuestions(placeless, () if absent else niah.read_records(benchmark))
    assert isinstance(benchmark, RulerBenchmark)
    return RulerQuestions(placeless, () if absent else ruler.read_records(benchmark))


class Videos:
    """The composed videos of one split; the features tell which films there are and how long."""

    def __init__(
        self, asked: Asked, features: Features, *, split: str, dataset: Path | None, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """dataset: the folder of the drawn data set, for its own needles."""
        self._asked = asked
        self.name = asked.name
        # The drawn benchmark starts anywhere in a film: its videos share nothing, and go through the model in batches.
        self.share_prefixes = not isinstance(asked, NeedleBenchmark)
        self._noise_tokens = len(text_ids(tokenizer, NOISE))
        self._tokens_per_cell = features.tokens_per_cell
        if isinstance(asked, NeedleBenchmark):
            assert dataset is not None
            self._needles = read_needles(dataset / "needles.json")
            self._films = _split(features.lengths(FILM_PREFIX), asked.name, asked.num_validation_films, split)
        else:
            lengths = features.lengths(f"{SOURCE}/{asked.benchmark.films}/")
            if isinstance(asked, RulerQuestions) and asked.benchmark.task == STACK:
                lengths = {record.video: lengths.get(record.video) for record in asked.records if record.video}
            self._films = _split(lengths, asked.benchmark.name, asked.benchmark.num_validation_films, split)

    def of_length(self, context: int, *, frames_per_cell: int) -> list[NeedleVideo]:
        """Every video of one context, in a fixed order. Raises ValueError where a film is too short."""
        asked = self._asked
        if isinstance(asked, NeedleBenchmark):
            return needles.compose(
                asked,
                films={name: cells for name, cells in self._films.items() if cells is not None},
                needles=self._needles,
                context_frames=context,
                frames_per_cell=frames_per_cell,
            )
        if isinstance(asked, NiahQuestions):
            return niah.compose(asked.benchmark, asked.records, films=self._films, context=context)
        video_cells = asked.benchmark.budget.max_frames // frames_per_cell
        num_noises = max(0, context - video_cells) * self._tokens_per_cell // self._noise_tokens
        return ruler.compose(asked.benchmark, asked.records, films=self._films, context=context, num_noises=num_noises)


def _split(
    films: Mapping[str, int | None], name: str, num_validation_films: int, split: str
) -> Mapping[str, int | None]:
    if num_validation_films == 0 and split == "test":
        return films
    return split_films(films, name, num_validation_films, split)
