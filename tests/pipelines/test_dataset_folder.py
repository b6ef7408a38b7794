import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from hope_core import get_variant
from pipelines.dataset_folder import FolderDataset, content, folder_stages
from pipelines.engine import Artifact, LocalRunner, Store
from pipelines.finetune import FinetunePlacement, finetune_stage
from pipelines.finetune.rows import Rows, Source, make_rows
from pipelines.preprocess import PreprocessPlacement
from tests.pipelines import world
from tests.pipelines.tiny_checkpoint import chat_tokenizer, write_checkpoint

VIDEOS = 6


@pytest.fixture
def folder(trial: dict[str, Artifact], tmp_path: Path) -> FolderDataset:
    """Two parts as LLaVA-Video-178K has them: records beside their videos, with pictures and several turns."""
    drawn = trial["dataset"].path
    names = sorted(path.name for path in (drawn / "videos").iterdir())[:VIDEOS]
    picture = sorted((drawn / "needles").iterdir())[0]
    root = tmp_path / "llava"
    for part, own in {"0_30_s": names[:3], "30_60_s": names[3:]}.items():
        (root / part / "videos").mkdir(parents=True)
        shutil.copy(picture, root / part / "picture.png")
        records = []
        for name in own:
            shutil.copy(drawn / "videos" / name, root / part / "videos" / name)
            turns = [("human", "<image>\nWhat is shown?"), ("gpt", "A needle."), ("human", "Sure?"), ("gpt", "Yes.")]
            conversation = [{"from": role, "value": text} for role, text in turns]
            records.append({"id": f"{part}-{name}", "video": f"videos/{name}", "conversations": conversation})
        shown = [{"role": "user", "content": "<image><image> Same?"}, {"role": "assistant", "content": "Yes."}]
        records.append({"messages": shown, "images": ["picture.png", "picture.png"]})
        (root / part / f"{part}_processed.json").write_text(json.dumps(records))
    return FolderDataset(
        kind="folder",
        name="llava",
        root=str(root),
        files=("*/*_processed.json",),
        num_samples=8,
        quarantine_limit=0.2,
        fps=2.0,
        max_frames=8,
        total_pixels=32 * 32 * 4,
    )


def test_a_folder_of_videos_pictures_and_turns_is_checked_decoded_and_trained_on(
    folder: FolderDataset, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "model", world.MODEL)
    placement = PreprocessPlacement(cache_dir=str(tmp_path / "cache"), num_workers=0, timeout_s=600)
    broken = Path(folder.root or "") / "0_30_s" / "videos" / "torn.mp4"
    broken.write_bytes(b"no video")
    records = broken.parents[1] / "0_30_s_processed.json"
    torn = {"id": "torn", "video": "videos/torn.mp4", "conversations": [{"from": "human", "value": "<image>"}]}
    torn["conversations"].append({"from": "gpt", "value": "?"})  # type: ignore[attr-defined]
    known = json.loads(records.read_text())
    known[0]["video"] = str(shutil.move(records.parent / known[0]["video"], tmp_path / "elsewhere.mp4"))
    known[1]["video"] = str(shutil.move(records.parent / known[1]["video"], records.parents[1] / "above.mp4"))
    records.write_text(json.dumps([*known, torn]))
    dataset, frames = folder_stages(folder, world.BUDGET, placement)
    recipe = dataclasses.replace(world.RECIPE, steps=None, epochs=2, equal_lengths=False, cutoff_len=400)
    tuned = finetune_stage(
        get_variant("hope"),
        model,
        recipe,
        0,
        dataset=dataset,
        frames=frames,
        group="g",
        placement=FinetunePlacement(model, source=Source(folder.folder, tuple(folder.record_files()), 0.2)),
        num_samples=folder.num_samples,
    )
    done = world.run(tmp_path, [tuned])
    assert done["dataset"].result == {"records": 9, "quarantined": 0}
    assert done["frames"].result["quarantined"] == 1
    found = done["finetune"].result
    assert found["num_samples"] == 8  # the torn video's record went with it, those of absolute paths stayed
    assert found["steps"] == 4  # two epochs of two batches of four
    assert sum(found["drawn_scales"].values()) == 2 * (VIDEOS + 4)  # one a medium: six videos, twice two pictures
    assert tuned.work_units == 16


