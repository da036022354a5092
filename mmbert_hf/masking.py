"""Masked-language-model inputs: which tokens to predict, and what stands in their place.

Design decisions:

- Of the tokens chosen, 80 % become the mask token, 10 % a random token, 10 % stay (BERT, and mmBERT's training code).
  Random tokens are drawn from the real vocabulary, never from special tokens.
- Special tokens are not chosen unless asked for; the authors' code does choose them.
- A row of a `PackedMixture` carries its number and its mask ratio. A sample that carries its place in the run (`sample_index`, `progress`: what `LanguageMixture` yields) is masked from
  a generator seeded by (seed, sample_index), at the ratio that the schedule has at its own progress. So masks do not
  depend on the number of workers, on prefetching or on a resume. Samples of any other data set use torch's global
  generator and the ratio that `AnnealingCallback` last set, which lives in shared memory so that worker processes see
  it, late by the batches already prefetched.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmbert_hf.schedules import Schedule, as_schedule, check_fraction, check_fraction_schedule

IGNORE_INDEX = -100
MASK_TOKEN_SHARE, RANDOM_TOKEN_SHARE = 0.8, 0.1


def mask_tokens(
    input_ids: torch.Tensor,
    maskable: torch.Tensor,
    mask_ratio: float,
    mask_token_id: int,
    random_token_ids: torch.Tensor,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose tokens to predict and replace them (BERT; 80 % mask token, 10 % random token, 10 % unchanged).

    Args:
        input_ids: Token ids, any shape, int64. Not changed.
        maskable: Where a token may be chosen; same shape, bool.
        mask_ratio: Probability that a maskable token is chosen, in [0, 1].
        mask_token_id: Id of the mask token.
        random_token_ids: Ids that a random replacement is drawn from; 1-D int64, not empty.
        generator: Source of randomness; torch's global one if None.

    Returns:
        The replaced ids and the labels, both int64 of the same shape; labels are -100 where nothing is predicted.

    Raises:
        ValueError: For a ratio outside [0, 1] or nothing to draw random tokens from.

    Example:
        >>> ids = torch.tensor([2, 17, 18, 1])
        >>> masked, labels = mask_tokens(ids, ids > 4, 1.0, mask_token_id=4, random_token_ids=torch.arange(5, 20))
        >>> labels.tolist()
        [-100, 17, 18, -100]
    """
    check_fraction("mask_ratio", mask_ratio)
    if random_token_ids.numel() == 0:
        raise ValueError("random_token_ids is empty; the vocabulary has no token besides the special ones")
    chosen = (torch.rand(input_ids.shape, generator=generator) < mask_ratio) & maskable
    fate = torch.rand(input_ids.shape, generator=generator)
    drawn = torch.randint(len(random_token_ids), input_ids.shape, generator=generator)
    labels = input_ids.masked_fill(~chosen, IGNORE_INDEX)
    masked = input_ids.masked_fill(chosen & (fate < MASK_TOKEN_SHARE), mask_token_id)
    replace = chosen & (fate >= MASK_TOKEN_SHARE) & (fate < MASK_TOKEN_SHARE + RANDOM_TOKEN_SHARE)
    return torch.where(replace, random_token_ids[drawn], masked), labels


