"""Everything offline, on the CPU, with the deterministic weights of `testing_utils`."""

import os
import sys
from pathlib import Path

# The models are tiny: more threads only wait for each other, and one gives the same bits everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

sys.path.insert(0, str(Path(__file__).parent))
