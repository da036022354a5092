"""``mmbert spo``: train a language model on prompts and rewards, one response per prompt (SPO, arXiv 2509.13232).

Design decisions:

- Settings are a YAML file and flags, as in TRL's own scripts (`mmbert_hf.cli.spo_settings`). There are some 250 of them, and
  to know them all takes torch. So ``--help`` is short and written by hand; ``--help-all`` is generated, and stored.
- ``--dry-run`` goes all the way to the model and stops: settings, data, functions, tools. What it prints is YAML again.
- The settings are kept in the output folder. The same command continues the last complete checkpoint there; with settings
  that would make it another run, it is refused.
"""

import argparse
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.cli.full_help import full_help
from mmbert_hf.cli.grammar import add_common_options, begin, show, tell
from mmbert_hf.cli.model_names import check_model_name

if TYPE_CHECKING:
    from mmbert_hf.cli.spo_settings import Settings

SETTINGS_FILE = "settings.yaml"
USAGE = "mmbert spo --config FILE.yaml [--dry-run] [--NAME VALUE ...]"
HELP = """\
the most used settings, in the file as NAME: VALUE or here as --NAME VALUE
  model_name_or_path      folder or Hub name of the model
  dataset_name            .jsonl, .json, .csv, .parquet, a folder, or owner/name; with a column prompt
  datasets                several of them, in the file alone: a list of {path: ..., split: ..., fraction: ...}
  reward_funcs            rewards.py:correct, package.rewards.correct, or a name of TRL's such as accuracy_reward
  tools                   functions in the same way, or python for the sandbox
  output_dir              where checkpoints, the model, the tracker and settings.yaml are written
  per_device_train_batch_size, gradient_accumulation_steps, learning_rate, max_steps, max_completion_length, bf16
  use_vllm, vllm_mode     generate with vLLM: colocate, or server
  use_peft, lora_r, load_in_4bit, ...
  sampling                which prompts are answered next: thompson, unsolved, bernoulli, uniform
  divergence              what decides how much is forgotten: constant, drift, trajectory
  advantage_scale         prompt or batch
  initial_values          prior, warmup, offline, or the tracker of another run
  paper                   true: start from the settings of the paper
  save_steps              how much can be lost; stopped in any way, the same command continues
  push_to_hub, hub_model_id, push_tracker_to

All arguments of TRL's GRPOConfig and ModelConfig may be given as well. On several GPUs:
  accelerate launch --config_file examples/accelerate/eight_gpus_ddp.yaml -m mmbert_hf.cli spo --config c.yaml
"""


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "spo",
        help="train a language model by reinforcement, one response per prompt (SPO)",
        description=(
            "Single-stream Policy Optimization on TRL's GRPOTrainer: every prompt is answered once, and what it earned\n"
            "before is the baseline. Settings are read from a YAML file, and from flags, which override the file."
        ),
        epilog=HELP,
        usage=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="the settings")
    parser.add_argument("--help-all", "--help_all", action="store_true", help="print all settings")
    add_common_options(
        parser, config=False, passes_on=True, dry_run="print the settings, check data and rewards, train nothing"
    )
    parser.set_defaults(run=run, training_arguments=[])


def run(args: argparse.Namespace) -> int:
    """Train, or continue, with the parsed arguments."""
    if args.help_all:
        show(args, f"usage: {USAGE}\n\n{full_help('spo', _parser_of_all)}")
        return 0
    is_main = int(os.environ.get("RANK", 0)) == 0
    begin(args, is_main=is_main)
    # transformers 5.23 warns of what TRL 1.16 itself sets and reads
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)

    from mmbert_hf.cli.spo_settings import read_settings

    quietly = ["--disable_tqdm", "true"] if args.quiet or args.json else []
    settings = read_settings(args.config, [*args.training_arguments, *quietly])

    from mmbert_hf.cli.spo_inputs import load_data, load_reward, load_tool

    rewards = {name: load_reward(name) for name in settings.script.reward_funcs or []}
    tools = [load_tool(name) for name in settings.script.tools or []]
    checkpoint = find_checkpoint(settings)
    _check_names(settings)
    data = load_data(settings)
    if args.dry_run:
        if is_main:
            tell(args, settings.given, _report(settings, rewards, tools, data, checkpoint))
        return 0
    trainer = _build_trainer(settings, rewards, tools, data)
    if trainer.is_world_process_zero():
        _write_settings(settings)
    facts, lines = _train(trainer, settings, checkpoint)
    if is_main:
        tell(args, facts, lines)
    return 0