class MaskingCollator:
    """Pads samples to a batch and masks them, at a ratio that may fall during training.

    Args:
        tokenizer: Gives padding, the mask token and the special ids.
        mask_ratio: A number in [0, 1], or a schedule (``at(progress)``). `AnnealingCallback` sets it during training.
        mask_special_tokens: Also choose special tokens, as the authors' code does.
        pad_to_multiple_of: Pad the batch to a multiple of this many tokens.
        seed: For samples that carry `sample_index`.

    Raises:
        ValueError: No mask or padding token, or a ratio outside [0, 1].

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> tokenizer = MMBertTokenizer.train(["one two three"] * 9, vocab_size=300)
        >>> collator = MaskingCollator(tokenizer, mask_ratio=0.15)
        >>> batch = collator([tokenizer("one two"), tokenizer("one two three")])
        >>> sorted(batch), batch["input_ids"].shape == batch["labels"].shape
        (['attention_mask', 'input_ids', 'labels'], True)
    """

    def __init__(
        self,
        tokenizer: Any,
        mask_ratio: float | Schedule = 0.3,
        *,
        mask_special_tokens: bool = False,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, use in (("mask", "predict"), ("pad", "pad with")):
            if getattr(tokenizer, f"{name}_token_id") is None:
                raise ValueError(
                    f"the tokenizer ({type(tokenizer).__name__}) has no {name} token, so there is nothing to {use}; "
                    f"add one with tokenizer.add_special_tokens({{'{name}_token': '<{name}>'}})"
                )
        self.tokenizer = tokenizer
        self.mask_special_tokens = mask_special_tokens
        self.pad_to_multiple_of = pad_to_multiple_of
        self.seed = seed
        special = set(tokenizer.all_special_ids)
        self._special_ids = torch.tensor(sorted(special))
        self._random_ids = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
        self._current = torch.zeros(1, dtype=torch.float64).share_memory_()
        self.mask_ratio = as_schedule(mask_ratio)

    @property
    def mask_ratio(self) -> Schedule:
        """The mask ratio over progress, for samples that carry their progress."""
        return self._schedule

    @mask_ratio.setter
    def mask_ratio(self, value: float | Schedule) -> None:
        self._schedule = check_fraction_schedule("mask_ratio", as_schedule(value))
        self.current_mask_ratio = self._schedule.at(0.0)

    @property
    def current_mask_ratio(self) -> float:
        """The ratio for samples that do not carry their progress; shared with worker processes."""
        return float(self._current.item())

    @current_mask_ratio.setter
    def current_mask_ratio(self, value: float) -> None:
        self._current[0] = check_fraction("mask_ratio", value)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each int64 of shape [samples, longest sample]."""
        longest = max(len(sample["input_ids"]) for sample in samples)
        if self.pad_to_multiple_of:
            longest += -longest % self.pad_to_multiple_of
        shape = (len(samples), longest)
        input_ids = torch.full(shape, self.tokenizer.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX)
        for row, sample in enumerate(samples):
            ids = torch.as_tensor(sample["input_ids"], dtype=torch.long)
            where = slice(-len(ids), None) if self.tokenizer.padding_side == "left" else slice(len(ids))
            input_ids[row, where], labels[row, where] = self.mask(ids, sample)
            attention_mask[row, where] = torch.as_tensor(sample.get("attention_mask", torch.ones_like(ids)))
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def mask(
        self, input_ids: torch.Tensor, sample: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask one sample; `sample` may carry `sample_index` and `progress`. See `mask_tokens` for the result."""
        sample = sample if sample is not None else {}
        ratio = self._ratio(sample)
        generator = None
        if "sample_index" in sample:
            generator = torch.Generator().manual_seed(hash((self.seed, int(sample["sample_index"]))) & (2**63 - 1))
        maskable = torch.ones_like(input_ids, dtype=torch.bool)
        if not self.mask_special_tokens:
            maskable = ~torch.isin(input_ids, self._special_ids)
        elif "attention_mask" in sample:
            maskable = torch.as_tensor(sample["attention_mask"]).bool()
        return mask_tokens(input_ids, maskable, ratio, self.tokenizer.mask_token_id, self._random_ids, generator)

    def _ratio(self, sample: Mapping[str, Any]) -> float:
        if "mask_ratio" in sample:
            return float(sample["mask_ratio"])
        return self._schedule.at(float(sample["progress"])) if "progress" in sample else self.current_mask_ratio


class PackingCollator(MaskingCollator):
    """Joins packed rows to one row without padding, and masks them: what `PackedMixture` is read with.

    A row of a `PackedMixture` says how long its documents are (`document_lengths`), which mask ratio it has and which
    number, so its masks depend on nothing else. Rows of other data sets are one document each.

    Args:
        tokenizer: Gives the mask token and the special ids.
        mask_ratio: For rows that carry none.
        mask_special_tokens: Also choose special tokens, as the authors' code does.
        seed: Of the masks.

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> tokenizer = MMBertTokenizer.train(["one two three"] * 9, vocab_size=300)
        >>> batch = PackingCollator(tokenizer)([tokenizer("one two"), tokenizer("one two three")])
        >>> batch["input_ids"].shape[0], len(batch["cu_seq_lens_q"]), sorted(batch)
        (1, 3, ['cu_seq_lens_q', 'input_ids', 'labels', 'max_length_q'])
    """

    def __init__(
        self,
        tokenizer: Any,
        mask_ratio: float | Schedule = 0.3,
        *,
        mask_special_tokens: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, mask_ratio, mask_special_tokens=mask_special_tokens, seed=seed)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Join rows.

        Returns:
            `input_ids` and `labels`, int64 [1, tokens]; `cu_seq_lens_q`, int32 [documents + 1], where documents begin
            and the last one ends; `max_length_q`, int, tokens in the longest.
        """
        masked = [self.mask(torch.as_tensor(sample["input_ids"], dtype=torch.long), sample) for sample in samples]
        lengths = torch.cat([_document_lengths(sample) for sample in samples])
        input_ids, labels = (torch.cat(parts)[None] for parts in zip(*masked, strict=True))
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "cu_seq_lens_q": ends,
            "max_length_q": int(lengths.max()),
        }


def _document_lengths(sample: Mapping[str, Any]) -> torch.Tensor:
    """Return the tokens of each document of a row, int64 [documents]; a row that does not say is one document."""
    num_tokens = len(sample["input_ids"])
    lengths = torch.as_tensor(sample.get("document_lengths", [num_tokens])).long()
    if int(lengths.sum()) != num_tokens:
        raise ValueError(
            f"document_lengths of row {sample.get('sample_index', '?')} sum to {int(lengths.sum())}, but it has "
            f"{num_tokens} tokens; every token belongs to one document"
        )
    return lengths
