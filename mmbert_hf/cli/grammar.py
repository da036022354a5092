"""What all verbs share: ``--config``, ``--dry-run``, ``--json``, ``--quiet``, ``--debug``, and how mistakes are told.

Design decisions:

- An option may stand in a YAML file under its own name, ``max-length`` or ``max_length``; so may what has no dashes, such as
  ``model``. Flags override the file. A value of the file is read as the flag of that name would read it, and a mistake in it
  is told with its line.
- Names that a verb does not know are mistakes, and the nearest that there is is named; but verbs that pass on what they do
  not know (`passes_on`) take them for arguments of the trainer.
- stdout is for the result. Trainers print their logs, too; while a verb runs these go to stderr.
- A mistake is one sentence on stderr, and the exit status 2. argparse's usage is for ``--help``.
- The verb ``spo`` has some 250 settings and reads its file by TRL's parser (`mmbert_hf.cli.spo_settings`).
"""

import argparse
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from mmbert_hf.cli.config_files import nearest, read_yaml

__all__ = ["VerbParser", "add_common_options", "begin", "result_alone", "show", "tell"]


class VerbParser(argparse.ArgumentParser):
    """An argument parser that reads ``--config``, says what is nearest to a mistake, and says it in one sentence."""

    reads_config = False
    passes_on = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places: dict[str, str] = {}
        self._given: list[str] = []

    def error(self, message: str) -> NoReturn:
        """Leave with one sentence, and status 2."""
        if message.startswith("the following arguments are required") and (wrong := self._unknown_options()):
            message = f"there is no option {wrong[0]!r}{nearest(wrong[0], self._option_string_actions)}; and {message}"
        print(f"{self.prog}: {with_places(message, self._places)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, behind what ``--config`` says."""
        words = self._given = list(sys.argv[1:] if args is None else args)
        more: list[str] = []
        if self.reads_config:
            try:
                first, more = self._from_file(words)
            except (ValueError, OSError) as error:
                self.error(str(error))
            words = [
                *first,
                *words,
            ]  # the last of `first` takes no more words, so what follows is not read as its value
        parsed, rest = super().parse_known_args(words, namespace)
        unknown = [word for word in rest if word.startswith("-")] or rest
        if self.reads_config:
            parsed.places = self._places
        if self.passes_on:
            parsed.own_options = [*self._option_string_actions]
        if unknown and not self.passes_on and self._subparsers is None:
            name = unknown[0].split("=")[0]
            self.error(f"there is no option {' '.join(rest)!r}{nearest(name, self._option_string_actions)}")
        return parsed, [*more, *rest]

    def _unknown_options(self) -> list[str]:
        """Options among the words that there are none of, also not for a trainer."""
        if self.passes_on or self._subparsers is not None:
            return []
        given = [word.partition("=")[0] for word in self._given if word.startswith("--") and len(word) > 2]
        return [word for word in given if not any(flag.startswith(word) for flag in self._option_string_actions)]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"{value!r} is none of {', '.join(names)}{nearest(str(value), names)}")

    def _from_file(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Words for what the file sets, to be put before those of the command line; and words for others to read."""
        path = _config_of(words)
        if path is None:
            return [], []
        content, lines = read_yaml(path)
        known, more = [], []
        for key, value in content.items():
            place, name = f"{path}, line {lines[key]}: ", key.replace("-", "_")
            action = self._named(name)
            if action is None and self.passes_on:
                more += _flag(name, value, place)
                self._places[f"--{name}"] = place.removesuffix(": ")
            elif action is None or name in ("config", "help"):
                names = [each.dest for each in self._actions if each.dest not in ("config", "help")]
                raise ValueError(f"{place}there is no option {key!r}{nearest(name, names)}")
            elif value is not None and not _is_given(action, words):
                known += self._words(action, value, place)
                self._places[action.option_strings[0] if action.option_strings else name] = place.removesuffix(": ")
        return [*known, f"--config={path}"], more

    def _named(self, name: str) -> argparse.Action | None:
        return next((action for action in self._actions if action.dest == name), None)

    def _words(self, action: argparse.Action, value: Any, place: str) -> list[str]:
        """An action's words for a value of the file; what has no flag becomes its default instead."""
        values = [f"{key}={each}" for key, each in value.items()] if isinstance(value, dict) else value
        is_list = isinstance(values, list)
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise ValueError(f"{place}{action.dest} must be true or false, got {value!r}")
            if action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
                return [action.option_strings[0]] if value else []
            return [action.option_strings[0 if value else 1]]
        takes_many = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
        if is_list and not takes_many:
            raise ValueError(f"{place}{action.dest} takes one value, got {value!r}")
        texts = [_text(each) for each in (values if is_list else [values])]
        for text in texts:
            try:
                self._check_value(action, self._get_value(action, text))
            except argparse.ArgumentError as error:
                raise ValueError(f"{place}{action.dest}: {error.message}") from error
        if not action.option_strings:
            action.required, action.nargs = False, "*" if takes_many else "?"
            action.default = [self._get_value(action, text) for text in texts] if takes_many else texts[0]
            return []
        flag = action.option_strings[0]
        if isinstance(action, argparse._AppendAction):
            return [word for text in texts for word in (flag, text)]
        return [f"{flag}={texts[0]}"] if action.nargs is None else [flag, *texts]


def with_places(message: str, places: dict[str, str]) -> str:
    """A message with the lines of the file in which the settings stand that it is about.

    Args:
        message: It names a flag, or begins with the name of a setting.
        places: Flag to place.

    Example:
        >>> with_places("sparsity is in [0, 1); got 2", {"--sparsity": "c.yaml, line 3", "--domain": "c.yaml, line 1"})
        'sparsity is in [0, 1); got 2 (--sparsity is set in c.yaml, line 3)'
    """
    named = []
    for flag, place in places.items():
        name = re.escape(flag.lstrip("-").replace("-", "_"))
        if re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", message) or re.match(rf"{name}\b", message):
            named.append(f"{flag} is set in {place}")
    return f"{message} ({'; '.join(named)})" if named else message


def _config_of(words: Sequence[str]) -> str | None:
    """The last file that the words name."""
    path = None
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            path = words[place + 1]
        elif word.startswith("--config="):
            path = word.partition("=")[2]
    return path


def _is_given(action: argparse.Action, words: Sequence[str]) -> bool:
    """Whether an option is among the words: flags override the file, also where they would only add to it."""
    return any(word == flag or word.startswith(f"{flag}=") for word in words for flag in action.option_strings)


def _flag(name: str, value: Any, place: str) -> list[str]:
    """Words of a setting that someone else reads."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{name}", *map(_text, value)]
    return [f"--{name}", _text(value)]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def add_common_options(
    parser: argparse.ArgumentParser,
    *,
    dry_run: str | None = "check the input and say what would be done; write nothing",
    config: bool = True,
    passes_on: bool = False,
) -> None:
    """Add the options that every verb has.

    Args:
        parser: Of the verb, with its own options.
        dry_run: Help of ``--dry-run``; None for a verb that only shows something.
        config: Add ``--config``; a verb that reads the file by itself does not want it.
        passes_on: What the verb does not know is for a trainer.
    """
    group = parser.add_argument_group("of every verb")
    if config:
        group.add_argument("--config", metavar="FILE.yaml", help="options by name; flags override it")
        parser.reads_config = True  # type: ignore[attr-defined]
    if dry_run is not None:
        group.add_argument("--dry-run", "--dry_run", action="store_true", help=dry_run)
    group.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    group.add_argument("--quiet", action="store_true", help="no progress bars and no notices, the result alone")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.passes_on = passes_on  # type: ignore[attr-defined]


def begin(args: argparse.Namespace, *, is_main: bool = True) -> None:
    """Set up what a verb says on its way: notices on stderr, and with ``--quiet`` or ``--json`` warnings alone."""
    is_quiet = args.quiet or args.json
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own: once is enough
    logging.getLogger("mmbert_hf").setLevel(logging.INFO if is_main and not is_quiet else logging.WARNING)
    if is_quiet:
        from mmbert_hf.cli.quiet import quiet_libraries

        quiet_libraries()


def tell(args: argparse.Namespace, facts: dict[str, Any], lines: Iterable[str]) -> None:
    """Print a result: as JSON, or as lines for a reader."""
    show(args, json.dumps(facts, ensure_ascii=False, allow_nan=False) if args.json else "\n".join(lines))


def show(args: argparse.Namespace, text: str) -> None:
    """Print to stdout as it was before `result_alone`."""
    print(text, file=getattr(args, "stdout", None))


@contextlib.contextmanager
def result_alone(args: argparse.Namespace) -> Iterator[None]:
    """Keep stdout for the result: what libraries print meanwhile goes to stderr, with ``--quiet`` nowhere."""
    args.stdout = sys.stdout
    with contextlib.ExitStack() as stack:
        elsewhere = stack.enter_context(open(os.devnull, "w")) if getattr(args, "quiet", False) else sys.stderr
        stack.enter_context(contextlib.redirect_stdout(elsewhere))
        yield
