"""Rows read on kept keys and values against one full forward for each."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from hope_core import Variant, compute_positions, get_variant, list_variants, make_variant
from hope_core.modeling import install, vision_tokens
from pipelines.benchmarks.videos import NeedleVideo
from pipelines.features import Features, Span
from pipelines.prefill import Reader, cell_numbers, shown, visual_sources
from tests.hope_core.tiny import END, START, tiny_model

GRID = (2, 4)  # patches of a cell: one row of two tokens
FILM, NEEDLES = "film", ("needle/a", "needle/b")
ASKED = torch.tensor([6, 7, 8])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen2_vl")


@pytest.fixture(scope="module")
def features() -> Features:
    table = torch.randn(14, 2, 128, generator=torch.Generator().manual_seed(3))
    spans = {FILM: Span(0, 12, 1.0), "needle/a": Span(12, 1, 1.0), "needle/b": Span(13, 1, 1.0)}
    return Features(table, spans, GRID, {})


def video(frames: int, place: int, needle: str) -> NeedleVideo:
    return NeedleVideo("", FILM, 0, frames, frames, None, ((place, needle),), ())


VIDEOS = [video(frames, frames * depth // 4, needle) for frames in (8, 12) for depth in (0, 1, 2) for needle in NEEDLES]


def row(of: NeedleVideo, features: Features, asked: Tensor = ASKED) -> Tensor:
    visual = visual_sources(cell_numbers(of, features), features).flatten()
    return torch.cat([torch.tensor([3, 4, START]), visual, torch.tensor([END]), asked])[None]


@torch.no_grad()
def naive(model: Any, features: Features, sources: Tensor, of: NeedleVideo, variant: Variant) -> Tensor:
    """Logits of every token, by one full forward without a cache."""
    tokens = vision_tokens(model.config)
    ids = torch.where(sources < 0, tokens.video, sources)
    hidden = model.get_input_embeddings()(ids)
    hidden[sources < 0] = features.table.flatten(0, 1)[-1 - sources[sources < 0]]
    positions = compute_positions(
        variant,
        ids,
        tokens=tokens,
        video_grid_thw=torch.tensor([[of.num_cells, *GRID]]),
        seconds_per_frame=1.0,
    )
    states = model.model.language_model(inputs_embeds=hidden, position_ids=positions.position_ids, use_cache=False)
    return model.lm_head(states.last_hidden_state)


def in_order(features: Features) -> list[NeedleVideo]:
    return sorted(VIDEOS, key=lambda of: cell_numbers(of, features).tolist())


def reader_of(model: Any, features: Features, chunk_tokens: int = 7) -> Reader:
    return Reader(model, features.table.flatten(0, 1), scale=None, capacity=64, chunk_tokens=chunk_tokens)


def fixed(name: str) -> Variant:
    variant = get_variant(name)
    return variant.at_scale(0.75) if variant.scalable else variant


@pytest.mark.parametrize("name", list_variants())
def test_every_variant_reads_shared_rows_as_it_would_read_each_alone(model: Any, features: Features, name: str) -> None:
    install(model, fixed(name))
    reader = reader_of(model, features)
    for of in in_order(features):
        for asked in (ASKED, ASKED.flip(0)):
            sources = row(of, features, asked)
            logits = reader.logits(sources, [shown(of, features)], last=2)
            wanted = naive(model, features, sources, of, fixed(name))[:, -2:]
            torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
            assert logits.argmax(-1).tolist() == wanted.argmax(-1).tolist()


def test_each_cell_of_the_tree_of_videos_goes_through_the_model_once(model: Any, features: Features) -> None:
    install(model, fixed("hope"))
    reader = reader_of(model, features)
    for of in in_order(features):
        for asked in (ASKED, ASKED.flip(0)):
            reader.logits(row(of, features, asked), [shown(of, features)], last=2)
    tree = {
        tuple(cells[: i + 1])
        for of in VIDEOS
        for cells in [cell_numbers(of, features).tolist()]
        for i in range(of.num_cells)
    }
    assert reader.read_tokens == len(tree) * features.tokens_per_cell
    assert reader.naive_tokens == 2 * sum(of.num_cells for of in VIDEOS) * features.tokens_per_cell


def test_a_variant_whose_positions_depend_on_the_videos_length_shares_less_and_stays_right(
    model: Any, features: Features
) -> None:
    spread = make_variant(
        "spread",
        positions={"kind": "small_step", "span": 8.0},
        frequencies="one_axis",
        scaling={"kind": "fixed", "factor": 1.0},
    )
    install(model, spread)
    reader, independent = reader_of(model, features), reader_of(model, features)
    for of in in_order(features):
        sources = row(of, features)
        wanted = naive(model, features, sources, of, spread)[:, -2:]
        torch.testing.assert_close(reader.logits(sources, [shown(of, features)], last=2), wanted, rtol=1e-4, atol=1e-4)
    install(model, fixed("hope"))
    for of in in_order(features):
        independent.logits(row(of, features), [shown(of, features)], last=2)
    assert independent.read_tokens < reader.read_tokens < reader.naive_tokens


@pytest.mark.parametrize("chunk_tokens", [1, 5, 1000])
def test_the_size_of_the_chunks_changes_nothing(model: Any, features: Features, chunk_tokens: int) -> None:
    install(model, fixed("hope"))
    of = VIDEOS[-1]
    sources = row(of, features)
    logits = reader_of(model, features, chunk_tokens).logits(sources, [shown(of, features)], last=2)
    torch.testing.assert_close(logits, naive(model, features, sources, of, fixed("hope"))[:, -2:], rtol=1e-4, atol=1e-4)


def test_rows_of_several_videos_are_read_together(model: Any, features: Features) -> None:
    install(model, fixed("hope"))
    together = [of for of in VIDEOS if of.num_film_cells == 8]
    sources = torch.cat([row(of, features) for of in together])
    videos = [shown(of, features) for of in together]
    logits = reader_of(model, features).logits(sources, videos, last=2)
    for number, of in enumerate(together):
        wanted = naive(model, features, sources[number : number + 1], of, fixed("hope"))[0, -2:]
        torch.testing.assert_close(logits[number], wanted, rtol=1e-4, atol=1e-4)


def test_generation_is_the_greedy_one_of_full_forwards_and_ends_at_the_stop_token(
    model: Any, features: Features
) -> None:
    install(model, fixed("hope"))
    of, seen = VIDEOS[0], shown(VIDEOS[0], features)
    sources = row(of, features)
    made: list[int] = []
    for _ in range(4):
        whole = torch.cat([sources, torch.tensor([made], dtype=torch.long)], dim=1)
        made.append(int(naive(model, features, whole, of, fixed("hope"))[0, -1].argmax()))
    assert reader_of(model, features).generate(sources, seen, max_new_tokens=4, stops=()) == made
    assert reader_of(model, features).generate(sources, seen, max_new_tokens=4, stops=made[:1]) == []


def test_a_visual_placeholder_that_a_model_writes_is_text_to_it(model: Any, features: Features) -> None:
    install(model, fixed("hope"))
    writes_placeholders = copy.deepcopy(model)
    placeholder = vision_tokens(model.config).video
    writes_placeholders.lm_head = torch.nn.Linear(128, model.lm_head.out_features)
    torch.nn.init.zeros_(writes_placeholders.lm_head.weight)
    writes_placeholders.lm_head.bias.data[placeholder] = 9.0
    reader = reader_of(writes_placeholders, features)
    made = reader.generate(row(VIDEOS[0], features), shown(VIDEOS[0], features), max_new_tokens=3, stops=())
    assert made == [placeholder] * 3


def test_rows_that_do_not_hold_their_videos_tokens_are_refused(model: Any, features: Features) -> None:
    install(model, fixed("hope"))
    with pytest.raises(ValueError, match="video"):
        reader_of(model, features).logits(row(VIDEOS[0], features)[:, :-6], [shown(VIDEOS[0], features)], last=1)
