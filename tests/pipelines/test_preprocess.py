"""The preprocess stage: decoded once, whatever happens, and every file accounted for."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import decord
import numpy as np
import psutil
import pytest
from PIL import Image

from pipelines.datasets import Media
from pipelines.decode_progress import progress_path, progress_writer, read_progress
from pipelines.engine import Artifact, RayRunner, Resources, Stage, StageConfig, Store
from pipelines.preprocess import MediaSource, PreprocessIdentity, PreprocessPlacement, preprocess_media, run
from pipelines.video.budget import FrameBudget, patchify
from pipelines.video.decode import decode_video
from pipelines.video.frames import open_frames
from pipelines.video.synthetic import write_needle_benchmark, write_training_set
from tests.pipelines.video.clips import moving_frames, write_audio, write_clip
from tests.pipelines.video.test_decode import DAMAGE

ROOT = Path(__file__).parents[2]
DECORD = f"decord {decord.__version__}"

TINY = FrameBudget(
    fps=2,
    min_frames=2,
    max_frames=256,
    patch_size=8,
    min_pixels=1024,
    max_pixels=1024,
    image_min_pixels=1024,
    image_max_pixels=1024,
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twelve different short clips."""
    folder = tmp_path_factory.mktemp("videos")
    frames = moving_frames(60, 32, 32)
    for number in range(12):
        write_clip(folder / f"{number:02d}.mp4", frames[number : number + 20], fps=2)
    return folder


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """About a second of decoding."""
    frames = np.tile(moving_frames(40, 360, 640), (15, 1, 1, 1))
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", frames, options={"preset": "ultrafast"})


def media_of(folder, pattern="*.mp4"):
    return {path.name: Media("video", path) for path in sorted(folder.glob(pattern))}


@pytest.fixture
def preprocess(tmp_path):
    """Preprocess in this process, into a new artifact each time, over one cache."""
    count = iter(range(100))

    def preprocess(media, budget=TINY, **options):
        out_dir = tmp_path / f"artifact-{next(count)}"
        options = {"num_workers": 0, "cache_dir": tmp_path / "cache", **options}
        return preprocess_media(media, budget, out_dir, **options), out_dir

    return preprocess


def test_rows_read_back_are_the_decoded_videos(videos, preprocess):
    done, out_dir = preprocess(media_of(videos))
    assert (done.num_media, done.decoded, done.reused, done.num_frames) == (12, 12, 0, 240)
    assert done.decoders == {DECORD: 12}
    frames = open_frames(out_dir)
    assert list(frames) == sorted(path.name for path in videos.iterdir())
    for name in frames:
        rows, grid = patchify(decode_video(videos / name, TINY).frames, TINY)
        assert frames.grid(name) == grid == (10, 4, 4)
        assert np.array_equal(frames.rows(name), rows)


