"""Numbers of tokens as people write them: 200M, 1.5B."""

import re
from decimal import Decimal

MULTIPLES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
NUMBER = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([KMBT]?)", re.IGNORECASE)


def parse_tokens(value: int | float | str) -> int:
    """Reads a number of tokens.

    Args:
        value: A whole number, or a text with K, M, B or T behind it.

    Returns:
        The number.

    Raises:
        ValueError: It is neither, not whole, or below 1.

    Example:
        >>> parse_tokens("200M"), parse_tokens("1.5B"), parse_tokens(5000)
        (200000000, 1500000000, 5000)
    """
    match = NUMBER.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    number = Decimal(re.sub("[_,]", "", match[1])) * MULTIPLES[match[2].upper()] if match else Decimal(0)
    if number < 1 or number != int(number):
        raise ValueError(f"expected a number of tokens such as 5000, 200M or 1.5B, at least 1, got {value!r}")
    return int(number)
