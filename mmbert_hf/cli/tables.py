"""Tables as lines of text."""

import shutil


def format_table(rows: list[list[str]], width: int | None = None) -> str:
    """Rows of text as aligned columns, the first to the left; or on lines of its own, where the table would be too wide.

    Args:
        rows: Of the same length.
        width: Characters of a line that there are; None is the terminal's, and enough where there is none.

    Example:
        >>> rows = [["", "dense", "pruned"], ["bytes", "1,000", "50"]]
        >>> print(format_table(rows))
               dense  pruned
        bytes  1,000      50
        >>> print(format_table(rows, width=15))
          dense  pruned
        bytes
          1,000      50
    """
    if width is None:
        width = shutil.get_terminal_size(fallback=(1000, 24)).columns
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = ["".join(f"  {cell:>{size}}" for cell, size in zip(row[1:], widths[1:], strict=True)) for row in rows]
    if widths[0] + len(cells[0]) <= width:
        return "\n".join(f"{row[0]:<{widths[0]}}{rest}" for row, rest in zip(rows, cells, strict=True))
    return "\n".join(line for row, rest in zip(rows, cells, strict=True) for line in (row[0], rest) if line)
