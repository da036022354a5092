"""Masked loss on held-out text, with masks that are fixed once and reused for every model.

Design decisions:

- The masks are drawn once, from a seed, and kept. Two models measured on the same `FixedMasks` differ by the models
  alone, and a difference of losses is a paired one.
- Nats per masked token depend on the tokenizer; nats per byte of the masked text do not, so they compare across
  tokenizers. Both are given.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mmbert_hf.data.mixture import cut
from mmbert_hf.masking import IGNORE_INDEX, MaskingCollator
from mmbert_hf.special_tokens import NUM_SPECIAL_TOKENS


@dataclass(frozen=True)
class MaskedScore:
    """Result on one language.

    Attributes:
        nats_per_token: Mean negative log-likelihood of the masked tokens.
        nats_per_byte: The same sum divided by the UTF-8 bytes that the masked tokens stand for.
        accuracy: Share of masked tokens whose most probable prediction is right.
        num_masked_tokens: Masked tokens measured.
    """

    nats_per_token: float
    nats_per_byte: float
    accuracy: float
    num_masked_tokens: int


class FixedMasks:
    """Held-out texts per language with masks drawn once.

    Args:
        texts: Per language a sequence of texts, or of token ids without special tokens.
        tokenizer: With a mask token.
        mask_ratio: In [0, 1].
        max_length: Longest row in tokens; longer texts are cut into pieces of nearly equal length.
        seed: Of the masks.

    Raises:
        ValueError: A language without text, or masks that leave a language nothing to predict.

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> tokenizer = MMBertTokenizer.train(["ein tvey trý fýra fimm"] * 9, vocab_size=300)
        >>> masks = FixedMasks({"fao": ["ein tvey trý fýra fimm"]}, tokenizer, mask_ratio=0.5, seed=1)
        >>> list(masks.rows), masks.rows["fao"][0][0].shape == masks.rows["fao"][0][1].shape
        (['fao'], True)
    """

    def __init__(
        self,
        texts: Mapping[str, Sequence[Any]],
        tokenizer: Any,
        *,
        mask_ratio: float = 0.15,
        max_length: int = 512,
        seed: int = 0,
    ) -> None:
        self.pad_token_id = tokenizer.pad_token_id
        self.token_bytes = token_byte_lengths(tokenizer)
        collator = MaskingCollator(tokenizer, mask_ratio, seed=seed)
        self.rows: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        index = 0
        for language, language_texts in texts.items():
            if not language_texts:
                raise ValueError(f"{language!r} has no held-out text; leave it out or give it some")
            rows = []
            for ids in _token_ids(list(language_texts), tokenizer):
                for start, stop in cut(len(ids), max_length - NUM_SPECIAL_TOKENS):
                    row = torch.tensor([tokenizer.bos_token_id, *ids[start:stop], tokenizer.eos_token_id])
                    rows.append(collator.mask(row, {"sample_index": index}))
                    index += 1
            if not any(bool((labels != IGNORE_INDEX).any()) for _, labels in rows):
                raise ValueError(
                    f"nothing is masked in the {len(rows)} held-out rows of {language!r}; "
                    "give more text or a higher mask_ratio"
                )
            self.rows[language] = rows


def _token_ids(documents: list[Any], tokenizer: Any) -> list[list[int]]:
    """Return token ids without special tokens, of texts or of what are token ids already."""
    if isinstance(documents[0], str):
        return tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return [[int(token) for token in document] for document in documents]


def token_byte_lengths(tokenizer: Any) -> torch.Tensor:
    """Return how many UTF-8 bytes of text each token stands for: int64 [vocabulary size].

    A word-boundary mark is one byte (a space), a byte-fallback token ``<0xE2>`` is one byte, special tokens are none.
    """
    special = set(tokenizer.all_special_ids)
    lengths = []
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if index in special:
            lengths.append(0)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            lengths.append(1)
        else:
            lengths.append(len(token.replace("\u2581", " ").encode()))
    return torch.tensor(lengths)


@torch.no_grad()
def masked_scores(
    model: Any, masks: FixedMasks, *, tokens_per_batch: int = 8192, languages: Sequence[str] | None = None
) -> dict[str, MaskedScore]:
    """Measure a masked language model on fixed masks.

    Args:
        model: A masked language model. Of those with `head` and `decoder` (MMBERT or ModernBERT), only the masked
            positions go through the vocabulary; of others all do.
        masks: What to predict.
        tokens_per_batch: Rows are sorted by length and batched up to this many tokens, padding included.
        languages: Only these; all if None.

    Returns:
        Per language the score.
    """
    chosen = list(masks.rows if languages is None else languages)
    rows = [(code, *row) for code in chosen for row in masks.rows[code]]
    rows.sort(key=lambda row: len(row[1]))
    position = {code: number for number, code in enumerate(chosen)}
    totals = torch.zeros(len(chosen), 4, dtype=torch.float64)  # nats, bytes, right, masked
    with _evaluating(model):
        for batch in _batches(rows, tokens_per_batch):
            totals += _score_batch(model, masks, batch, position)
    return {
        code: MaskedScore(nats / masked, nats / max(1.0, num_bytes), right / masked, int(masked))
        for code, (nats, num_bytes, right, masked) in zip(chosen, totals.tolist(), strict=True)
    }


@torch.no_grad()
def masked_losses(model: Any, masks: FixedMasks, *, tokens_per_batch: int = 8192) -> dict[str, float]:
    """Measure the loss of an `MMBertForMaskedLM` per language, through its forward alone.

    So it works wherever the model trains, also where its parameters are sharded over processes; every process measures
    everything. `masked_scores` gives more, and also measures transformers' ModernBERT.

    Args:
        model: The model, wrapped or not.
        masks: What to predict.
        tokens_per_batch: Packed rows are joined up to this many tokens.

    Returns:
        Per language the mean negative log-likelihood of its masked tokens, in nats.
    """
    with _evaluating(model):
        return {language: _mean_loss(model, rows, tokens_per_batch) for language, rows in masks.rows.items()}


def _mean_loss(model: Any, rows: list[Any], tokens_per_batch: int) -> float:
    """Return the mean loss of the masked tokens of one language's rows, in nats."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in _joined(rows, tokens_per_batch):
        ids, labels = (torch.cat(parts)[None].to(device) for parts in zip(*batch, strict=True))
        ends = torch.tensor([0, *(len(row) for row, _ in batch)]).cumsum(0).to(torch.int32)
        masked = int((labels != IGNORE_INDEX).sum())
        loss = model(input_ids=ids, labels=labels, cu_seq_lens_q=ends.to(device)).loss
        if masked:
            total, count = total + float(loss) * masked, count + masked
    return total / count


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode for a block, and back however it ends."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _joined(rows: list[Any], tokens_per_batch: int) -> list[list[Any]]:
    """Group rows so that their tokens stay within the budget, or one row that is longer."""
    batches: list[list[Any]] = [[]]
    tokens = 0
    for row in rows:
        if batches[-1] and tokens + len(row[0]) > tokens_per_batch:
            batches.append([])
            tokens = 0
        batches[-1].append(row)
        tokens += len(row[0])
    return batches


