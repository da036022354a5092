"""The published recipes by name: every number of mmBERT's three phases, in one table.

Sources: mmBERT (arXiv 2509.06888), section 3 and appendix, and the authors' released training configurations. Where the
two differ both are here: ``-paper`` has the paper's numbers; ``-released`` has pre-training as long as the released
per-language table adds up to, and base its released mask ratio of 0.25. ``tiny`` is the same recipe for a laptop.

====================================  ==============  ===============
preset's difference                   base            small
====================================  ==============  ===============
learning rate in extension and decay  8e-4            4e-4
weight decay in extension and decay   8e-5            4e-5
learning-rate warm-up                 3B tokens       4B tokens
batch-size warm-up                    60B tokens      100B tokens
decay                                 1-sqrt to 2 %   linear to 4 %
====================================  ==============  ===============
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.schedules import Constant, Trapezoid

BILLION = 10**9
PAPER_TOKENS = (2300 * BILLION, 600 * BILLION, 100 * BILLION)
RELEASED_TOKENS = (1990 * BILLION, 600 * BILLION, 100 * BILLION)  # the released per-language table sums to 1.99T
BATCH_ROWS, MIN_BATCH_ROWS = 4608, 48


@dataclass(frozen=True)
class Preset:
    """A recipe with the size of the encoder that it was made for.

    Attributes:
        name: What `get_preset` finds it by.
        size: Of the encoder: ``"base"``, ``"small"`` or ``"tiny"`` (see `MMBertConfig`).
        recipe: The phases, their languages left open: the data says which there are.
    """

    name: str
    size: Literal["base", "small", "tiny"]
    recipe: Recipe


def get_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ValueError: There is none of that name; the message lists them.

    Example:
        >>> preset = get_preset("mmbert-small-paper")
        >>> [(phase.name, phase.mask_ratio) for phase in preset.recipe.phases]
        [('pretrain', 0.3), ('extend', 0.15), ('decay', 0.05)]
    """
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no preset is named {name!r}; there are {', '.join(PRESETS)}{hint}")


def _published(name: str, size: Literal["base", "small"], tokens: tuple[int, int, int], mask_ratio: float) -> Preset:
    total, base = sum(tokens), size == "base"
    warmup_tokens, batch_warmup_tokens = (3 * BILLION, 60 * BILLION) if base else (4 * BILLION, 100 * BILLION)
    late_rate, late_weight_decay = (8e-4, 8e-5) if base else (4e-4, 4e-5)
    decay = Trapezoid(decay=1.0, final=0.02) if base else Trapezoid(decay=1.0, final=0.04, shape="linear")
    phases = [
        Phase(
            "pretrain",
            tokens[0] / total,
            None,
            language_temperature=0.7,
            mask_ratio=mask_ratio,
            max_length=1024,
            rope_theta=10_000.0,
            learning_rate=8e-4,
            learning_rate_schedule=Trapezoid(warmup=warmup_tokens / tokens[0]),
            weight_decay=8e-5,
            batch_rows=BATCH_ROWS,
            min_batch_rows=MIN_BATCH_ROWS,
            batch_warmup=batch_warmup_tokens / tokens[0],
        ),
        Phase(
            "extend",
            tokens[1] / total,
            None,
            language_temperature=0.5,
            mask_ratio=0.15,
            max_length=8192,
            rope_theta=160_000.0,
            learning_rate=late_rate,
            learning_rate_schedule=Constant(1.0),
            weight_decay=late_weight_decay,
            batch_rows=BATCH_ROWS,
        ),
        Phase(
            "decay",
            tokens[2] / total,
            None,
            language_temperature=0.3,
            mask_ratio=0.05,
            max_length=8192,
            rope_theta=160_000.0,
            learning_rate=late_rate,
            learning_rate_schedule=decay,
            weight_decay=late_weight_decay,
            batch_rows=BATCH_ROWS,
        ),
    ]
    return Preset(name, size, Recipe(phases, total))


def _tiny() -> Preset:
    """Three phases in 20M tokens: minutes on a GPU, an hour or two on a laptop."""
    peak, rows = 2e-3, 32
    warmup = Trapezoid(warmup=0.1)
    phases = [
        Phase("pretrain", 0.6, None, 0.7, 0.30, 256, 10_000.0, peak, warmup, 8e-5, rows, 4, 0.1),
        Phase("extend", 0.2, None, 0.5, 0.15, 1024, 160_000.0, peak, batch_rows=rows // 4),
        Phase("decay", 0.2, None, 0.3, 0.05, 1024, 160_000.0, peak, Trapezoid(decay=1.0, final=0.02), 8e-5, rows // 4),
    ]
    return Preset("tiny", "tiny", Recipe(phases, 20_000_000))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _published("mmbert-base-paper", "base", PAPER_TOKENS, 0.30),
        _published("mmbert-base-released", "base", RELEASED_TOKENS, 0.25),
        _published("mmbert-small-paper", "small", PAPER_TOKENS, 0.30),
        _published("mmbert-small-released", "small", RELEASED_TOKENS, 0.30),
        _tiny(),
    )
}
