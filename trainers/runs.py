"""One run of the recipe from a language table: hold out, measure, train or continue, measure again, save.

Design decisions:

- What the verbs of the command line do is here, and can be called. `run_recipe` needs a model, a tokenizer, a table and
  an `MLMConfig`; pre-training, extension and decay differ in the recipe alone.
- The last documents of every language are held out of training. They are measured before the first step and behind the
  last, on the same masks, so that the report says what each language gained or lost, the old ones included.
- `run.json` in the output folder says what the run is and what came out; it is written at the start and at the end.
- The same call continues a run that was stopped: by Ctrl-C, which saves first, or by anything else.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmbert_hf.trainers.cards import card_languages, encoder_facts
from mmbert_hf.trainers.checkpoints import last_complete_checkpoint
from mmbert_hf.trainers.mlm import MLMTrainer, make_plan
from mmbert_hf.trainers.mlm_config import MLMConfig
from mmbert_hf.trainers.stopping import StopOnInterrupt
from torch import nn

from mmbert_hf._version import __version__
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.data.table import LanguageTable
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.modeling import MMBertForMaskedLM
from mmbert_hf.output_folders import write_whole
from mmbert_hf.presets import get_preset
from mmbert_hf.recipes import Recipe
from mmbert_hf.schedules import Trapezoid
from mmbert_hf.step_plan import StepPlan

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
TINY = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
MIN_DOCUMENTS_TO_HOLD_OUT_FROM = 4
MIN_TOKENS_TO_MEASURE = 64  # with fewer, it may be that none is masked


class Interrupted(Exception):
    """The run was stopped by Ctrl-C after saving a checkpoint; the same call continues it."""


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        before: Held-out loss per language before the first step, in nats per masked token.
        after: The same behind the last step.
        added: Languages that enter in this run, by the table; none where it begins with the recipe's first phase.
        tokens: Tokens of each language that were read.
        repeats: How often the text of each language was read.
    """

    before: dict[str, float]
    after: dict[str, float]
    added: list[str]
    tokens: dict[str, int]
    repeats: dict[str, float]

    def table(self) -> str:
        """Return the report as a table for a terminal: added languages first, means below."""
        codes = [*self.added, *(code for code in self.tokens if code not in self.added)]
        lines = [f"{'language':12} {'before':>8} {'after':>8} {'change':>8} {'tokens':>14} {'passes':>7}"]
        for code in codes:
            mark = "+" if code in self.added else " "
            measured = [self.before.get(code), self.after.get(code)]
            lines.append(f"{mark}{code:11} {_losses(*measured)} {self.tokens[code]:>14,} {self.repeats[code]:>7.2f}")
        groups = {"added": self.added, "others": [code for code in codes if code not in self.added]}
        for name, group in groups.items():
            found = [code for code in group if code in self.before and code in self.after]
            if found:
                means = [sum(losses[code] for code in found) / len(found) for losses in (self.before, self.after)]
                label = f"mean {name}" if self.added else "mean"
                lines.append(f"{label:12} {_losses(*means)}")
        return "\n".join(lines)


def run_recipe(
    model: nn.Module,
    tokenizer: Any,
    table: LanguageTable,
    args: MLMConfig,
    *,
    recipe: Recipe | None = None,
    held_out_documents: int = 32,
    callbacks: Sequence[Any] = (),
) -> RunReport:
    """Train a model on the languages of a table by some phases of a recipe, or continue that.

    Args:
        model: An `MMBertForMaskedLM`.
        tokenizer: Of the model.
        table: Languages, their documents, and the phase that each enters in.
        args: Of the trainer; ``args.recipe`` and ``args.phases`` say what is run.
        recipe: Overrides ``args.recipe``; all its phases, also those that are not run.
        held_out_documents: Documents of each language that are measured and not trained on, at most, and at most a
            tenth of its documents. Languages of fewer than four documents, or of too little text in them, are not
            measured.
        callbacks: Of the trainer, besides its own.

    Returns:
        Losses before and after, and what was read. The model and the tokenizer are saved in ``args.output_dir``.

    Raises:
        ValueError: What `MLMTrainer` refuses, a source without documents, or a checkpoint of another run.
        Interrupted: After Ctrl-C or SIGTERM.
    """
    recipe = get_preset(args.recipe).recipe if recipe is None else recipe
    names = [phase.name for phase in recipe.phases]
    chosen, table = _chosen(table, args, recipe)
    everything = table.tokenise(tokenizer, args.token_cache_dir)
    documents, held_out = hold_out(everything, held_out_documents)
    stop = StopOnInterrupt()
    trainer = MLMTrainer(
        model,
        args,
        documents,
        held_out or None,
        tokenizer,
        recipe=chosen,
        counts=table.counts(everything),
        shares=table.shares,
        callbacks=[stop, *callbacks],
    )
    for line in summarise(trainer.plan):
        logger.info("%s", line)
    number = sum(map(len, held_out.values()))
    logger.info("%d documents of %d languages are held out and measured", number, len(held_out))
    before, after = _train_and_measure(trainer, stop)
    mixture = trainer.train_dataset
    is_fresh = chosen.phases[0].name == names[0]
    entered = set() if is_fresh else {phase.name for phase in chosen.phases}
    added = [code for code, entry in table.entries.items() if entry.enters in entered]
    return RunReport(before, after, added, mixture.tokens_per_language(), mixture.repeats())


