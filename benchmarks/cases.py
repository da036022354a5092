"""What is measured: the batches.

Design decisions:

- A case fixes the lengths of the sequences and nothing else. Token ids are random: speed does not depend on them.
- The lengths of ``mixed`` come from Python's generator with a seed of their own, so the case is the same for every
  ``--seed`` and on every machine. `--seed` decides weights and token ids.
- Every batch has a [B, L] attention mask, all ones where nothing is padded, as tokenizers give it.

Shape legend: B sequences, L length of the longest in tokens.
"""

import math
import random
from dataclasses import dataclass
from typing import Any, Literal

import torch

__all__ = ["CASES", "LABEL_RATIO", "Batch", "Case", "Kind", "Mode", "make_batch", "mixed_lengths"]

Kind = Literal["encoder", "masked_lm"]
Mode = Literal["inference", "training"]

PAD_ID, MASK_ID, FIRST_WORD_ID = 0, 4, 5  # as in mmBERT; ids below 5 are special
LABEL_RATIO = 0.30  # of the first phase of mmBERT
# Median and log-deviation of the mixed lengths, and the seed that gives about 44 % real tokens.
MIXED_MEDIAN_TOKENS, MIXED_SIGMA, MIXED_SEED = 185, 0.8, 0


def mixed_lengths(sequences: int = 16, shortest: int = 16, longest: int = 512) -> tuple[int, ...]:
    """Lognormal lengths, the same at every call.

    Args:
        sequences: How many lengths.
        shortest: Lengths below this are raised to it, in tokens.
        longest: Lengths above this are cut to it, in tokens.

    Returns:
        The lengths in tokens.

    Example:
        >>> lengths = mixed_lengths()
        >>> len(lengths), min(lengths) >= 16, max(lengths)
        (16, True, 512)
        >>> round(sum(lengths) / (len(lengths) * max(lengths)), 2)
        0.44
    """
    generator = random.Random(MIXED_SEED)
    drawn = [generator.lognormvariate(math.log(MIXED_MEDIAN_TOKENS), MIXED_SIGMA) for _ in range(sequences)]
    return tuple(min(longest, max(shortest, round(length))) for length in drawn)


@dataclass(frozen=True)
class Case:
    """One batch to measure.

    Attributes:
        name: As given on the command line.
        lengths: Real tokens of each sequence.
        kind: Whether the bare encoder or the masked language model is measured.
        modes: What is measured of it.
    """

    name: str
    lengths: tuple[int, ...]
    kind: Kind = "encoder"
    modes: tuple[Mode, ...] = ("inference", "training")

    @property
    def length(self) -> int:
        """Length of the padded batch in tokens."""
        return max(self.lengths)

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)

    @property
    def real_share(self) -> float:
        """Real tokens / all tokens of the padded batch."""
        return self.real_tokens / (len(self.lengths) * self.length)

    @property
    def labelled_tokens(self) -> int:
        """Tokens with a label: none for the encoder, 30 % of the real ones for the masked language model."""
        return round(LABEL_RATIO * self.real_tokens) if self.kind == "masked_lm" else 0

    def as_json(self) -> dict[str, Any]:
        """The case in plain values."""
        return {
            "case": self.name,
            "kind": self.kind,
            "sequences": len(self.lengths),
            "length_tokens": self.length,
            "lengths_tokens": list(self.lengths),
            "real_tokens": self.real_tokens,
            "real_share": self.real_share,
            "labelled_tokens": self.labelled_tokens,
        }


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("mixed", mixed_lengths()),
        Case("4x512", (512,) * 4),
        Case("1x2048", (2048,)),
        Case("1x8192", (8192,)),
        Case("128x8", (8,) * 128),
        Case("mlm", (512,) * 8, kind="masked_lm", modes=("training",)),
    )
}


@dataclass(frozen=True)
class Batch:
    """Inputs of one step.

    Attributes:
        input_ids: [B, L], int64.
        attention_mask: [B, L], int64, 1 at real tokens.
        labels: [B, L], int64, -100 where nothing is predicted; None for the encoder.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor | None


def make_batch(case: Case, vocabulary: int, seed: int, device: str = "cpu") -> Batch:
    """Random tokens in the lengths of a case, padded on the right.

    Args:
        case: Gives the lengths, and whether there are labels.
        vocabulary: Number of token ids.
        seed: Of the token ids and of the places of the labels.
        device: Where to put the tensors; they are drawn on the CPU and the same everywhere.

    Returns:
        The batch.

    Example:
        >>> batch = make_batch(Case("tiny", (3, 2)), vocabulary=100, seed=0)
        >>> batch.attention_mask
        tensor([[1, 1, 1],
                [1, 1, 0]])
        >>> batch.input_ids[1, 2].item(), batch.labels
        (0, None)
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(case.lengths), case.length)
    real = torch.arange(case.length)[None] < torch.tensor(case.lengths)[:, None]
    input_ids = torch.randint(FIRST_WORD_ID, vocabulary, shape, generator=generator).masked_fill(~real, PAD_ID)
    labels = None
    if case.kind == "masked_lm":
        places = real.flatten().nonzero().flatten()
        chosen = places[torch.randperm(len(places), generator=generator)[: case.labelled_tokens]]
        labelled = torch.zeros(real.numel(), dtype=torch.bool).index_fill(0, chosen, True).view(shape)
        labels = input_ids.masked_fill(~labelled, -100).to(device)
        input_ids = input_ids.masked_fill(labelled, MASK_ID)
    return Batch(input_ids.to(device), real.long().to(device), labels)
