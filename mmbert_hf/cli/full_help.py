"""``--help-all``: the help of every setting that a verb passes on to transformers and TRL.

Design decisions:

- To make such a text takes torch, transformers and TRL, which take seconds to import. So it is kept in the cache of Hugging
  Face (`HF_HOME`), in ``mmbert-hf/help``, and shown at once from the second time on.
- The name of the file is a hash of what the text follows from: versions of the packages, and the files of this one. A text
  is never of another version.
"""

import argparse
import hashlib
import logging
import platform
from collections.abc import Callable
from functools import partial
from importlib import metadata, util
from pathlib import Path

__all__ = ["full_help", "help_file"]

logger = logging.getLogger(__name__)

PACKAGES = ("accelerate", "torch", "transformers", "trl")
COLUMNS = 100


def full_help(name: str, make: Callable[[], argparse.ArgumentParser]) -> str:
    """The help of a parser, without its usage: as it was kept, or else made now and kept.

    Args:
        name: Of the parser.
        make: Makes the parser; imports what it needs.
    """
    file = help_file(name)
    if file.is_file():
        return file.read_text(encoding="utf-8")
    from mmbert_hf.output_folders import write_whole

    parser = make()
    parser.usage = argparse.SUPPRESS
    parser.formatter_class = partial(parser.formatter_class, width=COLUMNS)  # type: ignore[call-arg]
    text = parser.format_help()
    try:
        write_whole(file, text)
    except OSError as error:  # a cache that cannot be written to is no reason to show no help
        logger.info("%s is not kept: %s", file, error)
    return text


def help_file(name: str) -> Path:
    """Where a text is kept that follows from what is installed."""
    from huggingface_hub.constants import HF_HOME

    facts = [platform.python_version(), *(f"{package} {metadata.version(package)}" for package in PACKAGES)]
    for package in ("mmbert_hf", "mmbert_hf.trainers"):
        spec = util.find_spec(package)
        assert spec is not None
        for folder in map(Path, spec.submodule_search_locations or ()):
            files = sorted((path, path.stat()) for path in folder.rglob("*.py"))
            facts += [f"{path} {stat.st_mtime_ns} {stat.st_size}" for path, stat in files]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return Path(HF_HOME) / "mmbert-hf" / "help" / f"{name}-{digest[:16]}.txt"
