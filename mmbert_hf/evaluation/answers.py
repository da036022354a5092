r"""The answer of a completion, and whether it equals another: as text, or as mathematics by ``math-verify``.

Design decisions:

- An answer has to be marked: by the last ``\boxed{...}``, by ``#### ...``, or by a line "Answer: ..." or "The answer is
  ...". Any number in a completion that was cut off would else vote as its answer. `MathChecker(anywhere=True)` takes the
  last formula or number where nothing is marked.
- A reference answer is the answer itself (``\frac12``, ``(3, 4)``, 7), or a solution in which it is marked.
- Reference and answer are both parsed as ``\boxed{...}``: bare, math-verify reads "3\pi" as 3 and "(3, 4)" as 4.
- Equal texts are equal answers whatever they say; else math-verify decides, and where it reads nothing they differ.
- math-verify limits its time by SIGALRM, which Python allows the main thread alone. Off the main thread there is an error
  and not a silent run without limit, in which one ``9^{9^{9^9}}`` lasts for ever. What runs out of time is unequal. A
  timer of the caller's on the same signal, which math-verify would cancel, goes on.
- ``verify`` takes the reference first and is not symmetric. Of two answers neither is the reference: they are the same
  if either order says so.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["Answer", "AnswerChecker", "ExactChecker", "MathChecker", "exact_match", "get_checker", "marked_answer"]

BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)  # an escaped brace is none
HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
STATED = re.compile(
    r"^[ \t*_#>-]*(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+)?answer(?:[\s*_]*:|\s+is\b:?)[\s*_]*(\S.{0,199})$",
    re.MULTILINE | re.IGNORECASE,
)
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")  # a word that is no command of LaTeX
WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*")
NUMBER_ALONE = re.compile(r"[-+]?[\d.,]*\d(?:\s*/\s*\d+)?\s*%?")


@dataclass(frozen=True)
class Answer:
    """An answer, as text and as what math-verify made of it.

    Attributes:
        text: Without the mark, outer dollar signs, and the full stop.
        parsed: Expressions of sympy; empty where there are none. They do not count when answers are compared by ``==``.
    """

    text: str
    parsed: tuple[Any, ...] = field(default=(), compare=False)


class AnswerChecker(Protocol):
    """What finds and compares answers."""

    name: str

    def extract(self, completion: str) -> Answer | None:
        """Return the answer of a completion, or None if it has none."""

    def reference(self, text: str) -> Answer:
        """Return a reference answer, or raise a ValueError if the text holds none."""

    def is_correct(self, answer: Answer | None, reference: Answer) -> bool:
        """Whether an answer equals the reference."""

    def is_same(self, answer: Answer, other: Answer) -> bool:
        """Whether two answers are equal, and vote together."""


def marked_answer(text: str) -> str | None:
    r"""Find the answer that a text marks as such.

    Args:
        text: A completion, or a solution.

    Returns:
        What is in the last closed and not empty ``\boxed{...}``; else what follows the last ``####``; else the rest of
        the last line that begins like "Answer: ..." or "The answer is ...", if that is at most 200 characters. None if
        there is none of them.

    Example:
        >>> marked_answer(r"First \boxed{1}. No: $\boxed{\frac{1}{2}}$."), marked_answer("2 + 2 = 4\n#### 4")
        ('\\frac{1}{2}', '4')
        >>> marked_answer("**Answer:** Monday."), marked_answer("It may be 3, or")
        ('Monday', None)
    """
    return _last_box(text) or _last_line(HASHES, text) or _last_line(STATED, text) or None


def exact_match(completion: str, reference: str) -> bool:
    r"""Whether a completion's answer is the reference, letter by letter; needs no package.

    Args:
        completion: Its answer is what it marks as such (`marked_answer`), or all of it if nothing is marked.
        reference: The right answer, or a solution that marks it.

    Returns:
        Whether the texts are equal but for white space, outer dollar signs, and a full stop at the end.

    Raises:
        ValueError: The reference is empty.

    Example:
        >>> exact_match(r"So it is \boxed{12}.", "12"), exact_match("12", "12"), exact_match("12.0", "12")
        (True, True, False)
    """
    checker = ExactChecker()
    return checker.is_correct(checker.extract(completion), checker.reference(reference))


class ExactChecker:
    """Answers are equal if their texts are.

    Example:
        >>> checker = ExactChecker()
        >>> checker.extract(r"Hence \\boxed{ a  cat }."), checker.extract("  ")
        (Answer(text='a cat', parsed=()), None)
    """

    name = "exact"

    def extract(self, completion: str) -> Answer | None:
        """Return the marked answer of a completion, or all of it; None if it is empty."""
        text = marked_answer(completion) or _clean(completion)
        return Answer(text) if text else None

    def reference(self, text: str) -> Answer:
        """Return a reference answer.

        Args:
            text: The answer itself, or a solution that marks it.

        Raises:
            ValueError: There is nothing in it.
        """
        return Answer(_reference_text(text))

    def is_correct(self, answer: Answer | None, reference: Answer) -> bool:
        """Whether an answer is the reference."""
        return answer is not None and answer.text == reference.text

    def is_same(self, answer: Answer, other: Answer) -> bool:
        """Whether two answers are one."""
        return answer.text == other.text


class MathChecker:
    r"""Answers are equal if they are so as mathematics: ``\frac12``, ``1/2`` and ``0.5``.

    Numbers agree to six decimal places, and a percentage equals both its number and its value (50 % is 50 and 0.5), as
    math-verify has it.

    Args:
        anywhere: Where a completion marks no answer, take the last formula or number in it.
        timeout_seconds: For parsing one answer, and for one comparison; whole seconds. None for no limit, which is what
            a thread other than the main one has to ask for.

    Raises:
        ValueError: math-verify is missing, or the time is no positive integer. Off the main thread, every method that
            parses or compares raises one too, unless there is no limit.

    Example:
        >>> checker = MathChecker()
        >>> answer = checker.extract(r"Therefore $\boxed{\frac12}$.")
        >>> answer.text, checker.is_correct(answer, checker.reference("0.5"))
        ('\\frac12', True)
        >>> checker.is_same(answer, checker.extract("The answer is 2/4."))
        True
    """

    name = "math"

    def __init__(self, *, anywhere: bool = False, timeout_seconds: int | None = 5) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "comparing answers as mathematics needs math-verify, which is not installed: "
                "pip install 'mmbert-hf[reasoning]', or compare them as text by the checker 'exact'"
            )
        if timeout_seconds is not None and (not isinstance(timeout_seconds, int) or timeout_seconds < 1):
            raise ValueError(f"timeout_seconds must be a whole number of at least 1, or None, got {timeout_seconds!r}")
        self.anywhere, self.timeout_seconds = anywhere, timeout_seconds

    def extract(self, completion: str) -> Answer | None:
        """Return the answer of a completion.

        Args:
            completion: Its answer is what it marks as such; what math-verify finds after the word "answer"; or all of
                it, if that is a number or a formula between dollar signs. With `anywhere` also its last formula or
                number.

        Returns:
            The answer, or None.

        Raises:
            ValueError: Called off the main thread with a time limit.
        """
        if text := _last_box(completion) or _last_line(HASHES, completion):
            return self._parse(text)
        if text := _last_line(STATED, completion):  # "The answer is $7$, because ...": math-verify knows where it ends
            found = self._search(f"Answer: {text}", anywhere=False) if PROSE.search(text) else None
            return found or self._parse(text)
        whole = completion.strip(" \t\r\n*")
        if NUMBER_ALONE.fullmatch(whole.rstrip(".")) or re.fullmatch(r"\$[^$]+\$", whole):
            return self._parse(_clean(whole))
        return self._search(completion, anywhere=self.anywhere)

    def reference(self, text: str) -> Answer:
        """Return a reference answer.

        Args:
            text: The answer itself, or a solution that marks it.

        Raises:
            ValueError: There is nothing in it, or called off the main thread with a time limit.
        """
        return self._parse(_reference_text(text))

    def is_correct(self, answer: Answer | None, reference: Answer) -> bool:
        """Whether an answer equals the reference.

        Args:
            answer: From `extract`.
            reference: From `reference`.

        Raises:
            ValueError: Called off the main thread with a time limit.
        """
        return answer is not None and (answer.text == reference.text or self._verify(reference, answer))

    def is_same(self, answer: Answer, other: Answer) -> bool:
        """Whether two answers are equal, in either order.

        Args:
            answer: From `extract`.
            other: From `extract`.

        Raises:
            ValueError: Called off the main thread with a time limit.
        """
        return answer.text == other.text or self._verify(answer, other) or self._verify(other, answer)

    def _parse(self, text: str) -> Answer:
        from math_verify import LatexExtractionConfig

        inside = f"\\text{{{text}}}" if WORDS.fullmatch(text) else text  # products of letters: lemon is melon
        found = self._found(f"\\boxed{{{inside}}}", [LatexExtractionConfig(boxed_match_priority=0)])
        return Answer(text, () if found is None else found.parsed)

    def _search(self, text: str, *, anywhere: bool) -> Answer | None:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig

        return self._found(text, [kind(anywhere) for kind in (LatexExtractionConfig, ExprExtractionConfig)])

    def _found(self, text: str, kinds: list[Any]) -> Answer | None:
        """What math-verify reads: expressions, and last the text that they were read from."""
        from math_verify import parse

        with self._limited():
            found = parse(text, kinds, parsing_timeout=self.timeout_seconds)
        return Answer(_clean(str(found[-1])), tuple(found)) if found else None

    def _verify(self, reference: Answer, answer: Answer) -> bool:
        from math_verify import verify

        if not reference.parsed or not answer.parsed:
            return False
        with self._limited():
            return bool(verify(list(reference.parsed), list(answer.parsed), timeout_seconds=self.timeout_seconds))

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Refuse a time limit that cannot be kept, and let another timer on the same signal go on afterwards."""
        if self.timeout_seconds is None:
            yield
            return
        if threading.current_thread() is not threading.main_thread():
            raise ValueError(
                "answers are compared under a time limit that needs the main thread: call from there, or make "
                "MathChecker(timeout_seconds=None), which may take for ever on an expression such as 9^9^9^9"
            )
        before, started = signal.getitimer(signal.ITIMER_REAL), time.monotonic()
        try:
            yield
        finally:
            if before[0]:
                left = before[0] - (time.monotonic() - started)
                signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6), before[1])


