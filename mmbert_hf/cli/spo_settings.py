"""The settings of ``mmbert spo``: a YAML file and flags, as TRL's own scripts take them, checked key by key.

Design decisions:

- The parser is TRL's, over the script's arguments, `SPOConfig`, `ModelConfig` and `DatasetMixtureConfig`. A file for
  ``trl grpo`` is one for ``mmbert spo``, but for what is about groups.
- TRL takes the values of a file as they are. Here each is read as the flag of the same name would be, so that a mistake is
  told with its line, before anything is loaded. A key that comes twice or that nobody knows is a mistake.
- What was given, and nothing else, is kept as a mapping (`Settings.given`). It is what a dry run prints, what the output
  folder keeps, and what the same command is compared with when it continues. Secrets are left out.
"""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple, NoReturn

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from mmbert_hf.cli.config_files import nearest, read_yaml
from mmbert_hf.cli.grammar import with_places
from mmbert_hf.trainers.spo.config import PAPER, SPOConfig

__all__ = ["SPOArguments", "Settings", "build_parser", "changed_settings", "read_settings"]

SECRETS = ("hub_token",)
# Types whose values are no lists and no mappings, by name, in words.
SCALARS = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}
# Settings that decide nothing about what is learned: a run goes on with others.
FREE = (
    *("output_dir", "logging_", "log_", "report_to", "run_name", "project", "trackio_", "disable_tqdm", "debug"),
    *("save_", "hub_", "push_", "eval_", "do_eval", "per_device_eval_", "num_generations_eval", "dataloader_"),
    *("vllm_server_", "vllm_gpu_memory_", "resume_from_checkpoint", "allow_change", "dataset_test_split"),
)


@dataclass
class SPOArguments(ScriptArguments):
    """What the verb needs besides the model and the arguments of the trainer."""

    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "File, folder or Hub name of what is evaluated on. Default: dataset_test_split of dataset_name."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: a file and a function in it (rewards.py:correct), an import path (package.rewards.correct), "
            "or a name of TRL's: accuracy_reward, reasoning_accuracy_reward, think_format_reward, get_soft_overlong_punishment."
        },
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a reward model, besides the functions."}
    )
    tools: list[str] | None = field(
        default=None,
        metadata={
            "help": "Tools that the model may call: functions, named as reward functions are, or 'python' for the sandbox."
        },
    )
    paper: bool = field(
        default=False,
        metadata={"help": "Start from the settings of the paper (SPOConfig.paper) and not from the defaults."},
    )
    push_tracker_to: str | None = field(
        default=None, metadata={"help": "Publish the values of all prompts as the data set owner/name at the end."}
    )
    allow_change: bool = field(
        default=False, metadata={"help": "Continue a checkpoint of a run with other settings all the same."}
    )


class Settings(NamedTuple):
    """What a file and flags say.

    Attributes:
        script: Data, rewards, tools.
        config: Arguments of the trainer.
        model: Model, LoRA, quantisation.
        mixture: Several data sets as one.
        given: All that was given and is not the default, as plain values; without secrets.
    """

    script: SPOArguments
    config: SPOConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    given: dict[str, Any]


def build_parser() -> TrlParser:
    """The parser of all settings. It raises ValueError where argparse would print its usage and exit."""
    types: Any = (SPOArguments, SPOConfig, ModelConfig, DatasetMixtureConfig)
    usage = "mmbert spo --config FILE.yaml [--NAME VALUE ...]"
    parser = TrlParser(types, prog="mmbert spo", usage=usage, allow_abbrev=False, add_help=False)

    def fail(message: str) -> NoReturn:
        raise ValueError(f"{message}; mmbert spo --help-all names all settings")

    parser.error = fail  # type: ignore[method-assign]
    return parser