def test_rows_are_memory_mapped_read_only_and_travel_to_workers_by_path(videos, preprocess):
    _, out_dir = preprocess(media_of(videos))
    frames = open_frames(out_dir)
    rows = frames.rows("00.mp4")
    assert isinstance(rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0
    assert len(pickle.dumps(frames)) < 500
    assert np.array_equal(pickle.loads(pickle.dumps(frames)).rows("00.mp4"), rows)


def test_an_unknown_id_is_refused_in_one_line(videos, preprocess):
    _, out_dir = preprocess(media_of(videos, "00.mp4"))
    with pytest.raises(ValueError, match=r"no frames of 'x' in .*; 1 videos and pictures are"):
        open_frames(out_dir).grid("x")


def test_the_second_call_decodes_nothing_and_ten_more_videos_decode_ten(videos, preprocess):
    preprocess(media_of(videos, "0[01].mp4"))
    again, _ = preprocess(media_of(videos, "0[01].mp4"))
    assert (again.decoded, again.reused) == (0, 2)
    more, out_dir = preprocess(media_of(videos))
    assert (more.decoded, more.reused) == (10, 2)
    assert len(open_frames(out_dir)) == 12


def test_another_budget_decodes_again_and_leaves_the_first_intact(videos, preprocess):
    _, first = preprocess(media_of(videos, "0[01].mp4"))
    before = open_frames(first).rows("00.mp4").copy()
    other, second = preprocess(media_of(videos, "0[01].mp4"), FrameBudget(fps=1, patch_size=8, frame_size=(16, 16)))
    assert other.decoded == 2
    assert open_frames(second).grid("00.mp4") == (5, 2, 2)
    assert np.array_equal(open_frames(first).rows("00.mp4"), before)


def test_a_copy_of_a_video_is_decoded_once_and_a_changed_one_again(videos, preprocess, tmp_path):
    data = (videos / "00.mp4").read_bytes()
    (tmp_path / "one.mp4").write_bytes(data)
    (tmp_path / "two.mp4").write_bytes(data)
    done, out_dir = preprocess(media_of(tmp_path))
    assert (done.num_media, done.decoded) == (2, 1)
    assert len(open_frames(out_dir)) == 2
    (tmp_path / "two.mp4").write_bytes((videos / "01.mp4").read_bytes())
    assert preprocess(media_of(tmp_path))[0].decoded == 1


def test_an_artifact_outlives_the_cache(videos, preprocess, tmp_path):
    _, out_dir = preprocess(media_of(videos))
    for path in (tmp_path / "cache").rglob("*.*"):
        path.unlink()
    assert open_frames(out_dir).rows("11.mp4").any()


def test_pictures_become_one_cell_and_differ_from_a_video_of_the_same_bytes(preprocess, tmp_path):
    path = tmp_path / "needle.png"
    Image.fromarray(moving_frames(1, 32, 32)[0]).save(path)
    done, out_dir = preprocess({"picture": Media("image", path), "video": Media("video", path)})
    frames = open_frames(out_dir)
    assert frames.grid("picture") == (1, 4, 4)
    cell = frames.rows("picture").reshape(16, 3, 2, 64)
    assert np.array_equal(cell[:, :, 0], cell[:, :, 1])
    assert done.decoded == 2


def test_a_video_over_its_time_limit_is_killed_quarantined_and_tried_again_later(videos, long_video, preprocess):
    preprocess(media_of(videos, "0[012].mp4"))  # known below, as a busy machine may need 0.1 s for them too
    media = media_of(videos, "0[01].mp4") | {"long": Media("video", long_video)} | media_of(videos, "02.mp4")
    done, out_dir = preprocess(media, timeout_s=0.1)
    assert done.quarantined == {"long": "DecodeTimeout: not decoded within 0.1 s"}
    assert list(open_frames(out_dir)) == ["00.mp4", "01.mp4", "02.mp4"]
    (line,) = (out_dir / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "long", "reason": "DecodeTimeout: not decoded within 0.1 s"}
    again, _ = preprocess(media)
    assert (again.decoded, again.quarantined) == (1, {})


def test_a_decoder_that_dies_costs_its_video_only(videos, long_video, preprocess):
    def kill_at_work(decoder):
        spent = decoder.cpu_times().user
        while decoder.cpu_times().user < spent + 0.05:
            pass
        decoder.kill()

    def kill_decoder(done, total):
        if done == 1:  # the next file is the long one
            (decoder,) = (p for p in psutil.Process().children() if "pipelines.video.worker" in p.cmdline())
            threading.Thread(target=kill_at_work, args=(decoder,)).start()

    media = media_of(videos, "00.mp4") | {"long": Media("video", long_video)} | media_of(videos, "01.mp4")
    done, _ = preprocess(media, on_progress=kill_decoder)
    assert done.quarantined == {"long": "DecoderCrash: the decoding process ended with SIGKILL"}
    assert done.decoders == {DECORD: 2}


def die_after_five(done, total):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_call_killed_in_the_middle_is_continued_not_repeated(videos, preprocess, tmp_path):
    options = {"cache_dir": tmp_path / "cache", "num_workers": 0, "on_progress": die_after_five}
    arguments = (media_of(videos), TINY, tmp_path / "killed")
    process = multiprocessing.get_context("spawn").Process(target=preprocess_media, args=arguments, kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done, out_dir = preprocess(media_of(videos))
    # The decoding process may have finished the file after the fifth before it saw its owner gone.
    assert done.decoded in (6, 7)
    _, afresh = preprocess(media_of(videos), cache_dir=tmp_path / "other cache")
    for name in open_frames(afresh):
        assert np.array_equal(open_frames(out_dir).rows(name), open_frames(afresh).rows(name))


def test_progress_counts_up_to_the_total_and_starts_from_what_is_known(videos, preprocess):
    preprocess(media_of(videos, "0[0-4].mp4"))
    seen = []
    preprocess(media_of(videos), on_progress=lambda *state: seen.append(state))
    assert seen == [(done, 12) for done in range(5, 13)]


def test_forty_damaged_files_are_each_decoded_or_quarantined_with_a_cause(preprocess, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    frames = moving_frames(90, 112, 168)
    sound = write_clip(tmp_path / "sound.mp4", frames, options={"crf": "18", "g": "15"}).read_bytes()
    for name, damage in DAMAGE.items():
        (folder / f"{name}.mp4").write_bytes(damage(sound))
    for share in range(5, 100, 5):
        (folder / f"cut {share}.mp4").write_bytes(sound[: len(sound) * share // 100])
    (folder / "suffix.avi").write_bytes(sound)
    write_audio(folder / "audio.mp4")
    write_clip(folder / "one frame.mp4", frames[:1])
    write_clip(folder / "odd.mp4", moving_frames(10, 99, 131), pix_fmt="yuv444p")
    write_clip(folder / "av1.mp4", frames[:20], codec="libsvtav1", options={"crf": "30"})
    write_clip(folder / "variable.mp4", frames[:20], timestamps=[40 * n + 7 * (n % 3) for n in range(20)])
    os.mkfifo(folder / "pipe.mp4")
    media = media_of(folder, "*.*") | {"absent": Media("video", folder / "absent.mp4")}
    assert len(media) >= 40

    done, out_dir = preprocess(media, FrameBudget(fps=5, min_pixels=28 * 28), timeout_s=600)
    frames = open_frames(out_dir)
    assert set(frames) | set(done.quarantined) == set(media)
    assert not set(frames) & set(done.quarantined)
    readable = {"suffix.avi", "one frame.mp4", "odd.mp4", "av1.mp4", "variable.mp4", "truncated to 97%.mp4"}
    assert readable <= set(frames)
    assert {"audio.mp4", "zero length.mp4", "pipe.mp4", "absent", "cut 50.mp4"} <= set(done.quarantined)
    assert {reason.split(":")[0] for reason in done.quarantined.values()} <= {
        "UnreadableFile",
        "DamagedVideo",
        "NoVideoStream",
    }
    assert done.decoders.keys() == {DECORD, f"pyav {av.__version__}"}


def stage_config(tmp_path, num_workers, **identity):
    sources = (
        MediaSource(name="training", records=("train.json",)),
        MediaSource(name="v_niah", files=("haystack/*.mp4", "needles/*.png")),
    )
    placement = PreprocessPlacement(cache_dir=str(tmp_path / "cache"), num_workers=num_workers)
    return StageConfig(PreprocessIdentity(budget=TINY, sources=sources, **identity), placement)


def write_training(config, inputs, out_dir):
    write_training_set(out_dir, num_videos=30)
    return {}


def write_benchmark(config, inputs, out_dir):
    write_needle_benchmark(out_dir, num_films=2, film_frames=100, num_renderings=1)
    return {}


@pytest.fixture
def inputs(tmp_path):
    def artifact(name, write):
        write(None, {}, tmp_path / name)
        return Artifact(name, "0" * 64, tmp_path / name, {})

    return {"training": artifact("training", write_training), "v_niah": artifact("v_niah", write_benchmark)}


def test_the_stage_decodes_the_media_of_records_and_patterns(tmp_path, inputs):
    config = stage_config(tmp_path, 0)
    result = run(config, inputs, tmp_path / "out")
    assert json.loads(json.dumps(result)) == result
    assert (result["num_media"], result["decoded"], result["quarantined"]) == (30 + 2 + 80, 112, 0)
    assert (result["records"], result["quarantined_records"]) == (112, 0)
    frames = open_frames(tmp_path / "out")
    assert frames.grid("v_niah/haystack/001.mp4") == (50, 4, 4)
    assert frames.grid("v_niah/needles/red_7_0.png") == (1, 4, 4)
    assert frames.about("training/videos/00007.mp4").sample_fps == pytest.approx(2.0)
    progress = read_progress(config)
    assert progress
    assert (progress["done"], progress["total"], progress["eta_s"]) == (112, 112, 0)


def test_the_stage_stops_when_too_many_media_are_unusable(tmp_path, inputs):
    for number in range(2):
        (tmp_path / "v_niah" / "haystack" / f"00{number}.mp4").write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=r"2 of 112 are unusable, over the limit of 1.00%; first: v_niah/haystack"
    ) as e:
        run(stage_config(tmp_path, 0), inputs, tmp_path / "out")
    assert "\n" not in str(e.value)
    result = run(stage_config(tmp_path, 0, quarantine_limit=0.02), inputs, tmp_path / "again")
    assert result["quarantined"] == 2
    assert result["decoded"] == 0  # the first attempt's work, failures included, was kept


def test_a_record_is_left_out_for_a_missing_or_a_damaged_video_with_its_line_and_the_reason(tmp_path, inputs):
    (tmp_path / "training" / "videos" / "00003.mp4").unlink()
    (tmp_path / "training" / "videos" / "00005.mp4").write_bytes(b"damaged")
    (tmp_path / "v_niah" / "needles" / "red_7_0.png").write_bytes(b"damaged")
    result = run(stage_config(tmp_path, 0, quarantine_limit=0.05), inputs, tmp_path / "out")
    assert (result["records"], result["quarantined_records"], result["quarantined"]) == (112, 3, 2)
    lines = list(map(json.loads, (tmp_path / "out" / "quarantined_records.jsonl").read_text().splitlines()))
    assert [(line["source"], line["file"], line["record"], line["line"]) for line in lines] == [
        ("training", "train.json", "00003", 5),
        ("training", "train.json", "00005", 7),
        ("v_niah", "needles/*.png", "v_niah/needles/red_7_0.png", None),
    ]
    assert lines[0]["reason"].startswith("no such video: ")
    assert lines[1]["reason"].startswith("training/videos/00005.mp4: UnreadableFile: ")
    assert lines[2]["reason"].startswith("v_niah/needles/red_7_0.png: UnreadableFile: ")


def test_a_pattern_takes_files_alone_and_shows_a_link_that_leads_nowhere(tmp_path, inputs):
    films = tmp_path / "v_niah" / "haystack"
    (films / "._000.mp4").write_bytes(b"left there by a file manager")
    (films / "folder.mp4").mkdir()
    assert run(stage_config(tmp_path, 0), inputs, tmp_path / "out")["num_media"] == 112
    (films / "gone.mp4").symlink_to(tmp_path / "unmounted.mp4")
    result = run(stage_config(tmp_path, 0), inputs, tmp_path / "again")
    assert (result["num_media"], result["quarantined"]) == (113, 1)
    (line,) = map(json.loads, (tmp_path / "again" / "quarantine.jsonl").read_text().splitlines())
    assert line["id"] == "v_niah/haystack/gone.mp4"
    assert line["reason"].startswith("UnreadableFile: no such file: ")


def test_the_time_left_counts_only_what_is_decoded_now(tmp_path):
    config = stage_config(tmp_path, 0)
    write = progress_writer(progress_path(config))
    assert read_progress(config) is None
    write(90, 100)
    assert read_progress(config) == {"done": 90, "total": 100, "eta_s": None} | {
        "elapsed_s": read_progress(config)["elapsed_s"]
    }
    write(100, 100)
    assert read_progress(config)["eta_s"] == 0
    progress_writer(progress_path(config))  # the next run starts without the old state
    assert read_progress(config) is None


def test_a_source_without_a_folder_or_files_is_refused_in_one_line(tmp_path, inputs):
    with pytest.raises(ValueError, match="no folder for the media source 'v_niah'; known are: training; add it"):
        run(stage_config(tmp_path, 0), {"training": inputs["training"]}, tmp_path / "out")
    for path in (tmp_path / "v_niah" / "needles").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"no file matches 'needles/\*.png' in the media source 'v_niah'"):
        run(stage_config(tmp_path, 0), inputs, tmp_path / "out")


@pytest.mark.slow
def test_on_ray_the_stage_decodes_with_two_workers_from_inside_a_task(tmp_path):
    training = Stage("write_training", 1, write_training, StageConfig(None))
    benchmark = Stage("write_benchmark", 1, write_benchmark, StageConfig(None))
    preprocess = Stage(
        "preprocess",
        1,
        run,
        stage_config(tmp_path, 2),
        inputs={"training": training, "v_niah": benchmark},
        resources=Resources(num_cpus=0),
    )
    store = Store(tmp_path / "store")
    with RayRunner(store, num_cpus=2) as runner:
        summary = runner.run([preprocess])
    artifact = summary.artifacts[preprocess.fingerprint]
    assert artifact.result["decoded"] == 112
    frames = open_frames(artifact.path)
    assert len(frames) == 112
    assert len({frames.about(key).shard for key in frames}) == 2  # one per worker
    rows, _ = patchify(
        decode_video(summary.artifacts[benchmark.fingerprint].path / "haystack" / "000.mp4", TINY).frames, TINY
    )
    assert np.array_equal(frames.rows("v_niah/haystack/000.mp4"), rows)


CLUSTER = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from pipelines.preprocess import preprocess_media
from pipelines.video.frames import open_frames
from tests.pipelines.test_preprocess import TINY, media_of

videos, folder = Path(sys.argv[1]), Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
lost = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

def lose_a_node(done, total):
    if done == 2:
        cluster.remove_node(lost, allow_graceful=False)

media = media_of(videos)
done = preprocess_media(
    media, TINY, folder / "out", cache_dir=folder / "cache", num_workers=2, on_progress=lose_a_node
)
frames = open_frames(folder / "out")
whole = all(frames.rows(key).any() for key in frames)
print(len(cluster.list_all_nodes()), done.decoded, len(frames), whole, flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_still_decodes_everything(long_video, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(4):
        data = long_video.read_bytes()
        (videos / f"{number}.mp4").write_bytes(data + bytes([0, 0, 0, 9]) + b"free" + bytes([number]))
    command = [sys.executable, "-c", CLUSTER, str(videos), str(tmp_path)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "1 4 4 True" in done.stdout.splitlines(), done.stdout[-2000:] + done.stderr[-2000:]  # Ray prints there too
