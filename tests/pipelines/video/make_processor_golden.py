"""Write processor_golden.npz and .json from transformers' own Qwen2VLVideoProcessor, the reference of the budget tests.

The processor needs torchvision, which does not load beside a CPU-only torch, so it is no dependency here. To run this,
unpack the wheel of torchvision 0.28.0 into a folder and start with it on PYTHONPATH:
    PYTHONPATH=<folder> python -m tests.pipelines.video.make_processor_golden
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch

# torchvision registers kernels for two operators that only its CUDA library defines.
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor  # noqa: E402
from transformers.video_utils import VideoMetadata  # noqa: E402

from tests.pipelines.video.clips import moving_frames  # noqa: E402

FOLDER = Path(__file__).parent
MAX_VIDEO_TOKENS = (2000, 9000, 128000)
FRAME_SHAPES = ((30, 30), (97, 203), (181, 321), (240, 426), (720, 1280), (1280, 720), (50, 1500))
SAMPLING = ((1, 30.0), (2, 30.0), (3, 30.0), (7, 30.0), (61, 29.97), (300, 30.0), (901, 25.0), (5000, 23.976))


def main() -> None:
    grids = []
    for (height, width), num_frames, tokens in itertools.product(FRAME_SHAPES, (2, 8, 32), MAX_VIDEO_TOKENS):
        processor = Qwen2VLVideoProcessor(cap_pixels_per_frame=True, max_video_tokens=tokens)
        video = torch.zeros(num_frames, 3, height, width, dtype=torch.uint8)
        grid = processor([video], return_tensors="pt")["video_grid_thw"][0].tolist()
        grids.append({"shape": [height, width], "num_frames": num_frames, "max_video_tokens": tokens, "grid": grid})
    sampling = []
    for (total, source_fps), fps in itertools.product(SAMPLING, (0.5, 2.0, 30.0)):
        if total > 1:  # the processor cannot sample less than a temporal patch
            metadata = VideoMetadata(total_num_frames=total, fps=source_fps)
            indices = Qwen2VLVideoProcessor(fps=fps, max_frames=128).sample_frames(metadata)
            sampling.append({"total": total, "source_fps": source_fps, "fps": fps, "indices": indices.tolist()})
    (FOLDER / "processor_golden.json").write_text(json.dumps({"grids": grids, "sampling": sampling}) + "\n")

    frames = torch.from_numpy(moving_frames(5, 60, 100)).permute(0, 3, 1, 2)
    aligned = torch.from_numpy(moving_frames(3, 56, 84)).permute(0, 3, 1, 2)
    small = Qwen2VLVideoProcessor(cap_pixels_per_frame=True, size={"shortest_edge": 56 * 56, "longest_edge": 56 * 84})
    resized = small([frames], return_tensors="np")["pixel_values_videos"]
    cut = small([aligned], do_resize=False, return_tensors="np")["pixel_values_videos"]
    np.savez_compressed(FOLDER / "processor_golden.npz", resized=resized, cut=cut)


if __name__ == "__main__":
    main()