def read_settings(config: str | os.PathLike[str] | None, words: Sequence[str] = ()) -> Settings:
    """Read a file and flags; flags override the file, which overrides the paper's settings if these are asked for.

    Args:
        config: YAML file, or None.
        words: Flags, as on a command line.

    Returns:
        The settings, checked one by one and, by `SPOConfig`, together. The variables below ``env:`` are set.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A name is unknown, a value cannot be read, or values do not go together.
    """
    content, lines = ({}, {}) if config is None else read_yaml(config)
    places = {key: f"{config}, line {line}: " for key, line in lines.items()}
    _set_variables(content.pop("env", {}), places.get("env", ""))
    parser = build_parser()
    actions = {action.dest: action for action in reversed(parser._actions)}  # --x, not its complement --no_x
    defaults = _parse(parser, [], actions)
    for key, value in content.items():
        if key not in actions:
            raise ValueError(f"{places[key]}there is no setting {key!r}{_nearest(key, actions)}")
        content[key] = _convert(actions[key], value, places[key])
    parser.set_defaults_with_config(**content)
    values = _parse(parser, words, actions)
    if values["paper"]:
        parser.set_defaults_with_config(**{key: value for key, value in PAPER.items() if key not in content})
        values = _parse(parser, words, actions)
    values["datasets"] = [_plain(each) for each in values["datasets"]]
    _check(values)
    given = {key: value for key, value in values.items() if value != defaults[key] and key not in SECRETS}
    own = {f"--{key}": place.removesuffix(": ") for key, place in places.items() if values.get(key) == content.get(key)}
    try:
        built = [_build(kind, values) for kind in parser.dataclass_types]
    except ValueError as error:
        raise ValueError(with_places(str(error), own)) from error
    return Settings._make((*built, given))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two runs differ in, of what decides what is learned.

    Args:
        before: `Settings.given` of one.
        now: `Settings.given` of the other.

    Returns:
        One sentence for each difference, such as "seed was 1, is 2".

    Example:
        >>> changed_settings({"seed": 1, "logging_steps": 5}, {"seed": 2, "beta": 0.1})
        ['beta was the default, is 0.1', 'seed was 1, is 2']
    """
    missing = object()
    changes = []
    for key in sorted({*before, *now}):
        old, new = before.get(key, missing), now.get(key, missing)
        if old != new and not key.startswith(FREE):
            told = ["the default" if value is missing else repr(value) for value in (old, new)]
            changes.append(f"{key} was {told[0]}, is {told[1]}")
    return changes


def _set_variables(variables: Any, place: str) -> None:
    """Set the environment variables of the file, before anything that reads them is imported."""
    if not isinstance(variables, Mapping):
        raise ValueError(f"{place}env must be a mapping from names of variables to values, got {variables!r}")
    os.environ.update({str(name): str(value) for name, value in variables.items()})


def _convert(action: argparse.Action, value: Any, place: str) -> Any:
    """A value of the file as the flag of the same name gives it."""
    if value is None:
        return None
    kind = getattr(action.type, "__name__", "")
    if action.nargs == "+":
        return [_word(action, each, place) for each in (value if isinstance(value, list) else [value])]
    if isinstance(value, list | dict):
        if kind in SCALARS or action.choices:
            raise ValueError(f"{place}{action.dest} takes one value, got {value!r}")
        return value
    return _word(action, value, place)


def _word(action: argparse.Action, value: Any, place: str) -> Any:
    kind: Any = action.type
    read = value  # where a text may stand, a number may, too: SPOConfig looks at it
    if kind is not str and not isinstance(value, dict):
        try:
            read = kind(str(value))
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            expected = SCALARS.get(kind.__name__, f"a {kind.__name__}")
            raise ValueError(f"{place}{action.dest} must be {expected}, got {value!r}") from None
    if action.choices and read not in action.choices:
        raise ValueError(f"{place}{action.dest} must be one of {', '.join(map(str, action.choices))}, got {value!r}")
    keeps_whole = getattr(kind, "__name__", "") == "float" and isinstance(value, int)  # 500 steps stay 500, not 500.0
    return value if keeps_whole else read


def _parse(parser: TrlParser, words: Sequence[str], actions: Mapping[str, Any]) -> dict[str, Any]:
    namespace, unknown = parser.parse_known_args(list(words))
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        raise ValueError(f"there is no setting {unknown[0]!r}{_nearest(name, actions)}")
    return vars(namespace)


def _nearest(name: str, names: Iterable[str]) -> str:
    return nearest(name.replace("-", "_"), names) or "; mmbert spo --help-all names all of them"


def _plain(entry: Any) -> dict[str, Any]:
    """A data set of the mixture as a mapping; by flags it comes as an object."""
    from trl.scripts.utils import DatasetConfig

    if is_dataclass(entry) and not isinstance(entry, type):
        entry = {key: value for key, value in asdict(entry).items() if value is not None}
    names = [each.name for each in fields(DatasetConfig)]
    if not isinstance(entry, dict) or "path" not in entry:
        raise ValueError(f"datasets: expected mappings with a path, got {entry!r}")
    for key in entry:
        if key not in names:
            raise ValueError(f"datasets: there is no {key!r}, only {', '.join(names)}{_nearest(str(key), names)}")
    return dict(entry)


def _check(values: Mapping[str, Any]) -> None:
    """Refuse what no part alone would."""
    if not values["output_dir"]:
        raise ValueError("nowhere to write to: give output_dir")
    if not values["model_name_or_path"]:
        raise ValueError("no model to train: give model_name_or_path, a folder or a name on the Hub")
    if bool(values["datasets"]) == bool(values["dataset_name"]):
        raise ValueError("give the prompts once: dataset_name for one data set, or datasets for several")
    if not values["reward_funcs"] and not values["reward_model_name_or_path"]:
        raise ValueError("nothing says what a good response is: give reward_funcs, such as rewards.py:correct")
    if (values["load_in_4bit"] or values["load_in_8bit"]) and not values["use_peft"]:
        raise ValueError(
            "load_in_4bit and load_in_8bit are for LoRA, since such weights cannot be trained: set use_peft"
        )
    if values["eval_dataset_name"] and values["eval_strategy"] == "no":
        raise ValueError(
            "eval_dataset_name is never looked at with eval_strategy 'no': set eval_strategy and eval_steps"
        )


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    given = {each.name: values[each.name] for each in fields(kind) if each.init}
    if kind is DatasetMixtureConfig:
        given["datasets"] = [dict(entry) for entry in given["datasets"]]
    return kind(**given)
