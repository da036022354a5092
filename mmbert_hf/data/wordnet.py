"""Triplets of noun, definition and another noun's definition, from WordNet 3.0.

Design decisions:

- The embedded file (`wordnet_triplets.jsonl.xz`, 0.4 MB, made by `tools/pack_wordnet.py`, which tells how) has two
  domains of about 6000 triplets: "living", which are animals and plants, and "general", which are all other nouns.
- The noun is cut out of its definition, which would be found by its letters otherwise; of a noun of several words, one
  may remain. Four of five negatives define a sibling, a noun of the same kind; the others are of the same subject field.
- A hash of the noun decides its split, train, selection (to choose by) or test (to look at once), and a negative is of
  the split of its anchor. So no anchor or definition of one split occurs in another.
- It is large enough to show that scoring, pruning and retraining work, and small enough to run anywhere.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["WORDNET_DOMAINS", "WORDNET_SPLITS", "load_wordnet_triplets"]

WORDNET_DOMAINS = ("living", "general")
WORDNET_SPLITS = ("train", "selection", "test")


def load_wordnet_triplets(domain: str, split: str = "train") -> Dataset:
    """Load the embedded triplets of a domain and a split. The file is parsed once per process.

    Args:
        domain: "living" or "general".
        split: "train", "selection" or "test".

    Returns:
        Columns anchor (a noun), positive (its definition) and negative (the definition of another noun).

    Raises:
        ValueError: There is no such domain or split.

    Example:
        >>> triplets = load_wordnet_triplets("living", "test")
        >>> triplets.column_names
        ['anchor', 'positive', 'negative']
        >>> load_wordnet_triplets("animals")
        Traceback (most recent call last):
            ...
        ValueError: there is no domain 'animals': choose 'living' or 'general'
    """
    for kind, value, choices in (("domain", domain, WORDNET_DOMAINS), ("split", split, WORDNET_SPLITS)):
        if value not in choices:
            *others, last = map(repr, choices)
            raise ValueError(f"there is no {kind} {value!r}: choose {', '.join(others)} or {last}")
    from datasets import Dataset

    rows = [record for record in _records() if record["domain"] == domain and record["split"] == split]
    return Dataset.from_dict({column: [row[column] for row in rows] for column in ("anchor", "positive", "negative")})


@cache
def _records() -> list[dict[str, str]]:
    """All triplets. The first line of the file is its provenance."""
    packed = files("mmbert_hf").joinpath("data", "wordnet_triplets.jsonl.xz").read_bytes()
    return [json.loads(line) for line in lzma.decompress(packed).decode("utf-8").split("\n")[1:] if line]
