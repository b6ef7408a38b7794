"""Speed and memory, as ratios in one run: `make bench`."""

import os

# torch's profiler, which measures memory, otherwise writes a line per start and stop; read when torch is imported
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
