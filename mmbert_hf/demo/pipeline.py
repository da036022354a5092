"""The demo's stages in order, each of them resumable: ``run_demo(folder)``.

Three parts: an encoder is trained from scratch, an embedder is pruned, and a small policy is improved by SPO. Each can be
run alone, and the others added later: the report is of all that the folder holds. A stage leaves its result in the folder
and a record in ``state.json``. A run that stopped, by Ctrl-C or otherwise, continues with the first stage that has no
record, and inside the training of the encoder, or of the policy by SPO, from its last checkpoint.
"""

import json
import logging
import os
import platform
from collections.abc import Collection
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.data.udhr import HELD_OUT_ARTICLES, TRAINING_ARTICLES, Declaration, load_udhr
from mmbert_hf.demo.embedder import MINILM, MissingEmbedderError
from mmbert_hf.demo.plots import can_plot, draw_plots
from mmbert_hf.demo.settings import (
    ADDED_LANGUAGES,
    DemoSettings,
    PruneSettings,
    SPOSettings,
    declared_counts,
    demo_recipe,
    order_languages,
)
from mmbert_hf.demo.state import PARTS, STAGES, DemoState
from mmbert_hf.demo.verdicts import verdicts
from mmbert_hf.languages import get_language, split_code

if TYPE_CHECKING:
    from mmbert_hf.recipes import Recipe

logger = logging.getLogger(__name__)

CARD_FIGURES = ("annealing", "heldout")  # in the card of the encoder; all others are in the report


