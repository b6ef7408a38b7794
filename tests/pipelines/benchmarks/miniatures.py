"""Miniatures of released benchmarks: the formats record for record, with short videos drawn and encoded here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import yaml
from pyarrow import parquet

from experiments.compose import CONF
from pipelines.video.synthetic import encode_mp4, haystack_frames

OBJECTS = ("a red car", "a blue boat", "a green tree", "a white dog", "a black cat")


def settings(name: str, **changes: Any) -> dict[str, Any]:
    """conf/benchmark/NAME.yaml with budgets that a tiny model affords."""
    given = yaml.safe_load((CONF / "benchmark" / f"{name}.yaml").read_text(encoding="utf-8"))
    tiny = {"fps": 2.0, "frames_per_1000_tokens": 250.0, "min_frames": 2, "min_tokens": 1, "max_tokens": 4}
    return {**given, "contexts_tokens": [16, 32], "max_new_tokens": 3, "budget": tiny, **changes}


def write_video(path: Path, seed: int, *, num_frames: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_mp4(path, haystack_frames(np.random.default_rng(seed), num_frames, 32), fps=4.0)


def write_mlvu(root: Path, *, videos: int = 4) -> None:
    """The official form: one JSON file per task, answers as text; a generation task lies beside them."""
    for number, task in ((1, "plotQA"), (4, "count")):
        records = []
        for video in range(videos):
            name = f"{task}_{video}.mp4"
            write_video(root / "video" / f"{number}_{task}" / name, seed=10 * number + video)
            for asked in range(2):
                records.append(
                    {
                        "video": name,
                        "duration": 4.0,
                        "question": f"What passes by in scene {asked}?",
                        "candidates": list(OBJECTS[:4]),
                        "answer": OBJECTS[(video + asked) % 4],
                        "question_type": task,
                    }
                )
        _write_json(root / "json" / f"{number}_{task}.json", records)
    summary = {"video": "s.mp4", "duration": 4.0, "question": "Summarise.", "answer": "x", "question_type": "summary"}
    _write_json(root / "json" / "9_summary.json", [summary])


def write_mlvu_lmms_eval(root: Path, *, videos: int = 4) -> None:
    """lmms-eval's form: a Parquet file, the options inside the question, the answer a letter."""
    options = "\n".join(f"({letter}) {text}" for letter, text in zip("ABCD", OBJECTS, strict=False))
    rows = []
    for video in range(videos):
        write_video(root / f"{video}.mp4", seed=video)
        row = {"video_name": f"{video}.mp4", "question": f"What passes by?\n{options}"}
        rows.append({**row, "answer": "ABCD"[video % 4], "task_type": ("PQA", "AC")[video % 2]})
    _write_parquet(root / "test.parquet", rows)


def write_longvideobench(root: Path, *, videos: int = 4) -> None:
    """The released lvb_val.json; one question of each video speaks of subtitles."""
    records = []
    for video in range(videos):
        write_video(root / "videos" / f"vid{video}.mp4", seed=video)
        for asked, question in enumerate(("What passes by?", "When the subtitle says 'hello', what passes by?")):
            records.append(
                {
                    "video_id": f"vid{video}",
                    "question": question,
                    "question_wo_referring_query": question,
                    "candidates": list(OBJECTS[: 4 + video % 2]),
                    "correct_choice": (video + asked) % 4,
                    "position": [0, 8],
                    "topic_category": "NP-News-Programs",
                    "question_category": ("S2E", "T3O")[video % 2],
                    "level": "L1-Perception",
                    "id": f"vid{video}_{asked}",
                    "video_path": f"vid{video}.mp4",
                    "subtitle_path": f"vid{video}_en.json",
                    "duration_group": (15, 600)[video % 2],
                    "starting_timestamp_for_subtitles": 0,
                    "duration": 4.0,
                    "view_count": 7,
                }
            )
    _write_json(root / "lvb_val.json", records)


def write_longvideobench_lmms_eval(root: Path, *, videos: int = 4) -> None:
    """lmms-eval's form of the same: option0 to option4, "N/A" where there is none."""
    write_longvideobench(root, videos=videos)
    rows = json.loads((root / "lvb_val.json").read_text())
    for row in rows:
        candidates = row.pop("candidates")
        row |= {f"option{place}": candidates[place] if place < len(candidates) else "N/A" for place in range(5)}
    _write_parquet(root / "validation.parquet", rows)


def write_video_mme(root: Path, *, videos: int = 4) -> None:
    """The released Parquet file: options with their letters, three questions a video."""
    rows = []
    for video in range(videos):
        write_video(root / "data" / f"yt{video}.mp4", seed=video)
        for asked in range(3):
            rows.append(
                {
                    "video_id": f"{video + 1:03d}",
                    "duration": ("short", "long")[video % 2],
                    "domain": ("Knowledge", "Film & Television")[video % 2],
                    "sub_category": "Geography",
                    "url": "none",
                    "videoID": f"yt{video}",
                    "question_id": f"{video + 1:03d}-{asked + 1}",
                    "task_type": ("Object Recognition", "Counting Problem")[asked % 2],
                    "question": "What passes by?",
                    "options": [f"{letter}. {text}." for letter, text in zip("ABCD", OBJECTS, strict=False)],
                    "answer": "ABCD"[(video + asked) % 4],
                }
            )
    _write_parquet(root / "videomme" / "test-00000-of-00001.parquet", rows)


MINIATURES: dict[str, Callable[[Path], None]] = {
    "mlvu": write_mlvu,
    "mlvu_lmms_eval": write_mlvu_lmms_eval,
    "longvideobench": write_longvideobench,
    "longvideobench_lmms_eval": write_longvideobench_lmms_eval,
    "video_mme": write_video_mme,
}


def write_faults(root: Path) -> None:
    """LongVideoBench's folder in which a video is missing, one is cut short, one is empty, a question has no options.

    The faults are vid4 to vid6 and question vid7_0; vid0 to vid3 and vid7 are sound.
    """
    write_longvideobench(root, videos=8)
    (root / "videos" / "vid4.mp4").unlink()
    whole = (root / "videos" / "vid5.mp4").read_bytes()
    (root / "videos" / "vid5.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "videos" / "vid6.mp4").write_bytes(b"")
    records = json.loads((root / "lvb_val.json").read_text())
    for record in records:
        if record["id"] == "vid7_0":
            record["candidates"] = []
    _write_json(root / "lvb_val.json", records)


def _write_json(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