def test_a_folder_is_known_by_its_content_and_not_by_its_place(folder: FolderDataset, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(folder, root=str(shutil.copytree(folder.root or "", tmp_path / "elsewhere")))
    assert content(elsewhere) == content(folder)
    video = next(Path(elsewhere.root or "").glob("*/videos/*"))
    video.write_bytes(video.read_bytes() + b"longer")
    assert content(elsewhere) != content(folder)


def test_a_folder_that_changed_after_planning_or_holds_too_much_rubbish_is_refused_in_one_line(
    folder: FolderDataset, tmp_path: Path
) -> None:
    placement = PreprocessPlacement(cache_dir=str(tmp_path / "cache"), num_workers=0, timeout_s=600)
    planned, _ = folder_stages(folder, world.BUDGET, placement)
    for video in (Path(folder.root or "") / "0_30_s" / "videos").iterdir():
        video.unlink()
    again, _ = folder_stages(folder, world.BUDGET, placement)
    for stage, message in ((planned, "has changed since the study was planned"), (again, "3 of 8 are unusable")):
        ((_, failure),) = LocalRunner(Store(tmp_path / "store")).run([stage]).failed
        assert message in failure.error


def test_the_share_that_may_be_unusable_is_of_all_files_and_not_of_each(folder: FolderDataset, tmp_path: Path) -> None:
    root = Path(folder.root or "")
    text = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    torn = {"conversations": text, "video": "absent.mp4"}
    (root / "small").mkdir()
    (root / "small" / "small_processed.json").write_text(json.dumps([{"conversations": text}, torn]))
    placement = PreprocessPlacement(cache_dir=str(tmp_path / "cache"), num_workers=0, timeout_s=600)
    _, frames = folder_stages(folder, world.BUDGET, placement)
    done = world.run(tmp_path, [frames])
    assert done["dataset"].result == {"records": 10, "quarantined": 1}
    assert done["frames"].result["quarantined_records"] == 1
    source = Source(folder.folder, tuple(folder.record_files()), folder.quarantine_limit)
    assert len(list(source.records())) == 9
    with pytest.raises(ValueError, match=r"1 of 10 are unusable, .*; first: small/small_processed\.json line 1 "):
        list(dataclasses.replace(source, quarantine_limit=0.05).records())


@pytest.mark.parametrize("pattern", ["", "/data/train.json"])
def test_a_pattern_that_is_none_below_the_root_is_refused_in_one_line(folder: FolderDataset, pattern: str) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.files has '{pattern}'; give patterns below dataset\.root"):
        dataclasses.replace(folder, files=("*.json", pattern)).record_files()


def test_a_record_that_can_be_no_row_is_named_by_its_line_and_counts_among_all(tmp_path: Path) -> None:
    good, mark = ({"question": "Why?", "answer": "So."}, {"question": "<|im_start|>?", "answer": "So."})
    lines = ["", json.dumps(good), "", json.dumps(mark), json.dumps(good), json.dumps(good)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))

    def rows(limit: float) -> Rows:
        return make_rows(
            Source(tmp_path, ("train.jsonl",), limit),
            {},  # type: ignore[arg-type]
            world.RECIPE,
            tokenizer=chat_tokenizer(),
            timestamps=False,
            merge_size=2,
            temporal_patch_size=2,
        )

    assert [(bad.line, bad.id) for bad in rows(0.25).quarantined] == [(4, "line-4")]
    with pytest.raises(ValueError, match=r"1 of 4 are unusable, over the limit of 20\.00%; first: line 4 \(line-4\): "):
        rows(0.2)


def test_a_folder_that_is_not_there_can_be_planned_with() -> None:
    absent = FolderDataset("folder", "llava", None, ("*.json",), 300, 0.01, 2.0, 8, 4096)
    assert content(absent) == "absent"
    assert content(dataclasses.replace(absent, root="/no/such/folder")) == "absent"