def _parser_of_all() -> argparse.ArgumentParser:
    from mmbert_hf.cli.spo_settings import build_parser

    return build_parser()


def find_checkpoint(settings: "Settings") -> Path | None:
    """The checkpoint that a run continues.

    Args:
        settings: With ``output_dir``, and perhaps ``resume_from_checkpoint``.

    Returns:
        The newest one that was written to its end; None if there is none.

    Raises:
        ValueError: It is of a run with other settings, and ``allow_change`` is not set.
        FileNotFoundError: ``resume_from_checkpoint`` is not there.
    """
    from mmbert_hf.cli.config_files import read_yaml
    from mmbert_hf.cli.spo_settings import changed_settings
    from mmbert_hf.trainers.checkpoints import last_complete_checkpoint

    folder, chosen = Path(settings.config.output_dir), settings.config.resume_from_checkpoint
    if chosen is not None:
        if not Path(chosen).is_dir():
            raise FileNotFoundError(f"resume_from_checkpoint: there is no folder {chosen!r}")
        return Path(chosen)
    found = last_complete_checkpoint(folder, _saving_processes(folder, settings.config.world_size))
    if found is None or settings.script.allow_change or not (folder / SETTINGS_FILE).is_file():
        return found
    changes = changed_settings(read_yaml(folder / SETTINGS_FILE)[0], settings.given)
    if changes:
        raise ValueError(
            f"{found} is of a run with other settings: {'; '.join(changes)}. Give another output_dir, or continue it all the "
            "same with --allow_change"
        )
    return found


def _saving_processes(folder: Path, default: int) -> int:
    """How many processes saved the checkpoints of a folder, so that with another number they are refused, not passed over."""
    from mmbert_hf.trainers.spo.tracker_files import TRACKER_FILE, read_tracker

    files = sorted(folder.glob(f"checkpoint-*/{TRACKER_FILE}"), key=lambda path: path.stat().st_mtime)
    return int(read_tracker(files[-1])[1]["processes"]) if files else default


def _check_names(settings: "Settings") -> None:
    """Names of folders and repositories, and the token of the Hub if something is to be published."""
    from huggingface_hub import HfApi

    from mmbert_hf.hub import require_token

    script, config = settings.script, settings.config
    for name in filter(None, (settings.model.model_name_or_path, script.reward_model_name_or_path)):
        check_model_name(name)
    if script.push_tracker_to is not None and script.push_tracker_to.count("/") != 1:
        raise ValueError(f"push_tracker_to must be owner/name, got {script.push_tracker_to!r}")
    if (config.push_to_hub or script.push_tracker_to) and config.process_index == 0:
        require_token(HfApi(token=config.hub_token))


def _report(settings: "Settings", rewards: Any, tools: Any, data: Any, checkpoint: Path | None) -> list[str]:
    """Lines of a dry run, which are YAML: the settings, and comments. Tries the reward functions."""
    import numpy as np
    import yaml

    from mmbert_hf.cli.spo_inputs import NUM_TRIED, try_reward
    from mmbert_hf.trainers.spo.prompts import DatasetPrompts, open_prompts
    from mmbert_hf.trainers.spo.run_files import end_of_run
    from mmbert_hf.trainers.spo.tracker import check_rewards

    script, config = settings.script, settings.config
    prompts = open_prompts(data[0], config.prompt_id_column, config.sampling)
    lines = ["# settings that are not the default"]
    lines += yaml.safe_dump(settings.given, sort_keys=False, allow_unicode=True).splitlines()
    number = config.generation_batch_size
    generation = (
        f"{number} responses ({config.per_device_train_batch_size} a device x {config.steps_per_generation} steps x "
        f"{config.world_size} processes), to as many prompts"
    )
    facts = {
        "sampling": config.sampling,
        "forgetting": f"{config.divergence}, rho {'' if config.divergence == 'constant' else f'{config.rho_min} to '}"
        f"{config.rho_max}",
    }
    facts |= {"initial values": config.initial_values, "generation": generation}
    examples = []
    if isinstance(prompts, DatasetPrompts):
        examples = [data[0][row] for row in range(min(NUM_TRIED, len(prompts)))]
        facts["prompts"] = f"{len(prompts)}, with the columns {', '.join(data[0].column_names)}"
    else:
        examples = list(data[0].take(NUM_TRIED))
        facts["prompts"] = "a stream, taken as it comes"
    if data[1] is not None:
        facts["evaluation"] = "a stream" if not hasattr(data[1], "__len__") else f"{len(data[1])} prompts"
    single = len(rewards) == 1 and not script.reward_model_name_or_path
    for name, function in rewards.items():
        given = try_reward(function, name, examples)
        if config.value_model == "beta" or (config.value_model == "auto" and single):
            check_rewards(np.array([np.nan if reward is None else reward for reward in given], dtype=float), "beta")
        facts[f"reward {name}"] = f"{given} for empty responses to the first prompts"
    if script.reward_model_name_or_path:
        facts["reward model"] = script.reward_model_name_or_path
    if tools:
        facts["tools"] = ", ".join(tool.__name__ for tool in tools)
    end = end_of_run(config, checkpoint)
    facts["checkpoint"] = "none, a new run" if checkpoint is None else f"continues {checkpoint}"
    if end is not None:
        facts["checkpoint"] = f"{end}, the end of this run: nothing is left to train"
    return lines + [f"# {name}: {text}" for name, text in facts.items()]


