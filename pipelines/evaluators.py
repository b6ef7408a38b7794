"""One way to open what answers a benchmark's questions, whatever its kind."""

from collections.abc import Mapping

from pipelines.asked import Asked
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.engine import Artifact
from pipelines.evaluate import Evaluator
from pipelines.evaluate_choice import ChoiceEvaluator


def open_split(
    inputs: Mapping[str, Artifact], benchmark: Asked | ChoiceBenchmark, *, split: str, chunk_tokens: int
) -> Evaluator | ChoiceEvaluator:
    """Answers the questions of one split: `.answers(context, scale, skip=...)` yields one record per question."""
    if isinstance(benchmark, ChoiceBenchmark):
        return ChoiceEvaluator(inputs, benchmark, split=split, chunk_tokens=chunk_tokens)
    return Evaluator(inputs, benchmark, split=split, chunk_tokens=chunk_tokens)
