"""The benchmarks are scripts that import their siblings: put their folder where imports are looked for."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
