"""Arithmetic as a task that can be checked: prompts such as ``7+15=``, a tokenizer that knows nothing else, and a reward.

Design decisions:

- All of it is made, nothing is stored: the same arguments give the same prompts, in the same order, everywhere.
- One task in many sizes. With a modulus, and a tokenizer that has a token for every number, an answer is one token; with
  a token for every digit it is several, and `reverse_answers` has them in the order in which a sum is worked out.
- Of more pairs than can be listed, some are drawn by a seeded permutation that is not stored either.
- A split is by a hash of the seed and the prompt. So it does not depend on the order of the prompts, and a larger share
  holds what a smaller one holds.
- The tokenizer refuses what is not arithmetic, instead of reading it as one and the same unknown token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert_hf.data.permutation import IndexPermutation

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "OPERATIONS",
    "arithmetic_examples",
    "arithmetic_tokenizer",
    "encode_answers",
    "exact_answer",
    "split_examples",
]

OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
PAD, EOS = "<pad>", "<eos>"
IGNORED = -100  # label of a token that the loss leaves out


def arithmetic_examples(
    modulus: int | None = None,
    operations: str = "+",
    *,
    operands: Sequence[int] | None = None,
    num_examples: int | None = None,
    answer_digits: int | None = None,
    reverse_answers: bool = False,
    seed: int = 0,
) -> Dataset:
    """Make prompts with two operands, and their answers.

    Args:
        modulus: Answers are taken modulo this; None for plain integers.
        operations: One or more of ``+-*``.
        operands: Numbers that both sides are taken from, each at least 0, such as ``range(10, 100)`` for two digits. From
            0 to the modulus if None.
        num_examples: Draw so many, in random order; all, in their order, if None or if there are no more.
        answer_digits: Write answers with so many digits, zeros in front.
        reverse_answers: Write the last digit first.
        seed: Of the draw.

    Returns:
        Columns prompt and answer, both text. No prompt occurs twice.

    Raises:
        ValueError: A modulus below 2, an unknown operation or one given twice, no operands or not different ones of at
            least 0, a size below 1, or an answer with more digits than `answer_digits`.

    Example:
        >>> arithmetic_examples(23)[7 * 23 + 15]
        {'prompt': '7+15=', 'answer': '22'}
        >>> arithmetic_examples(operands=range(10, 100), num_examples=1, answer_digits=3, reverse_answers=True)[0]
        {'prompt': '69+77=', 'answer': '641'}
    """
    operands = _checked(modulus, operations, operands, num_examples, answer_digits)
    from datasets import Dataset

    total = len(operations) * len(operands) ** 2
    places = np.arange(total) if num_examples is None or num_examples >= total else None
    if places is None:
        places = IndexPermutation(total, seed)(np.arange(num_examples))
    prompts, answers = [], []
    for place in places.tolist():
        number, pair = divmod(place, len(operands) ** 2)
        a, b = (operands[index] for index in divmod(pair, len(operands)))
        value = OPERATIONS[operations[number]](a, b)
        prompts.append(f"{a}{operations[number]}{b}=")
        answers.append(_write(value if modulus is None else value % modulus, answer_digits, reverse_answers))
    return Dataset.from_dict({"prompt": prompts, "answer": answers})


def _checked(
    modulus: int | None,
    operations: str,
    operands: Sequence[int] | None,
    num_examples: int | None,
    answer_digits: int | None,
) -> Sequence[int]:
    """Return the operands, after looking at all arguments."""
    if modulus is not None and modulus < 2:
        raise ValueError(f"modulus must be at least 2, got {modulus}; None for plain integers")
    if not operations or set(operations) - set(OPERATIONS) or len(set(operations)) < len(operations):
        raise ValueError(f"operations must be some of {''.join(OPERATIONS)}, each once, got {operations!r}")
    if operands is None:
        if modulus is None:
            raise ValueError("without a modulus there is no end of numbers: give operands, such as range(100)")
        operands = range(modulus)
    if not len(operands) or min(operands) < 0 or len(set(operands)) < len(operands):
        raise ValueError(f"operands must be different numbers of at least 0, one or more, got {operands!r}")
    for name, value in (("num_examples", num_examples), ("answer_digits", answer_digits)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return operands


def _write(value: int, digits: int | None, reverse: bool) -> str:
    text = str(abs(value)).zfill(digits or 1)
    if digits is not None and len(text) > digits:
        raise ValueError(f"the answer {value} has more than {digits} digits: raise answer_digits")
    return ("-" if value < 0 else "") + (text[::-1] if reverse else text)


def split_examples(examples: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split examples into two, by a hash of the seed and the prompt.

    Args:
        examples: With a column prompt, in which no prompt occurs twice.
        share: Of the first part, in [0, 1]; rounded to whole examples.
        seed: Of the hash.

    Returns:
        Both parts, in the order of the examples. The first part of a larger share holds that of a smaller one.

    Raises:
        ValueError: The share is outside [0, 1].

    Example:
        >>> some, rest = split_examples(arithmetic_examples(23), 0.3)
        >>> len(some), len(rest), set(some["prompt"]) & set(rest["prompt"])
        (159, 370, set())
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    keys = [hashlib.sha256(f"{seed}:{prompt}".encode()).digest() for prompt in examples["prompt"]]
    chosen = set(sorted(range(len(keys)), key=keys.__getitem__)[: round(share * len(keys))])
    parts = ([row for row in range(len(keys)) if (row in chosen) is wanted] for wanted in (True, False))
    first, second = (examples.select(rows) for rows in parts)
    return first, second


def arithmetic_tokenizer(numbers: int | None = None) -> PreTrainedTokenizerFast:
    """Make a tokenizer for arithmetic, fixed by its argument. It pads on the left, as generation needs it.

    Args:
        numbers: Every number below this is one token; None for one token a digit. Text of several numbers is decoded with
            blanks between them, text of digits without.

    Returns:
        A tokenizer of ``<pad>`` (0), ``<eos>`` (1), the three operations, ``=``, and the numbers. It adds no special
        tokens, and raises an error for anything else.

    Raises:
        ValueError: There is no number.

    Example:
        >>> tokenizer = arithmetic_tokenizer(23)
        >>> tokenizer.tokenize("7+15="), len(tokenizer)
        (['7', '+', '15', '='], 29)
        >>> arithmetic_tokenizer().decode(arithmetic_tokenizer()("7+15=")["input_ids"])
        '7+15='
    """
    if numbers is not None and numbers < 1:
        raise ValueError(f"numbers must be at least 1, got {numbers}; None for one token a digit")
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, EOS, *OPERATIONS, "=", *map(str, range(10 if numbers is None else numbers))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    pattern = r"\S" if numbers is None else r"\d+|[^\s\d]"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(pattern), "isolated")]
    )
    if numbers is None:
        backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, padding_side="left")


def encode_answers(examples: Dataset, tokenizer: Any) -> Dataset:
    """Encode prompts with their answers and the end, for fitting a causal model to the answers.

    Args:
        examples: Columns prompt and answer.
        tokenizer: With an end-of-sequence token.

    Returns:
        Columns input_ids and labels, lists of the same length; labels of the prompt are -100, which the loss leaves out.

    Example:
        >>> encode_answers(arithmetic_examples(2), arithmetic_tokenizer(2))[1]
        {'input_ids': [6, 2, 7, 5, 7, 1], 'labels': [-100, -100, -100, -100, 7, 1]}
    """

    def encode(example: Mapping[str, str]) -> dict[str, list[int]]:
        prompt, answer = (
            tokenizer(example[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "answer")
        )
        answer = [*answer, tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}

    from datasets import Dataset

    rows = [encode(example) for example in examples]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "labels")})


def exact_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Reward an answer that is right to the last digit, as `GRPOTrainer` and `SPOTrainer` call it.

    Args:
        completions: Texts, or conversations whose last message counts.
        answer: The right answers.
        _: Other columns; not looked at.

    Returns:
        1.0 where a completion has the words of the answer and no others, else 0.0. White space counts as a boundary of
        words and no more: "1 5" is not 15.

    Example:
        >>> exact_answer(["22", " 22 ", "2", "2 2"], ["22"] * 4)
        [1.0, 1.0, 0.0, 0.0]
    """
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    return [float(text.split() == right.split()) for text, right in zip(texts, answer, strict=True)]
