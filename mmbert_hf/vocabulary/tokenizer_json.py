"""A tokenizer with the tokens of a plan, and nothing else changed.

Design decisions:

- `tokenizer.json` is edited, the one place that has all: vocabulary, merges, added tokens, template, padding. Normalizer,
  pre-tokenizer and decoder know no ids and stay as they are.
- The rest of the tokenizer object is a copy, of the same class. What it remembers of the old vocabulary (tables kept by
  constructors, paths of files) is replaced or removed, so that nothing saves the old one.
- A merge stays if and only if its parts and its product stay, in the old order.
"""

import copy
import json
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from mmbert_hf.vocabulary.plan import VocabularyPlan, backend_of, required_ids
from mmbert_hf.vocabulary.rules import BPERules, merge_pair, rules_of

#: What a tokenizer may remember of the file that it came from.
FILE_ATTRIBUTES = ("vocab_file", "merges_file", "tokenizer_file")
AnyTokenizer = TypeVar("AnyTokenizer")


def apply_to_tokenizer(tokenizer: AnyTokenizer, plan: VocabularyPlan) -> AnyTokenizer:
    """Make a tokenizer with the tokens that a plan keeps.

    Args:
        tokenizer: The fast tokenizer that the plan was made for. It is not changed.
        plan: The plan.

    Returns:
        A new tokenizer of the same class, with the same settings.

    Raises:
        TypeError: The tokenizer is not a fast one.
        ValueError: The plan is for a vocabulary of another size, drops a token that must stay, or the tokenizer gives
            ids that do not run through from 0.

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> from mmbert_hf.vocabulary import plan_trim
        >>> tokenizer = MMBertTokenizer.train(["the cat sat", "ein hund"] * 4, vocab_size=320)
        >>> small = apply_to_tokenizer(tokenizer, plan_trim(tokenizer, ["the cat sat"]))
        >>> small.tokenize("the cat sat") == tokenizer.tokenize("the cat sat"), len(small) < len(tokenizer)
        (True, True)
    """
    source = backend_of(tokenizer)
    spec = json.loads(source.to_str())
    old = source.get_vocab(with_added_tokens=True)
    if max(old.values()) + 1 != plan.old_size:
        raise ValueError(f"the plan is for {plan.old_size} ids, but the tokenizer has {max(old.values()) + 1}")
    missing = required_ids(spec, rules_of(spec["model"])) - set(plan.kept_ids.tolist())
    if missing:
        tokens = [source.id_to_token(id_) for id_ in sorted(missing)]
        raise ValueError(
            f"the plan drops {len(missing)} special tokens or characters that must stay, such as {tokens[:5]}: make it "
            "with plan_trim"
        )
    new_ids = plan.new_ids
    model = spec["model"]
    old_merges = model.get("merges")
    spec["model"] = trimmed_model(model, new_ids)
    _renumber(spec, new_ids)
    backend = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    backend.encode_special_tokens = source.encode_special_tokens
    expected = {token: int(new_ids[id_]) for token, id_ in old.items() if new_ids[id_] >= 0}
    if backend.get_vocab(with_added_tokens=True) != expected:
        raise ValueError(
            "the added tokens of this tokenizer do not come after the others, so its ids cannot be closed up; save it, "
            "load it again, and see that len(tokenizer) is its highest id and 1"
        )
    return _copied(tokenizer, backend, spec["model"], has_merges=old_merges is not None)


def trimmed_model(model: dict[str, Any], new_ids: np.ndarray) -> dict[str, Any]:
    """The `model` of a `tokenizer.json` with some tokens only.

    Args:
        model: The parsed `model` object. It is not changed.
        new_ids: New id of each old one, -1 for those that go; int64 [O].

    Returns:
        The new object.
    """
    model = dict(model)
    if model["type"] == "Unigram":
        model["vocab"] = [entry for entry, new in zip(model["vocab"], new_ids, strict=False) if new >= 0]
        if model.get("unk_id") is not None:
            model["unk_id"] = int(new_ids[model["unk_id"]])
        return model
    rules = BPERules(model) if model["type"] == "BPE" else None
    vocabulary = {token: int(new_ids[id_]) for token, id_ in model["vocab"].items() if new_ids[id_] >= 0}
    model["vocab"] = vocabulary
    if rules is not None:
        pairs = (merge_pair(merge) for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if all(token in vocabulary for token in (*pair, rules.product(pair)))]
    return model


def _renumber(spec: dict[str, Any], new_ids: np.ndarray) -> None:
    """Give added tokens, template and padding their new ids, in place."""
    for entry in spec["added_tokens"]:
        entry["id"] = int(new_ids[entry["id"]])
    if spec.get("padding"):
        spec["padding"]["pad_id"] = int(new_ids[spec["padding"]["pad_id"]])
    pending = [spec["post_processor"]] if spec["post_processor"] else []
    while pending:
        processor = pending.pop()
        pending.extend(processor.get("processors", ()))
        if processor["type"] in ("BertProcessing", "RobertaProcessing"):
            for name in ("sep", "cls"):
                processor[name][1] = int(new_ids[processor[name][1]])
        if processor["type"] == "TemplateProcessing":
            for token in processor["special_tokens"].values():
                token["ids"] = [int(new_ids[id_]) for id_ in token["ids"]]


def _copied(tokenizer: Any, backend: Tokenizer, model: dict[str, Any], *, has_merges: bool) -> Any:
    """A copy of the tokenizer around another backend."""
    # deepcopy takes what the memo has in place of a copy: neither the old backend nor its tables are copied.
    memo: dict[int, Any] = {id(tokenizer._tokenizer): backend}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = [tuple(entry) for entry in vocabulary]
    tables = {"_vocab": vocabulary} | ({"_merges": model["merges"]} if has_merges else {})
    for name, table in tables.items():
        if (remembered := getattr(tokenizer, name, None)) is not None:
            memo[id(remembered)] = table
    new = copy.deepcopy(tokenizer, memo)
    for name in FILE_ATTRIBUTES:
        new.__dict__.pop(name, None)
        new.init_kwargs.pop(name, None)
    for name in ("vocab", "merges", "added_tokens_decoder"):
        new.init_kwargs.pop(name, None)
    return new
