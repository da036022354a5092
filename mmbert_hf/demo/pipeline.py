"""The demo's stages in order, each of them resumable: ``run_demo(folder)``.

A stage leaves its result in the folder and a record in ``state.json``. A run that stopped, by Ctrl-C or otherwise,
continues with the first stage that has no record, and inside a training stage from its last checkpoint.
"""

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmbert_hf.data.udhr import HELD_OUT_ARTICLES, TRAINING_ARTICLES, Declaration, load_udhr
from mmbert_hf.demo.plots import can_plot
from mmbert_hf.demo.settings import ADDED_LANGUAGES, DemoSettings, declared_counts, demo_recipe, order_languages
from mmbert_hf.demo.verdicts import verdicts
from mmbert_hf.languages import get_language, split_code

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
FORMAT = "mmbert-demo-1"


class DemoState:
    """The record of a demo folder: settings, and the result of each finished stage, as JSON."""

    def __init__(self, folder: Path, settings: DemoSettings, results: dict[str, Any]) -> None:
        self.folder, self.settings, self.results = folder, settings, results

    @classmethod
    def open(cls, folder: Path, settings: DemoSettings, *, overwrite: bool = False) -> "DemoState":
        """Return the state of `folder`: that of a demo with the same settings, finished or not, or a new one.

        Raises:
            FileExistsError: The folder holds something that no demo wrote, or a demo with other settings, and
                `overwrite` is False. With it, the demo starts anew, writes beside what is there and deletes only files
                of a demo.
        """
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file; give another --output-dir")
        previous = cls._read(folder)
        if previous is not None and previous.settings == settings and not (previous.is_finished and overwrite):
            if not previous.is_finished:
                done = ", ".join(previous.results) or "nothing"
                logger.info("continuing the demo in %s (stages already done: %s)", folder, done)
            return previous
        if previous is not None and previous.settings != settings and not overwrite:
            raise FileExistsError(
                f"{folder} holds a demo with other settings; give another --output-dir, or --overwrite to replace it"
            )
        if previous is None and folder.exists() and any(folder.iterdir()) and not overwrite:
            raise FileExistsError(
                f"{folder} exists and holds something else than a demo; give another --output-dir, "
                "or --overwrite to write there all the same"
            )
        if previous is not None:
            previous.clear()
        state = cls(folder, settings, {})
        state.save()
        return state

    @staticmethod
    def _read(folder: Path) -> "DemoState | None":
        path = folder / STATE_FILE
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        if record.get("format") != FORMAT:
            return None
        return DemoState(folder, DemoSettings.from_dict(record["settings"]), record["results"])

    def save(self) -> None:
        """Write the record, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, "settings": self.settings.as_dict(), "results": self.results}
        temporary = self.folder / f"{STATE_FILE}.partial"
        temporary.write_text(json.dumps(record))
        os.replace(temporary, self.folder / STATE_FILE)

    def clear(self) -> None:
        """Delete what an earlier demo wrote here, and nothing else."""
        for name in ("tokenizer", "run", "control", "export", "hub", "plots"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("report.html", "metrics.json", STATE_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the recorded result of a stage, or do its work and record it with the seconds it took."""
        if name not in self.results:
            started = time.perf_counter()
            result = work()
            self.results[name] = {"result": result, "seconds": time.perf_counter() - started}
            self.save()
        return self.results[name]["result"]

    @property
    def is_finished(self) -> bool:
        """Whether the last stage is done."""
        return "report" in self.results

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each finished stage. A resumed training stage counts from its last resume."""
        return {name: round(record["seconds"], 1) for name, record in self.results.items()}


def run_demo(
    output_dir: str | os.PathLike[str],
    settings: DemoSettings | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, measure, publish, reload and report, in `output_dir`.

    Args:
        output_dir: Created if missing; a stopped demo in it is continued, a finished one is left as it is.
        settings: Sizes, phases and seed.
        overwrite: Write into a folder that holds something else. Only files of a demo are ever deleted.
        progress: Show progress bars.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        FileExistsError: See `DemoState.open`.
        KeyboardInterrupt: After Ctrl-C; what was done is kept, and the message says how to continue.
    """
    if not can_plot():
        logger.warning("matplotlib is missing, so there will be no plots; to have them: pip install 'mmbert-hf[demo]'")
    settings = settings or DemoSettings()
    folder = Path(output_dir)
    state = DemoState.open(folder, settings, overwrite=overwrite)
    if state.is_finished:
        logger.info("the demo in %s is finished: %s (--overwrite runs it anew)", folder, folder / "report.html")
        return json.loads((folder / "metrics.json").read_text())
    with _interruptible(folder), _quiet_transformers():
        return _run_stages(folder, settings, state, progress)


def _run_stages(folder: Path, settings: DemoSettings, state: DemoState, progress: bool) -> dict[str, Any]:
    # Imported here: by now the folder has been checked, and these take seconds.
    from mmbert_hf.demo import measuring, publishing, report, training
    from mmbert_hf.modeling import MMBertForMaskedLM

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
    facts = _collect(settings, state, corpus, languages, run, control, measured, model)
    hub = state.stage(
        "publish", lambda: publishing.publish_and_reload(folder, model, tokenizer, corpus, languages, facts)
    )
    metrics = {**facts, "hub": hub, "stages": state.seconds, "seconds": round(sum(state.seconds.values()), 1)}
    metrics["checks"] = [asdict(verdict) for verdict in verdicts(metrics)]
    histories = {"run": run["log"], "control": control["log"]}
    state.stage("report", lambda: report.write_report(folder, metrics, histories, recipe))
    for check in metrics["checks"]:
        if check["holds"] is not None:
            logger.info("%s: %s", "yes" if check["holds"] else "NO", check["title"])
    logger.info("report: %s", folder / "report.html")
    return metrics


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


def _collect(
    settings: DemoSettings,
    state: DemoState,
    corpus: dict[str, Declaration],
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
        "versions": {name: version(name) for name in ("mmbert-hf", "torch", "transformers", "huggingface-hub")},
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
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
