"""The shards: what a reader sees of a writer that may be killed at any byte."""

import numpy as np
import pytest

from pipelines.video.budget import FrameBudget
from pipelines.video.decode import Decoded
from pipelines.video.frames import Failure, ShardWriter, cache_folder, read_cache

DECODED = Decoded(np.zeros((4, 28, 28, 3), np.uint8), "decord 0.6.0", num_source_frames=60, source_fps=30.0)


def rows_of(value, count):
    return np.full((count, 1176), value, np.uint8)


@pytest.fixture
def writer(tmp_path):
    writer = ShardWriter(tmp_path, 1176)
    yield writer
    writer.close()


def test_what_is_appended_is_read_back_and_a_line_never_comes_before_its_rows(tmp_path, writer):
    for value in range(1, 6):
        entry = writer.append(f"video-{value}", DECODED, rows_of(value, 4 * value), (value, 2, 2))
        # Read at once, with the writer open, as after a kill at this moment.
        assert read_cache(tmp_path)[f"video-{value}"] == entry
        shard = np.load(tmp_path / f"{entry.shard}.npy", mmap_mode="r")
        assert (shard[entry.first_row : entry.first_row + 4 * value] == value).all()
        assert len(shard) == entry.first_row + 4 * value
    assert (entry.sample_fps, entry.duration_s, entry.num_frames) == (2.0, 2.0, 4)


def test_a_torn_line_and_rows_without_a_line_do_not_count(tmp_path, writer):
    entry = writer.append("video-1", DECODED, rows_of(1, 4), (1, 2, 2))
    with (tmp_path / f"{entry.shard}.npy").open("ab") as rows:
        rows.write(b"\x07" * 500)
    with (tmp_path / f"{entry.shard}.jsonl").open("a") as lines:
        lines.write('{"digest": "video-2", "sha')
    assert read_cache(tmp_path) == {"video-1": entry}
    assert (np.load(tmp_path / f"{entry.shard}.npy", mmap_mode="r")[:] == 1).all()


def test_failures_are_remembered_beside_the_frames(tmp_path, writer):
    failure = Failure("video-1", "DamagedVideo: 3 of 90 frames are sound")
    writer.append_failure(failure)
    assert read_cache(tmp_path) == {"video-1": failure}


def test_a_shard_that_was_deleted_is_decoded_again(tmp_path, writer):
    entry = writer.append("video-1", DECODED, rows_of(1, 4), (1, 2, 2))
    (tmp_path / f"{entry.shard}.npy").unlink()
    assert read_cache(tmp_path) == {}


def test_two_writers_in_one_folder_do_not_meet(tmp_path, writer):
    other = ShardWriter(tmp_path, 1176)
    first = writer.append("video-1", DECODED, rows_of(1, 4), (1, 2, 2))
    second = other.append("video-2", DECODED, rows_of(2, 4), (1, 2, 2))
    other.close()
    assert first.shard != second.shard
    assert read_cache(tmp_path).keys() == {"video-1", "video-2"}


def test_a_full_shard_is_followed_by_another(tmp_path, writer, monkeypatch):
    monkeypatch.setattr("pipelines.video.frames.SHARD_BYTES", 10_000)
    entries = [writer.append(f"video-{n}", DECODED, rows_of(n, 4), (1, 2, 2)) for n in range(6)]
    assert [entry.first_row for entry in entries] == [0, 4, 8, 0, 4, 8]
    assert len({entry.shard for entry in entries}) == 2


def test_each_budget_and_decoder_version_has_its_own_folder(tmp_path, monkeypatch):
    base = cache_folder(tmp_path, FrameBudget())
    assert base == cache_folder(tmp_path, FrameBudget())
    others = {cache_folder(tmp_path, FrameBudget(fps=1)), cache_folder(tmp_path, FrameBudget(sampler="stride"))}
    monkeypatch.setattr("pipelines.video.frames.DECODERS", "v1-decord-0.7.0-pyav-19")
    others.add(cache_folder(tmp_path, FrameBudget()))
    assert len(others - {base}) == 3
