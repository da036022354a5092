"""``mmbert --print-completion SHELL``: a script that lets a shell complete verbs, options, choices and file names."""

import argparse
from collections.abc import Iterator
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Prints the script, which shtab makes of the parser, and leaves."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, choices=SHELLS, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *__: Any) -> None:
        """Print and leave."""
        try:
            import shtab
        except ImportError:
            parser.error("--print-completion needs shtab: pip install 'mmbert-hf[completion]'")
        for action in _all_actions(parser):
            if action.nargs != 0 and action.choices is None and action.type in (None, str):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell))
        parser.exit()


def _all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _all_actions(below)
