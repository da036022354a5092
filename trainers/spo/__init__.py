"""Single-stream Policy Optimization (arXiv 2509.13232): one response per prompt, a baseline that remembers.

`SPOTrainer` and `SPOConfig` plug into TRL; `ValueTracker` is NumPy alone and needs none of it.
"""

from typing import TYPE_CHECKING

from mmbert_hf._lazy import attach

if TYPE_CHECKING:
    from mmbert_hf.trainers.spo.config import SPOConfig
    from mmbert_hf.trainers.spo.python_tool import PythonTool
    from mmbert_hf.trainers.spo.tracker import ValueTracker
    from mmbert_hf.trainers.spo.tracker_files import load_tracker
    from mmbert_hf.trainers.spo.trainer import SPOTrainer

_HOME = {
    "PythonTool": "mmbert_hf.trainers.spo.python_tool",
    "SPOConfig": "mmbert_hf.trainers.spo.config",
    "SPOTrainer": "mmbert_hf.trainers.spo.trainer",
    "ValueTracker": "mmbert_hf.trainers.spo.tracker",
    "load_tracker": "mmbert_hf.trainers.spo.tracker_files",
}

__all__ = ["PythonTool", "SPOConfig", "SPOTrainer", "ValueTracker", "load_tracker"]

__getattr__, __dir__ = attach(globals(), _HOME)
