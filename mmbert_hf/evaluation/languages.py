"""Masked loss and translation retrieval of a model, language by language, as scores.

Design decisions:

- The numbers are those of `mmbert_hf.evaluation.masked` and `mmbert_hf.evaluation.bitext`; here texts come in and scores
  come out.
- Nats per byte compare across tokenizers only where the bytes of the tokens add up to those of the text. Where they do not
  (an unknown token, a vocabulary without U+2581), they are left out rather than wrong.
- In bitext retrieval a pair of languages is scored in both directions, on its own sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmbert_hf.evaluation.bitext import bitext_retrieval
from mmbert_hf.evaluation.masked import FixedMasks, masked_scores, token_byte_lengths
from mmbert_hf.evaluation.results import Score, SetName

__all__ = ["evaluate_bitext", "evaluate_masked_loss", "read_parallel_texts"]

BYTES_TOLERANCE = 0.02  # as a share: what lower-case or composed characters change


def evaluate_masked_loss(
    model: Any,
    tokenizer: Any,
    texts: Mapping[SetName, Sequence[Any]],
    *,
    mask_ratio: float = 0.15,
    max_length: int = 512,
    seed: int = 0,
    tokens_per_batch: int = 8192,
) -> list[Score]:
    """Measure a masked language model on texts of several languages, with fixed masks.

    Args:
        model: Any masked language model of transformers or of this package.
        tokenizer: Of the model.
        texts: For each set, whose language has to be named, texts or token ids.
        mask_ratio: Share of the tokens that are to be predicted.
        max_length: Longest row in tokens.
        seed: Of the masks.
        tokens_per_batch: As for `masked_scores`.

    Returns:
        nats_per_token, nats_per_byte where it can be told, and accuracy of each language.

    Raises:
        ValueError: A language without text or without anything masked, or a tokenizer without the tokens that are needed.

    Example:
        >>> import mmbert_hf
        >>> tokenizer = mmbert_hf.MMBertTokenizer.train(["ein tvey trý fýra fimm"] * 9, vocab_size=300)
        >>> config = mmbert_hf.MMBertConfig.small(vocab_size=len(tokenizer), num_hidden_layers=1)
        >>> model = mmbert_hf.MMBertForMaskedLM(config)
        >>> scores = evaluate_masked_loss(model, tokenizer, {SetName("own.txt", "fao"): ["ein tvey trý"] * 9}, mask_ratio=0.5)
        >>> [(score.language, score.metric) for score in scores]
        [('fao', 'nats_per_token'), ('fao', 'nats_per_byte'), ('fao', 'accuracy')]
    """
    missing = [name for name in ("bos", "eos", "mask", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise ValueError(f"the tokenizer ({type(tokenizer).__name__}) has no {' and no '.join(missing)} token")
    by_language = {name.language or name.dataset: list(own) for name, own in texts.items()}
    if len(by_language) < len(texts):
        raise ValueError("a language comes twice: give each once, with all of its texts")
    masks = FixedMasks(by_language, tokenizer, mask_ratio=mask_ratio, max_length=max_length, seed=seed)
    found = masked_scores(model, masks, tokens_per_batch=tokens_per_batch)
    scores = []
    for name, (code, own) in zip(texts, by_language.items(), strict=True):
        score = found[code]
        values = {"nats_per_token": score.nats_per_token}
        if _bytes_add_up(tokenizer, own):
            values["nats_per_byte"] = score.nats_per_byte
        values["accuracy"] = score.accuracy
        scores += [
            Score("fill-mask", name.dataset, metric, value, higher_is_better=metric == "accuracy", language=name.language,
                  num_examples=score.num_masked_tokens, config=name.config, split=name.split)
            for metric, value in values.items()
        ]  # fmt: skip
    return scores


def evaluate_bitext(
    embed: Callable[[Sequence[str]], np.ndarray], pairs: Mapping[SetName, tuple[Sequence[str], Sequence[str]]]
) -> list[Score]:
    """Measure whether sentences find their translations, in both directions.

    Args:
        embed: From texts to vectors [texts, dimensions].
        pairs: For each set, whose language is named as "dan-fao", as many sentences of the one as of the other.

    Returns:
        accuracy of each direction, and what guessing would score (`chance`).

    Raises:
        ValueError: Fewer than two pairs, a language that is not named as one of two, or two equal sentences: neither could
            be told from the other.

    Example:
        >>> vectors = {"ja": [1.0, 0.0], "yes": [1.0, 0.1], "nei": [0.0, 1.0], "no": [0.1, 1.0]}
        >>> pairs = {SetName("own.csv", "fao-eng"): (["ja", "nei"], ["yes", "no"])}
        >>> [(score.language, score.value) for score in evaluate_bitext(lambda t: np.array([vectors[x] for x in t]), pairs)
        ...  if score.metric == "accuracy"]
        [('fao-eng', 1.0), ('eng-fao', 1.0)]
    """
    scores = []
    for name, (sources, targets) in pairs.items():
        codes = (name.language or "").split("-")
        if len(codes) != 2 or codes[0] == codes[1]:
            raise ValueError(f"{name.language!r} does not name two languages, such as dan-fao")
        vectors = {code: dict(enumerate(embed(own))) for code, own in zip(codes, (sources, targets), strict=True)}
        found = bitext_retrieval(vectors)
        for source, target in (codes, codes[::-1]):
            values = {"accuracy": found.per_language[source], "chance": found.chance}
            scores += [
                Score("sentence-similarity", name.dataset, metric, value, language=f"{source}-{target}",
                      num_examples=len(sources), config=name.config, split=name.split)
                for metric, value in values.items()
            ]  # fmt: skip
    return scores


def read_parallel_texts(rows: Any, first: str, second: str) -> tuple[list[str], list[str]]:
    """Take sentences and their translations out of a data set.

    Args:
        rows: `datasets.Dataset` with a column for each of the languages, or a column `translation` of such mappings, or
            the columns sentence1 and sentence2.
        first: Code of the first language, which is its column's name.
        second: Code of the second.

    Returns:
        Two lists of one length, rows whose two sentences both came before left out.

    Raises:
        ValueError: Columns are missing, a text is none, or one sentence has several translations, of which only one would
            count as right.

    Example:
        >>> from datasets import Dataset
        >>> read_parallel_texts(Dataset.from_dict({"fao": ["ja", "nei"], "eng": ["yes", "no"]}), "fao", "eng")
        (['ja', 'nei'], ['yes', 'no'])
    """
    columns = rows.column_names
    if {first, second} <= set(columns):
        pairs = zip(rows[first], rows[second], strict=True)
    elif "translation" in columns and len(rows) and {first, second} <= set(rows[0]["translation"]):
        pairs = ((row[first], row[second]) for row in rows["translation"])  # type: ignore[assignment]
    elif {"sentence1", "sentence2"} <= set(columns):
        pairs = zip(rows["sentence1"], rows["sentence2"], strict=True)
    else:
        raise ValueError(f"expected the columns {first} and {second}, or sentence1 and sentence2, got {columns}")
    unique = list(dict.fromkeys(pairs))
    wrong = [pair for pair in unique if not all(isinstance(text, str) and text.strip() for text in pair)]
    if wrong:
        raise ValueError(f"{len(wrong)} rows lack a sentence, the first is {wrong[0]!r:.80}")
    for side in (0, 1):
        texts = [pair[side] for pair in unique]
        if len(set(texts)) < len(texts):
            twice = next(text for place, text in enumerate(texts) if text in texts[:place])
            raise ValueError(f"{twice!r:.60} stands with different translations: only one of them would count as right")
    if len(unique) < 2:
        raise ValueError(f"there are {len(unique)} different pairs; at least two are needed")
    return [first for first, _ in unique], [second for _, second in unique]


def _bytes_add_up(tokenizer: Any, texts: Sequence[Any]) -> bool:
    """Whether the bytes that tokens are counted with are those of the text."""
    if not isinstance(texts[0], str):
        return True  # token ids of a store: made with this package's tokenizer
    lengths = token_byte_lengths(tokenizer)
    counted = sum(int(lengths[ids].sum()) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"])
    real = sum(len(text.encode()) for text in texts)
    spaces = len(texts)  # some tokenizers put one in front of a text
    return abs(counted - real) <= spaces + BYTES_TOLERANCE * real
