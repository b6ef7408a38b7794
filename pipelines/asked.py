"""What an evaluation asks: a needle benchmark, with its records where they come from a folder, as composed videos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.benchmarks import needles, niah, ruler
from pipelines.benchmarks.folder import SOURCE, FolderRecord
from pipelines.benchmarks.needles import FILM_PREFIX, NeedleBenchmark, read_needles, split_films
from pipelines.benchmarks.niah import NiahBenchmark
from pipelines.benchmarks.ruler import NOISE, RulerBenchmark
from pipelines.benchmarks.videos import NeedleVideo
from pipelines.features import Features
from pipelines.models import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FolderQuestions:
    """A benchmark without the place of its folder, and the records read from it."""

    benchmark: NiahBenchmark | RulerBenchmark
    records: tuple[FolderRecord, ...]

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def num_videos_per_context(self) -> int:
        return len(self.benchmark.depths) * max(1, len(self.records))


Asked = NeedleBenchmark | FolderQuestions


def read_folder(benchmark: NiahBenchmark | RulerBenchmark, *, absent: bool = False) -> FolderQuestions:
    """Read a folder benchmark's records; none of an absent folder, which can be planned and not run.

    Raises ValueError in one line where they cannot be used.
    """
    records: tuple[FolderRecord, ...] = ()
    if not absent:
        if isinstance(benchmark, NiahBenchmark):
            records = niah.read_records(benchmark)
        else:
            records = ruler.read_records(benchmark)
    return FolderQuestions(replace(benchmark, root=""), records)


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
            benchmark: NeedleBenchmark | NiahBenchmark | RulerBenchmark = asked
            lengths = features.lengths(FILM_PREFIX)
        else:
            benchmark = asked.benchmark
            lengths = features.lengths(f"{SOURCE}/{benchmark.films}/")
            own = [record.video for record in asked.records if record.video]
            if own:
                lengths = {video: lengths.get(video) for video in own}
        self._films = split_films(lengths, asked.name, benchmark.num_validation_films, split)

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
        benchmark = asked.benchmark
        if isinstance(benchmark, NiahBenchmark):
            return niah.compose(benchmark, asked.records, films=self._films, context=context)
        video_cells = benchmark.budget.max_frames // frames_per_cell
        num_noises = max(0, context - video_cells) * self._tokens_per_cell // self._noise_tokens
        return ruler.compose(benchmark, asked.records, films=self._films, context=context, num_noises=num_noises)