def run_demo(
    output_dir: str | os.PathLike[str],
    settings: DemoSettings | None = None,
    prune_settings: PruneSettings | None = None,
    spo_settings: SPOSettings | None = None,
    *,
    only: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, measure, publish, reload and report, in `output_dir`: an encoder, a pruned embedder, a policy.

    Args:
        output_dir: Created if missing; a stopped demo in it is continued, a finished one is left as it is.
        settings: Sizes, phases and seed of the encoder.
        prune_settings: Of the pruning.
        spo_settings: Of the policy.
        only: One of `PARTS`, to run this one alone. What the folder has of the others stays and is reported too.
        overwrite: Write into a folder that holds something else. Only files of a demo are ever deleted.
        progress: Show progress bars.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        ValueError: There is no such part, or the embedder to prune is not the pinned one.
        MissingEmbedderError: Pruning alone is asked for, and the package that carries the embedder is missing. With all
            parts, pruning is left out then.
        FileNotFoundError: The settings name a folder for the embedder, and there is none.
        FileExistsError: See `DemoState.open`.
        KeyboardInterrupt: After Ctrl-C; what was done is kept, and the message says how to continue.
    """
    if only is not None and only not in PARTS:
        raise ValueError(f"there is no part {only!r}; choose one of {', '.join(map(repr, PARTS))}, or None for all")
    chosen: dict[str, Any] = {
        "encoder": settings or DemoSettings(),
        "prune": prune_settings or PruneSettings(),
        "spo": spo_settings or SPOSettings(),
    }
    wanted = {part: each for part, each in chosen.items() if only in (None, part)}
    source = None
    if "prune" in wanted:
        source = _find_embedder(wanted["prune"], needed=only == "prune")
        if source is None:
            del wanted["prune"]
    if not can_plot():
        logger.warning("matplotlib is missing, so there will be no plots; to have them: pip install 'mmbert-hf[demo]'")
    folder = Path(output_dir)
    state = DemoState.open(folder, *map(wanted.get, PARTS), overwrite=overwrite)
    if state.is_finished(wanted):
        logger.info("the demo in %s is finished: %s (--overwrite runs it anew)", folder, folder / "report.html")
        return json.loads((folder / "metrics.json").read_text())
    with _interruptible(folder), _quiet_transformers():
        return _run_parts(state, wanted, source, progress)


def _find_embedder(settings: PruneSettings, *, needed: bool) -> Path | None:
    """Return the folder of the embedder to prune; None, with a warning, where the package that carries it is missing."""
    if settings.embedder is not None:
        if not Path(settings.embedder).is_dir():
            raise FileNotFoundError(f"there is no folder {settings.embedder!r} with an embedder to prune")
        return Path(settings.embedder)
    try:
        return MINILM.folder()
    except MissingEmbedderError as error:
        if needed:
            raise
        logger.warning("nothing will be pruned: %s", error)
        return None


def _run_parts(state: DemoState, wanted: Collection[str], source: Path | None, progress: bool) -> dict[str, Any]:
    """Run the parts that are wanted, and report them with what was done before."""
    # Imported here: by now the folder has been checked, and this takes seconds.
    from mmbert_hf.demo import report

    parts = [part for part in PARTS if part in wanted or state.is_done(part)]
    metrics = _common_facts()
    histories: dict[str, list[dict[str, Any]]] = {}
    recipe: Recipe | None = None
    if "encoder" in parts:
        facts, histories, recipe = _run_encoder(state, progress)
        metrics |= facts
    if "prune" in parts:
        metrics["prune"] = _run_prune(state, source, progress)
    if "spo" in parts:
        metrics["spo"] = _run_spo(state, progress)
    state.results.pop("report", None)
    metrics |= {"stages": state.seconds, "seconds": round(sum(state.seconds.values()), 1)}
    metrics["checks"] = [asdict(verdict) for verdict in verdicts(metrics)]
    state.stage("report", lambda: {**report.write_report(state.folder, metrics, histories, recipe), "parts": parts})
    for check in metrics["checks"]:
        if check["holds"] is not None:
            logger.info("%s: %s", "yes" if check["holds"] else "NO", check["title"])
    logger.info("report: %s", state.folder / "report.html")
    return metrics


def _run_encoder(state: DemoState, progress: bool) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]], "Recipe"]:
    """The first part. Returns what goes into metrics.json, the log records of both trainings, and the phases."""
    from mmbert_hf.demo import measuring, publishing, training
    from mmbert_hf.modeling import MMBertForMaskedLM

    folder, settings = state.folder, state.settings["encoder"]
    corpus = load_udhr()
    languages = order_languages(list(corpus), settings.max_languages)
    corpus = {code: corpus[code] for code in languages}
    tokenizer = _load_or_train_tokenizer(folder / "tokenizer", settings, corpus, state)
    counts = declared_counts(languages, settings.zipf_exponent)
    recipe = demo_recipe(settings, languages)
    control_recipe = demo_recipe(settings, languages, without=ADDED_LANGUAGES)
    branch = folder / "run" / f"checkpoint-{recipe.first_steps(settings.steps)[-1]}"
    final = f"checkpoint-{settings.steps}"
    texts = {code: [declaration.text(TRAINING_ARTICLES)] for code, declaration in corpus.items()}
    documents = {
        code: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for code, text in texts.items()
    }

    def train(name: str, recipe: Any, branch_from: Path | None = None) -> dict[str, Any]:
        mixture = training.build_mixture(settings, recipe, documents, tokenizer, counts)
        phases, steps = training.train(
            settings, recipe, mixture, tokenizer, folder / name, branch_from=branch_from, label=name, progress=progress
        )
        return {"phases": phases, "log": steps}

    run = state.stage("run", lambda: train("run", recipe))
    control = state.stage("control", lambda: train("control", control_recipe, branch))
    checkpoints = {
        "before_decay": branch,
        "after_decay": folder / "run" / final,
        "after_control": folder / "control" / final,
    }
    measured = state.stage("measure", lambda: measuring.measure(settings, corpus, tokenizer, checkpoints))
    model = MMBertForMaskedLM.from_pretrained(checkpoints["after_decay"])
    facts = _collect(settings, languages, run, control, measured, model)
    card_facts = {**_common_facts(), **facts}
    histories = {"run": run["log"], "control": control["log"]}

    def publish() -> dict[str, Any]:
        plots = []
        if can_plot():
            drawn = draw_plots(folder / "card", card_facts, histories, recipe)
            plots = [folder / "card" / f"{name}.png" for name in CARD_FIGURES if name in drawn]
        return publishing.publish_and_reload(folder, model, tokenizer, corpus, languages, card_facts, plots)

    return {**facts, "hub": state.stage("publish", publish)}, histories, recipe


def _run_prune(state: DemoState, source: Path | None, progress: bool) -> dict[str, Any]:
    """The second part. Returns its record in metrics.json."""
    settings = state.settings["prune"]
    if state.is_done("prune"):  # needs neither the embedder nor the libraries
        done, retraining, measured, hub = (state.results[name]["result"] for name in STAGES["prune"])
    else:
        from mmbert_hf.demo import pruning

        assert source is not None
        job = pruning.PruneJob(settings, state.folder / "prune", source, progress)
        done = state.stage("prune", lambda: pruning.prune(job))
        retraining = state.stage("prune_retrain", lambda: pruning.retrain(job))
        measured = state.stage("prune_measure", lambda: pruning.measure(job))
        hub = state.stage("prune_publish", lambda: pruning.publish(job, measured))
    return {"settings": settings.as_dict(), **done, "retraining": retraining, **measured, "hub": hub}


def _run_spo(state: DemoState, progress: bool) -> dict[str, Any]:
    """The third part. Returns its record in metrics.json."""
    settings = state.settings["spo"]
    if state.is_done("spo"):  # needs none of the libraries
        fitted, trained, measured, hub = (state.results[name]["result"] for name in STAGES["spo"])
    else:
        from mmbert_hf.demo import spo, spo_measuring, spo_publishing

        job = spo.SPOJob(settings, state.folder / "spo", progress)
        fitted = state.stage("spo_fit", lambda: spo.fit(job))
        trained = state.stage("spo_train", lambda: spo.train(job))
        measured = state.stage("spo_measure", lambda: spo_measuring.measure(job))
        facts = {"settings": settings.as_dict(), **fitted, **trained, **measured}
        hub = state.stage("spo_publish", lambda: spo_publishing.publish(job, facts))
    values = {**trained["values"], "end": measured["end"]}
    quality = measured["quality"]
    return {"settings": settings.as_dict(), **fitted, **trained, "values": values, "quality": quality, "hub": hub}


def _load_or_train_tokenizer(
    folder: Path, settings: DemoSettings, corpus: dict[str, Declaration], state: DemoState
) -> Any:
    from mmbert_hf.tokenization import MMBertTokenizer

    def work() -> dict[str, int]:
        texts = [text for declaration in corpus.values() for text in declaration.paragraphs(TRAINING_ARTICLES)]
        tokenizer = MMBertTokenizer.train(texts, vocab_size=settings.vocab_size)
        tokenizer.save_pretrained(folder)
        return {"texts": len(texts), "vocab_size": len(tokenizer)}

    result = state.stage("tokenizer", work)
    logger.info("tokenizer: %(vocab_size)d tokens, trained on %(texts)d paragraphs", result)
    return MMBertTokenizer.from_pretrained(folder)


def _common_facts() -> dict[str, Any]:
    packages = ("mmbert-hf", "torch", "transformers", "sentence-transformers", "trl", "huggingface-hub")
    return {
        "versions": {name: version(name) for name in packages},
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
    }


def _collect(
    settings: DemoSettings,
    languages: list[str],
    run: dict[str, Any],
    control: dict[str, Any],
    measured: dict[str, Any],
    model: Any,
) -> dict[str, Any]:
    """Join what is known before publishing: it goes into the card, the report and metrics.json."""
    return {
        "seed": settings.seed,
        "settings": settings.as_dict(),
        "corpus": {
            "name": "Universal Declaration of Human Rights",
            "languages": len({split_code(code)[0] for code in languages}),
            "texts": len(languages),  # some languages are here in two scripts
            "held_out_articles": list(HELD_OUT_ARTICLES),
        },
        "names": {code: _name(code) for code in languages},
        "added_languages": list(ADDED_LANGUAGES),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "phases": run["phases"],
        "control_phases": control["phases"][-1:],
        **measured,
    }


def _name(code: str) -> str:
    """Return a language's English name, with its script where the corpus has it in several."""
    language = get_language(code)
    return f"{language.name} ({language.script})" if language.script else language.name


@contextmanager
def _interruptible(folder: Path) -> Any:
    """Say how to continue when the demo is stopped."""
    from mmbert_hf.demo.training import Interrupted

    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        raise KeyboardInterrupt(
            f"{stop or 'stopped'}; what is done is kept in {folder}. To continue, give the same command again"
        ) from None


@contextmanager
def _quiet_transformers() -> Any:
    """Silence what transformers prints while it loads and saves: the demo has a bar and log lines of its own."""
    from transformers.utils import logging as transformers_logging

    previous = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(previous)
        transformers_logging.enable_progress_bar()
