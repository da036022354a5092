"""A small recipe of three phases, and documents for it."""

import pytest

from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.schedules import Trapezoid


@pytest.fixture
def recipe():
    """Three phases in 40 rows of 32 and 64 tokens; a learning-rate warm-up, a batch-size warm-up, a decay."""
    warmup, decay = Trapezoid(warmup=0.3), Trapezoid(decay=1.0, final=0.02)
    return Recipe(
        [
            Phase("pretrain", 0.5, ["dan", "eng"], 0.7, 0.3, 32, 1e4, 4e-3, warmup, 8e-5, 4, 2, 0.3),
            Phase("extend", 0.25, ["dan", "eng"], 0.5, 0.15, 64, 1.6e5, 4e-3, batch_rows=4),
            Phase("decay", 0.25, None, 0.3, 0.05, 64, 1.6e5, 2e-3, decay, 4e-5, batch_rows=4),
        ],
        total_tokens=4096,
    )


@pytest.fixture
def documents(sentences):
    return {code: sentences[code] * 20 for code in ("dan", "eng", "fao")}


@pytest.fixture
def make_args(tmp_path):
    from mmbert_hf import MLMConfig

    def make(**options):
        values = {
            "per_device_train_batch_size": 4,
            "max_repeats": None,
            "report_to": "none",
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        return MLMConfig(str(tmp_path / "run"), **{**values, **options})

    return make
