"""Single files of a model, in a folder or on the Hub; and its tokenizer, if it has one."""

from pathlib import Path
from typing import Any

__all__ = ["fetch_file", "load_tokenizer"]

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model",
                   "sentencepiece.bpe.model", "spiece.model")  # fmt: skip


def fetch_file(folder_or_name: str, file: str, revision: str | None = None, token: str | None = None) -> Path | None:
    """The path of one file of a model, downloaded if need be.

    Args:
        folder_or_name: A folder, or ``owner/name``.
        file: Its name in there.
        revision: Branch, tag or commit on the Hub.
        token: Of the Hub.

    Returns:
        The path; None if the model has no such file.

    Raises:
        OSError: The Hub has no such model, or cannot be reached.
    """
    if Path(folder_or_name).is_dir():
        path = Path(folder_or_name, file)
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(folder_or_name, file, revision=revision, token=token))
    except LocalEntryNotFoundError:  # a subclass of the next one: no connection
        raise
    except EntryNotFoundError:
        return None


def load_tokenizer(folder_or_name: str) -> Any:
    """Load the tokenizer of a model with AutoTokenizer.

    transformers 5 gives a model without a tokenizer an empty one of its type, which makes every word unknown.

    Args:
        folder_or_name: A folder, or ``owner/name``.

    Raises:
        ValueError: There is no file of a tokenizer.
        OSError: The Hub has no such model, or cannot be reached.
    """
    from transformers import AutoTokenizer

    if all(fetch_file(folder_or_name, name) is None for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder_or_name} has no tokenizer, so nothing says what its tokens mean: save one there with "
            "tokenizer.save_pretrained"
        )
    return AutoTokenizer.from_pretrained(folder_or_name)
