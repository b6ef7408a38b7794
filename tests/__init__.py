import os

# Before torch is imported: several test processes share the cores, and OpenMP threads that outnumber them spin in
# each other's way (a second's work took over a minute).
os.environ.setdefault("OMP_NUM_THREADS", "1")
