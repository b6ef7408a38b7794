"""Benchmark folders in the released formats, drawn here: films, pictures and records, and a model to ask about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hope_core import Variant
from hope_core.modeling import install
from pipelines import features
from pipelines.asked import FolderQuestions
from pipelines.benchmarks.folder import SOURCE, FolderBenchmark, FolderBudget, folder_frames_stage, media_digest
from pipelines.benchmarks.niah import NiahBenchmark
from pipelines.benchmarks.ruler import RulerBenchmark, Task
from pipelines.engine import Artifact, StageConfig
from pipelines.features import FeaturesIdentity
from pipelines.models import PAD, SPECIAL_TOKENS, build_model
from pipelines.preprocess import PreprocessPlacement
from pipelines.video.budget import FrameBudget
from pipelines.video.synthetic import VALUES, encode_mp4, haystack_frames, needle_frame
from tests.pipelines.world import MODEL

PREAMBLE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
POSTPROMPT = "<|im_end|>\n<|im_start|>assistant\n"
COLOURS = ("red", "green", "blue", "yellow", "cyan")
ASK = "Answer with the option's letter from the given choices directly."
BUDGET = FolderBudget(fps=2.0, max_frames=48, frame_height=32, frame_width=32)


def write_folder(root: Path, *, num_films: int = 2, film_cells: int = 24) -> Path:
    """`haystack/`, `needles/` and the record files of V-NIAH, V-NIAH-D and V-RULER."""
    rng = np.random.default_rng(5)
    for folder in ("haystack", "needles", "videos"):
        (root / folder).mkdir(parents=True)
    for number in range(num_films):
        encode_mp4(root / "haystack" / f"movie{number}.mp4", haystack_frames(rng, 2 * film_cells, 32), fps=2.0)
    for number in range(2):
        encode_mp4(root / "videos" / f"clip{number}.mp4", haystack_frames(rng, 8, 32), fps=2.0)
    for number, colour in enumerate(COLOURS):
        Image.fromarray(needle_frame(rng, colour, VALUES[number], 32)).save(root / "needles" / f"{colour}.png")
    records = [
        {
            "path": f"{colour}.png",
            "interrupt_path": f"{COLOURS[(number + 1) % 5]}.png",
            "prompt": f"\nFind the frame with a {colour} border. Which number is in it?\nA. {number}\nB. 7\n{ASK}",
            "answer": f"A. {number}",
        }
        for number, colour in enumerate(COLOURS)
    ]
    _write(root / "dataset.json", records)
    ask = f"How many red frames?\nA. 0\nB. 1\nC. 2\n{ASK}"
    _write(root / "counting.json", [{"path": ["red.png"] * n, "prompt": ask, "answer": "ABC"[n]} for n in range(3)])
    ask = f"In which order?\nA. red, blue\n{ASK}"
    _write(root / "ordering.json", [{"path": ["red.png", "blue.png"], "prompt": ask, "answer": "A"}])
    ask = f"Which numbers?\nC. 0, 2, 4\n{ASK}"
    keys = [{"path": "['red.png', 'blue.png', 'cyan.png']", "prompt": ask, "answer": "C"}]
    _write(root / "multi_key_multi_value.json", keys)
    stack = [
        {
            "video_id": f"clip{number}",
            "question": "What color are these words?",
            "candidates": ["All are red", "All are black"],
            "correct_choice": number,
            "id": f"clip{number}_0",
            "video_path": f"clip{number}.mp4",
            "answer": ["(A) All are red", "(B) All are black"][number],
        }
        for number in range(2)
    ]
    _write(root / "lengthy_multimodal_stack.json", stack)
    return root


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(records, indent=4), encoding="utf-8")


def niah(root: Path, **settings: Any) -> NiahBenchmark:
    values: dict[str, Any] = {
        "kind": "niah",
        "name": "v_niah_published",
        "root": str(root),
        "records": "dataset.json",
        "films": "haystack",
        "pictures": "needles",
        "budget": BUDGET,
        "contexts": (6, 12, 18),
        "depths": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "distractor_period": 0,
        "num_validation_films": 1,
        "preamble": PREAMBLE,
        "postprompt": POSTPROMPT,
        "seed": 0,
    }
    return NiahBenchmark(**values | settings)


def ruler(root: Path, task: Task, **settings: Any) -> RulerBenchmark:
    values: dict[str, Any] = {
        "kind": "ruler",
        "name": f"v_ruler_{task}",
        "task": task,
        "root": str(root),
        "records": f"{task}.json",
        "films": "videos" if task == "lengthy_multimodal_stack" else "haystack",
        "pictures": "needles",
        "budget": BUDGET,
        "contexts": (8, 16),
        "depths": (0.0, 0.4, 0.8),
        "depth_window": 0.2,
        "num_validation_films": 1,
        "preamble": PREAMBLE,
        "postprompt": POSTPROMPT,
        "seed": 0,
    }
    return RulerBenchmark(**values | settings)


def asked_in_a_study(root: Path) -> list[str]:
    """Overrides that ask 10 questions of V-NIAH, 10 of V-NIAH-D and 2 of V-RULER a context of this folder."""
    contexts = {"v_niah_published": "[6,12]", "v_niah_d_published": "[6,12]", "v_ruler_multi_key": "[12]"}
    settings = {
        "root": root,
        "depths": "[0.0,0.6]",
        "num_validation_films": 1,
        "budget": f"{{fps: {BUDGET.fps}, max_frames: {BUDGET.max_frames}, frame_height: 32, frame_width: 32}}",
    }
    return [
        *(f"benchmark={name}" for name in contexts),
        *(f"benchmarks.{name}.{key}={value}" for name in contexts for key, value in settings.items()),
        *(f"benchmarks.{name}.contexts={lengths}" for name, lengths in contexts.items()),
        *(f"benchmarks.{name}.records=dataset.json" for name in contexts if "niah" in name),
        "benchmarks.v_niah_d_published.distractor_period=3",
    ]


def byte_pair_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE such as Qwen2's, trained on a few texts: a word is several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS, "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token="<|im_end|>", additional_special_tokens=special[1:]
    )


def evaluation_inputs(
    out: Path, benchmark: FolderBenchmark, asked: FolderQuestions, variant: Variant
) -> dict[str, Artifact]:
    """The artifacts that an evaluation of an untrained model of this variant rests on, made in this process."""
    texts = [f"{PREAMBLE}{record.prompt}{record.answer}{POSTPROMPT}" for record in asked.records]
    tokenizer = byte_pair_tokenizer(texts)
    model = build_model(MODEL, tokenizer, seed=1)
    install(model, variant)
    model.save_pretrained(out / "tuned" / "checkpoint")
    tokenizer.save_pretrained(out / "tuned" / "checkpoint")
    checkpoint = Artifact("finetune", "checkpoint", out / "tuned", {})
    budget = FrameBudget(
        fps=benchmark.budget.fps, max_frames=benchmark.budget.max_frames, frame_size=(32, 32), patch_size=8
    )
    placement = PreprocessPlacement(cache_dir=str(out / "cache"), num_workers=0, timeout_s=600)
    root = Path(benchmark.root)
    content = media_digest(root, benchmark.patterns)
    stage = folder_frames_stage(benchmark.name, root, benchmark.patterns, content, budget, placement)
    stage.run(stage.config, {}, out / "frames")
    frames = Artifact("frames", "frames", out / "frames", {})
    (out / "features").mkdir()
    features.run(
        StageConfig(FeaturesIdentity((f"{SOURCE}/",))), {"checkpoint": checkpoint, "frames": frames}, out / "features"
    )
    return {"checkpoint": checkpoint, "features": Artifact("features", "features", out / "features", {})}