def _build_trainer(settings: "Settings", rewards: Any, tools: Any, data: Any) -> Any:
    from trl import get_peft_config, get_quantization_config

    from mmbert_hf.trainers.spo import SPOTrainer

    script, config, model = settings.script, settings.config, settings.model
    own: Any = config.model_init_kwargs or {}
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **own,
    }
    judges = [] if script.reward_model_name_or_path is None else [script.reward_model_name_or_path]
    try:
        return SPOTrainer(
            model.model_name_or_path,
            [*judges, *rewards.values()],
            config,
            data[0],
            eval_dataset=data[1],
            tools=tools or None,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    except ImportError as error:  # an optional package: vLLM, bitsandbytes, jmespath, ...
        raise ValueError(f"a package is missing: {error}") from error


def _train(trainer: Any, settings: "Settings", checkpoint: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Train, save and publish; what came out, and lines that say it.

    Raises:
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM, behind a checkpoint.
    """
    from mmbert_hf.trainers.spo.run_files import end_of_run
    from mmbert_hf.trainers.stopping import StopOnInterrupt

    script, config, stop = settings.script, settings.config, StopOnInterrupt()
    trainer.add_callback(stop)
    facts: dict[str, Any] = {"folder": config.output_dir}
    lines = [] if end_of_run(config, checkpoint) is None else ["the run was at its end, nothing was trained"]
    with stop.listening():
        done = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stop.interrupted:
        _leave(trainer)
        raise KeyboardInterrupt(
            f"stopped behind step {trainer.state.global_step} of {trainer.state.max_steps}; the same command continues"
        )
    trainer.save_model(config.output_dir)
    trainer.save_state()
    if trainer.is_world_process_zero():
        tracker = trainer.save_tracker(config.output_dir).name
        facts |= {"steps": trainer.state.global_step, "metrics": done.metrics}
        lines.append(
            f"saved in {config.output_dir}: the model, its tokenizer, {tracker}, checkpoints, and {SETTINGS_FILE}"
        )
    if config.push_to_hub:
        name = script.dataset_name
        trainer.push_to_hub(**({} if name is None or Path(name).exists() else {"dataset_name": name}))
    if script.push_tracker_to is not None:
        address = trainer.push_tracker_to_hub(script.push_tracker_to, private=config.hub_private_repo)
        if address is not None:
            facts["tracker"] = str(address)
            lines.append(f"published the tracker: {address}")
    _leave(trainer)
    return facts, lines


def _leave(trainer: Any) -> None:
    """Finish what reports, and leave the group of processes together."""
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def _write_settings(settings: "Settings") -> None:
    """Keep the settings in the output folder, for the next call and for the reader."""
    import yaml

    from mmbert_hf.output_folders import write_whole

    folder = Path(settings.config.output_dir)
    given = {key: value for key, value in settings.given.items() if key != "allow_change"}
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    write_whole(folder / SETTINGS_FILE, f"# mmbert spo --config {folder / SETTINGS_FILE}\n{text}")