def plan_run(table: LanguageTable, args: MLMConfig, recipe: Recipe | None = None) -> tuple[StepPlan, LanguageTable]:
    """Plan what `run_recipe` would do, without reading a text.

    Args:
        table: As for `run_recipe`.
        args: As for `run_recipe`.
        recipe: As for `run_recipe`.

    Returns:
        The plan, and the languages that are read in it.

    Raises:
        FileNotFoundError: A language has no files.
        ValueError: As `run_recipe`.
    """
    chosen, table = _chosen(table, args, get_preset(args.recipe).recipe if recipe is None else recipe)
    for entry in table.entries.values():
        entry.source.files()
    return make_plan(args, chosen), table


def _chosen(table: LanguageTable, args: MLMConfig, recipe: Recipe) -> tuple[Recipe, LanguageTable]:
    """The phases that are run, with their languages, and these languages' part of the table."""
    names = [phase.name for phase in recipe.phases]
    chosen = recipe.only(*args.phases) if args.phases else recipe
    chosen = chosen.with_languages([active_languages(table, names, phase.name) for phase in chosen.phases])
    return chosen, LanguageTable({code: table.entries[code] for code in chosen.phases[-1].languages or ()})


def _train_and_measure(trainer: MLMTrainer, stop: StopOnInterrupt) -> tuple[dict[str, float], dict[str, float]]:
    """Measure, train or continue, measure and save; the losses before and after."""
    folder = Path(trainer.args.output_dir)
    last = last_complete_checkpoint(folder, trainer.args.world_size)
    if last is not None:  # refuses another run before its record is touched
        trainer.plan_callback.resume(str(last), allow_change=trainer.args.allow_change)
    before = None if last is None or trainer.args.allow_change else _measured_before(folder)
    before = _measure(trainer) if before is None else before
    _write_record(folder, trainer, {"before": before})
    with stop.listening():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if stop.interrupted:
        step, steps = trainer.state.global_step, trainer.plan.num_steps
        raise Interrupted(f"stopped behind step {step} of {steps}; the same command continues")
    after = _measure(trainer)
    trainer.save_model(str(folder))
    trainer.save_state()
    _write_record(folder, trainer, {"before": before, "after": after})
    return before, after


def summarise(plan: StepPlan) -> list[str]:
    """Return one line per phase: its steps, and how its batch compares with the recipe's."""
    lines = []
    for first, span in zip(plan.first_steps, plan.spans, strict=True):
        phase, inside = span.phase, plan.phase == plan.phase[first]
        rows, steps = int(plan.rows[inside].max()), int(inside.sum())
        made_for = "" if phase.batch_rows in (None, rows) else f" (the recipe was made for {phase.batch_rows:,} rows)"
        lines.append(
            f"{phase.name}: {len(phase.languages or ())} languages, {steps:,} steps of {rows:,} rows x "
            f"{phase.max_length:,} tokens{made_for}, peak learning rate {float(plan.learning_rate[inside].max()):g}"
        )
    return lines


def active_languages(table: LanguageTable, phases: Sequence[str], phase: str) -> list[str]:
    """Return the languages of a table that are active in a phase: those that enter in it or before.

    Args:
        table: The languages.
        phases: Names of all phases of the recipe, in order.
        phase: One of them.

    Raises:
        ValueError: A language enters in an unknown phase, or none is active.
    """
    for code, entry in table.entries.items():
        if entry.enters not in (None, *phases):
            raise ValueError(f"{code!r} enters in {entry.enters!r}, but the recipe's phases are {', '.join(phases)}")
    past = phases[: list(phases).index(phase) + 1]
    active = [code for code, entry in table.entries.items() if (entry.enters or phases[0]) in past]
    if not active:
        raise ValueError(f"no language of the table is active in {phase!r}; let one enter there or before")
    return active