def _batches(rows: list[Any], tokens_per_batch: int) -> list[list[Any]]:
    """Group rows, sorted by length, so that rows x longest stays within the budget."""
    batches: list[list[Any]] = [[]]
    for row in rows:
        if batches[-1] and (len(batches[-1]) + 1) * len(row[1]) > tokens_per_batch:
            batches.append([])
        batches[-1].append(row)
    return batches


def _score_batch(model: Any, masks: FixedMasks, batch: list[Any], position: dict[str, int]) -> torch.Tensor:
    """Return the sums of one batch: float64 [languages, (nats, bytes, right, masked)]."""
    shape = (len(batch), len(batch[-1][1]))
    input_ids = torch.full(shape, masks.pad_token_id)
    labels = torch.full(shape, IGNORE_INDEX)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for number, (_, ids, row_labels) in enumerate(batch):
        input_ids[number, : len(ids)], labels[number, : len(ids)] = ids, row_labels
        attention_mask[number, : len(ids)] = 1
    device = model.device
    inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    chosen = labels != IGNORE_INDEX
    targets = labels[chosen]
    if hasattr(model, "head") and hasattr(model, "decoder"):
        logits = model.decoder(model.head(model.base_model(**inputs)[0][chosen.to(device)]))
    else:
        logits = model(**inputs).logits[chosen.to(device)]
    log_probabilities = logits.float().log_softmax(-1).cpu()
    nats = -log_probabilities.gather(1, targets[:, None])[:, 0]
    right = log_probabilities.argmax(-1) == targets
    columns = torch.stack(
        [nats.double(), masks.token_bytes[targets].double(), right.double(), torch.ones_like(nats).double()], 1
    )
    owner = torch.tensor([position[code] for code, _, _ in batch])[:, None].expand(shape)[chosen]
    return torch.zeros(len(position), 4, dtype=torch.float64).index_add_(0, owner, columns)
