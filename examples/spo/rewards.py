"""Reward functions for the examples: `reward_funcs: [rewards.py:correct]`.

A reward function gets every column of the data set, and the responses as `completions`: texts, or lists of messages where the
prompts are lists of messages. It returns a number for each response, or None where it has nothing to say.
"""

from typing import Any


def correct(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 for a response that is the answer and nothing else, 0 for any other."""
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]
