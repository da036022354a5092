"""YAML files of settings: read key by key, with the line of each, so that a mistake is told with its place."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["nearest", "read_yaml"]


def read_yaml(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a mapping from a YAML file.

    Args:
        path: File.

    Returns:
        The mapping, and the line that each key stands in, from 1.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, not a mapping of names, or has a key twice; the message names the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "c.yaml")
        >>> _ = path.write_text("max_steps: 3\\nlearning_rate: 1e-6\\n")
        >>> read_yaml(path)
        ({'max_steps': 3, 'learning_rate': '1e-6'}, {'max_steps': 1, 'learning_rate': 2})
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}: --config takes a YAML file")
    try:
        text = Path(path).read_text(encoding="utf-8")
        node, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}{_where(error)}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    if content is None:
        return {}, {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path}: expected a mapping from names to values, got {type(content).__name__}")
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if key_node.value in lines:
            raise ValueError(
                f"{path}, line {line}: {key_node.value!r} is there twice, before in line {lines[key_node.value]}"
            )
        lines[key_node.value] = line
    return content, lines


def nearest(name: str, names: Iterable[str]) -> str:
    """The sentence that names the nearest of some names; empty if none is near.

    Example:
        >>> nearest("lerning_rate", ["learning_rate", "seed"])
        "; did you mean 'learning_rate'?"
    """
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _where(error: Any) -> str:
    """What an error of the YAML parser says, with its lines."""
    marks = {name: getattr(error, f"{name}_mark", None) for name in ("problem", "context")}
    lines = {name: f" line {mark.line + 1}" for name, mark in marks.items() if mark is not None}
    context = f" ({error.context} in{lines['context']})" if "context" in lines else ""
    return f"{',' if lines else ''}{lines.get('problem', '')}: not YAML: {getattr(error, 'problem', None) or error}{context}"
