"""Decoding, and what becomes of damaged files: sound frames or a named refusal, never smeared ones."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines.video.budget import FrameBudget, sample_indices
from pipelines.video.decode import (
    DamagedVideo,
    DecodeError,
    NoVideoStream,
    UnreadableFile,
    decode_image,
    decode_video,
)
from tests.pipelines.video.clips import moving_frames, write_audio, write_clip

# Every frame at its own size (a multiple of 28), so that frames can be compared one by one.
ALL_FRAMES = FrameBudget(fps=1000, max_frames=1000, min_pixels=28 * 28, max_pixels=10**7)
CLIP = moving_frames(90, 112, 168)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", CLIP, options={"crf": "18", "g": "15"})


def levels_apart(frames, expected):
    return np.abs(frames.astype(int) - expected[: len(frames)]).mean(axis=(1, 2, 3)).max()


def test_a_sound_clip_is_read_by_decord(clip):
    decoded = decode_video(clip, ALL_FRAMES)
    assert decoded.decoder.startswith("decord ")
    assert decoded.frames.shape == CLIP.shape
    assert levels_apart(decoded.frames, CLIP) < 5
    assert decoded.duration_s == pytest.approx(3.0)
    assert decoded.sample_fps == pytest.approx(30.0)
    assert decoded.readable_share == 1.0


def test_only_the_sampled_frames_come_back(clip):
    decoded = decode_video(clip, FrameBudget(fps=2, min_pixels=28 * 28, max_pixels=10**7))
    assert len(decoded.frames) == 6
    assert decoded.sample_fps == pytest.approx(2.0)
    assert levels_apart(decoded.frames, CLIP[[0, 18, 36, 53, 71, 89]]) < 5


def test_frames_are_resized_as_the_budget_says(clip):
    assert decode_video(clip, FrameBudget(frame_size=(56, 84))).frames.shape[1:] == (56, 84, 3)


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [("libsvtav1", "mp4", "yuv420p"), ("libx265", "mp4", "yuv420p"), ("libvpx-vp9", "webm", "yuv420p")],
)
def test_av1_hevc_and_vp9_are_read_by_one_of_the_two(tmp_path, codec, suffix, pix_fmt):
    path = write_clip(tmp_path / f"a.{suffix}", CLIP[:30], codec=codec, pix_fmt=pix_fmt, options={"crf": "20"})
    decoded = decode_video(path, ALL_FRAMES)
    assert decoded.decoder.startswith("pyav" if codec == "libsvtav1" else "decord")
    assert decoded.frames.shape == CLIP[:30].shape
    assert levels_apart(decoded.frames, CLIP) < 8


def test_colours_of_full_range_as_phones_record_them_are_no_damage(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "phone.mp4", CLIP, pix_fmt="yuvj420p")
    decoded = decode_video(path, ALL_FRAMES)
    assert decoded.decoder.startswith("decord ")
    assert levels_apart(decoded.frames, CLIP) < 5
    monkeypatch.setattr("pipelines.video.decode.HARMLESS", "said by nobody")
    by_pyav = decode_video(path, ALL_FRAMES)
    assert by_pyav.decoder.startswith("pyav ")
    np.testing.assert_array_equal(by_pyav.frames, decoded.frames)


def test_sound_that_goes_on_after_the_pictures_is_no_damage(tmp_path):
    clip = write_clip(tmp_path / "clip.mkv", CLIP, codec="libsvtav1", sound_s=8)
    decoded = decode_video(clip, ALL_FRAMES)
    assert decoded.decoder.startswith("pyav ")
    assert (len(decoded.frames), decoded.readable_share) == (90, 1.0)


def test_what_torch_says_as_it_is_loaded_is_no_damage(clip):
    code = (
        "import sys; from pathlib import Path; from pipelines.video import budget, decode; "
        "print(decode.decode_video(Path(sys.argv[1]), budget.FrameBudget(frame_size=(56, 84))).decoder)"
    )
    environment = {**os.environ, "OMP_DISPLAY_ENV": "true"}  # OpenMP's runtime then tells its settings on stderr
    done = subprocess.run([sys.executable, "-c", code, clip], env=environment, capture_output=True, text=True)
    assert "OMP_" in done.stderr
    assert done.stdout.startswith("decord ")


def test_both_decoders_give_the_same_frames(clip, monkeypatch):
    monkeypatch.setattr("pipelines.video.decode.decord.VideoReader", _refuse)
    by_pyav = decode_video(clip, ALL_FRAMES)
    monkeypatch.undo()
    assert by_pyav.decoder.startswith("pyav")
    assert np.array_equal(by_pyav.frames, decode_video(clip, ALL_FRAMES).frames)
    assert by_pyav.duration_s == pytest.approx(3.0)


def _refuse(*args, **kwargs):
    raise RuntimeError("Error reading")


def test_nothing_of_ffmpegs_noise_reaches_stderr(clip, tmp_path, capfd):
    path = tmp_path / "flipped.mp4"
    path.write_bytes(_flip(clip.read_bytes(), 3, seed=1))
    with pytest.raises(DecodeError):
        decode_video(path, ALL_FRAMES)
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"


def _flip(data, count, seed):
    """Flip bytes of the pictures, behind the faststart header."""
    rng, data = np.random.default_rng(seed), bytearray(data)
    start = data.index(b"mdat") + 1000  # behind the encoder's own description
    for position in rng.integers(start, len(data), count):
        data[position] ^= int(rng.integers(1, 256))
    return bytes(data)


def _garbage_tail(data):
    return data[: len(data) // 2] + np.random.default_rng(0).bytes(len(data) // 2)


def outcome_of(decode, path):
    """The decoded file, or the message of its refusal."""
    try:
        return decode(path, ALL_FRAMES)
    except DecodeError as error:
        return str(error)


def assert_a_sound_prefix(decoded):
    assert decoded.num_source_frames == pytest.approx(90 * decoded.readable_share)
    assert decoded.readable_share >= 0.9
    indices = sample_indices(decoded.num_source_frames, decoded.source_fps, ALL_FRAMES)
    assert levels_apart(decoded.frames, CLIP[indices]) < 5


DAMAGE = {
    **{f"truncated to {share:.0%}": (lambda d, s=share: d[: int(len(d) * s)]) for share in (0.01, 0.2, 0.5, 0.8, 0.97)},
    **{f"{n} bytes flipped, {s}": (lambda d, n=n, s=s: _flip(d, n, s)) for n in (30, 300) for s in range(4)},
    "zero length": lambda d: b"",
    "header zeroed": lambda d: bytes(2000) + d[2000:],
    "tail of garbage": _garbage_tail,
    "text": lambda d: b"not a film\n" * 1000,
    "a png": lambda d: b"\x89PNG\r\n\x1a\n" + d[:5000],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_gives_sound_frames_or_a_named_refusal(clip, tmp_path, damage):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(DAMAGE[damage](clip.read_bytes()))
    outcome = outcome_of(decode_video, path)
    if isinstance(outcome, str):
        assert outcome
        assert "\n" not in outcome
    else:
        assert_a_sound_prefix(outcome)


@pytest.mark.parametrize(("count", "least_refused"), [(1, 5), (3, 9)])
def test_flipped_bytes_are_refused_unless_the_file_is_still_valid(clip, tmp_path, monkeypatch, count, least_refused):
    """H.264 has no checksum: a flip may make another valid picture. Only then may frames that look wrong come back."""
    refused = 0
    for seed in range(10):
        path = tmp_path / "flipped.mp4"
        path.write_bytes(_flip(clip.read_bytes(), count, seed))
        try:
            decoded = decode_video(path, ALL_FRAMES)
        except DamagedVideo:
            refused += 1
            continue
        with monkeypatch.context() as only_pyav:
            only_pyav.setattr("pipelines.video.decode.decord.VideoReader", _refuse)
            strict = decode_video(path, ALL_FRAMES)
        assert strict.readable_share == decoded.readable_share
        assert np.array_equal(strict.frames, decoded.frames)
    assert refused >= least_refused


def test_a_file_that_lacks_its_last_frames_keeps_the_rest_and_says_so(clip, tmp_path):
    data = clip.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * 0.97)])
    decoded = decode_video(path, ALL_FRAMES)
    assert decoded.decoder.startswith("pyav")
    assert decoded.readable_share < 1
    assert_a_sound_prefix(decoded)


def test_a_file_that_lacks_half_its_frames_is_refused_with_the_count(clip, tmp_path):
    data = clip.read_bytes()
    path = tmp_path / "half.mp4"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedVideo, match=r"\d+ of 90 frames are sound"):
        decode_video(path, ALL_FRAMES)


def test_sound_without_pictures_is_refused(tmp_path):
    with pytest.raises(NoVideoStream):
        decode_video(write_audio(tmp_path / "a.mp4"), ALL_FRAMES)


@pytest.mark.parametrize("name", ["clip.avi", "clip.txt", "clip", "clip.png"])
def test_a_wrong_suffix_does_not_matter(clip, tmp_path, name):
    (tmp_path / name).write_bytes(clip.read_bytes())
    assert levels_apart(decode_video(tmp_path / name, ALL_FRAMES).frames, CLIP) < 5


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_clips_of_very_few_frames_are_read(tmp_path, num_frames):
    path = write_clip(tmp_path / "short.mp4", CLIP[:num_frames])
    decoded = decode_video(path, ALL_FRAMES)
    assert len(decoded.frames) == {1: 1, 2: 2, 3: 2}[num_frames]
    assert levels_apart(decoded.frames[:1], CLIP) < 5


@pytest.mark.parametrize(("height", "width"), [(181, 321), (99, 99), (30, 400)])
def test_odd_sizes_are_read_whole(tmp_path, height, width):
    frames = moving_frames(10, height, width)
    path = write_clip(tmp_path / "odd.mp4", frames, pix_fmt="yuv444p")
    budget = FrameBudget(fps=1000, patch_size=1, merge_size=1, min_pixels=1, max_pixels=10**7)
    decoded = decode_video(path, budget)
    assert decoded.frames.shape == frames.shape
    assert levels_apart(decoded.frames, frames) < 5


def test_a_variable_frame_rate_is_sampled_by_frame_and_timed_by_the_average(tmp_path):
    timestamps = np.cumsum(np.random.default_rng(0).integers(20, 200, 60)).tolist()
    path = write_clip(tmp_path / "vfr.mp4", CLIP[:60], timestamps=timestamps)
    decoded = decode_video(path, ALL_FRAMES)
    assert levels_apart(decoded.frames, CLIP) < 5
    assert decoded.duration_s == pytest.approx((timestamps[-1] - timestamps[0]) / 1000, rel=0.05)


def test_a_missing_file_is_refused_with_its_cause(tmp_path):
    with pytest.raises(UnreadableFile, match="No such file"):
        decode_video(tmp_path / "absent.mp4", ALL_FRAMES)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_damaged_picture_is_read_or_refused(tmp_path, suffix):
    Image.fromarray(CLIP[0]).save(tmp_path / f"sound.{suffix}")
    data = (tmp_path / f"sound.{suffix}").read_bytes()
    assert decode_image(tmp_path / f"sound.{suffix}", ALL_FRAMES).frames.shape == (1, 112, 168, 3)
    rng = np.random.default_rng(0)
    cases = [b"", data[: len(data) // 3], data[: len(data) - 20], b"text"]
    for _ in range(40):
        flipped = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            flipped[position] ^= int(rng.integers(1, 256))
        cases.append(bytes(flipped))
    refused = 0
    for case in cases:
        (tmp_path / "damaged").write_bytes(case)
        outcome = outcome_of(decode_image, tmp_path / "damaged")
        if isinstance(outcome, str):
            assert "\n" not in outcome
            refused += 1
        else:
            assert outcome.frames.ndim == 4
    assert refused >= 4


def test_encoding_a_test_clip_leaves_the_process_at_its_ordinary_priority(tmp_path):
    for codec in ("libx264", "libsvtav1"):
        write_clip(tmp_path / f"{codec}.mp4", moving_frames(2, 64, 64), codec=codec, options={"crf": "30"})
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