def decay_from_anywhere(recipe: Recipe, warmup: float) -> Recipe:
    """Return a recipe whose decay begins with a short warm-up.

    The paper's decay goes on from the checkpoint before it, with the optimizer's state. A finished or published
    checkpoint is at the end of a decay and comes without: its first steps at the full rate would undo more than they
    teach.

    Args:
        recipe: With a phase ``decay``, the only one that changes.
        warmup: Fraction of the phase, in [0, 1].

    Example:
        >>> from mmbert_hf.presets import get_preset
        >>> decay_from_anywhere(get_preset("tiny").recipe, 0.1).phases[-1].learning_rate_schedule.at(0.05)
        0.5
    """
    phases = []
    for phase in recipe.phases:
        schedule = phase.learning_rate_schedule
        if phase.name == "decay" and isinstance(schedule, Trapezoid):
            warmed = replace(schedule, warmup=warmup, decay=1.0 - warmup)
            phase = replace(phase, learning_rate_schedule=warmed)
        phases.append(phase)
    return replace(recipe, phases=phases)


def build_model(preset: str, tokenizer: Any, *, seed: int = 0) -> MMBertForMaskedLM:
    """Return a fresh model of a preset's size, with a context as long as the recipe's longest row."""
    chosen = get_preset(preset)
    context = max(phase.max_length for phase in chosen.recipe.phases)
    theta = chosen.recipe.phases[0].rope_theta
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": context,
        "global_rope_theta": theta,
        "local_rope_theta": theta,
    }
    makers = {"base": MMBertConfig.base, "small": MMBertConfig.small}
    config = makers[chosen.size](**options) if chosen.size in makers else MMBertConfig(**TINY, **options)
    torch.manual_seed(seed)
    return MMBertForMaskedLM(config)


def preset_for(model: nn.Module) -> str:
    """Return the preset that was made for a model of this width: base, small, or else tiny."""
    by_width = {768: "mmbert-base-paper", 384: "mmbert-small-paper"}
    return by_width.get(model.config.hidden_size, "tiny")


def hold_out(
    documents: Mapping[str, TokenDocuments], most: int
) -> tuple[dict[str, TokenDocuments], dict[str, list[Any]]]:
    """Take the last documents of every language away from training.

    Args:
        documents: Per language.
        most: How many at most; a tenth of a language's documents, if that is fewer, but one at least.

    Returns:
        What is left per language, and per language the token ids of what was held out; languages of fewer than four
        documents, or of fewer than 64 tokens in those that would be held out, keep all of them.

    Example:
        >>> documents = {"fao": TokenDocuments.from_arrays([[5]] * 9 + [[6] * 70])}
        >>> rest, held_out = hold_out(documents, 32)
        >>> len(rest["fao"]), len(held_out["fao"][0])
        (9, 70)
    """
    rest, held_out = dict(documents), {}
    for code, found in documents.items():
        number = min(most, max(1, len(found) // 10))
        if number < 1 or len(found) < MIN_DOCUMENTS_TO_HOLD_OUT_FROM:
            continue
        if int(found.lengths[-number:].sum()) < MIN_TOKENS_TO_MEASURE:
            continue
        rest[code] = found.head(len(found) - number)
        held_out[code] = [found.tokens(index) for index in range(len(found) - number, len(found))]
    return rest, held_out


def _measure(trainer: MLMTrainer) -> dict[str, float]:
    if not trainer.eval_dataset:
        logger.warning("no language has enough documents to hold some out; nothing is measured")
        return {}
    metrics = trainer.evaluate()
    return {code: metrics[f"eval_loss_{code}"] for code in trainer.eval_dataset}


def _measured_before(folder: Path) -> dict[str, float] | None:
    """Return what this run measured before its first step; None if the record is missing or is not one."""
    try:
        return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["losses"]["before"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_record(folder: Path, trainer: MLMTrainer, losses: dict[str, Any]) -> None:
    if not trainer.is_world_process_zero():
        return
    mixture = trainer.train_dataset
    record = {
        "mmbert_hf": __version__,
        "torch": torch.__version__,
        **trainer.plan.as_dict(),
        "first_steps": trainer.plan.first_steps,
        "seed": trainer.args.seed,
        "quotas": mixture.quotas(),
        "repeats": mixture.repeats(),
        "losses": losses,
    }
    if "after" in losses:  # what `mmbert publish` renders a card from
        before, after = losses["before"], losses["after"]  # the log of the trainer begins anew with its training
        record["card"] = {
            **encoder_facts(trainer),
            "heldout_languages": {code: [before[code], loss] for code, loss in after.items() if code in before},
            "languages": card_languages(mixture.languages),
        }
    write_whole(folder / RUN_FILE, json.dumps(record, indent=1, ensure_ascii=False))


def _losses(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return f"{'-':>8} {'-':>8} {'-':>8}"
    return f"{before:8.3f} {after:8.3f} {after - before:+8.3f}"
