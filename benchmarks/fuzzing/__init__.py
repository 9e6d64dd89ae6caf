"""Cases for onnxq that are made from a number: valid models, damaged ones, samples, settings."""

import os

# Before numpy is imported: a process with threads is no good to fork.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