def get_checker(name: Literal["math", "exact"], *, anywhere: bool = False) -> AnswerChecker:
    """Return a checker by its name.

    Args:
        name: "math" or "exact".
        anywhere: For "math": where a completion marks no answer, take the last formula or number in it.

    Raises:
        ValueError: There is no such checker, it has no such option, or math-verify is missing.

    Example:
        >>> get_checker("exact").name
        'exact'
    """
    if name == "math":
        return MathChecker(anywhere=anywhere)
    if name != "exact":
        raise ValueError(f"checker must be 'math' or 'exact', got {name!r}")
    if anywhere:
        raise ValueError("to look for an answer anywhere is for the checker 'math'")
    return ExactChecker()


def _reference_text(text: str) -> str:
    answer = marked_answer(text) or _clean(text)
    if not answer:
        raise ValueError(f"a reference answer is empty, got {text!r}: give the right answer, or leave the problem out")
    return answer


def _last_line(pattern: re.Pattern[str], text: str) -> str:
    """What the last match that is not empty captures; "" without one."""
    found = [content for match in pattern.finditer(text) if (content := _clean(match[1]))]
    return found[-1] if found else ""


def _last_box(text: str) -> str:
    """What is in the box that begins last, of those that are closed and not empty; "" without one. Linear in the text."""
    open_braces: list[int | None] = []  # where the content begins, of those that are of a box
    start, content = -1, ""
    for match in BRACES.finditer(text):
        if match["box"]:
            open_braces.append(match.end())
        elif match[0] == "{":
            open_braces.append(None)
        elif match[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened is not None and opened > start and (inside := _clean(text[opened : match.start()])):
                start, content = opened, inside
    return content


def _clean(text: str) -> str:
    """Without outer dollar signs, marks of emphasis and a full stop; white space is one space."""
    text = " ".join(text.split()).strip("*_ ")
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip("*_ ")
    is_formula = len(text) > 2 and text.startswith("$") and text.endswith("$") and text.count("$") == 2
    return text[1:-1].strip() if is_formula else text
