"""The record of a demo folder: what each part was asked for, and the result of each finished stage."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from mmbert_hf.demo.settings import DemoSettings, PruneSettings, SPOSettings
from mmbert_hf.output_folders import write_whole

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
FORMAT = "mmbert-demo-1"
# Part -> its stages and its folders. The folders of `SHARED` are written by several.
STAGES = {
    "encoder": ("tokenizer", "run", "control", "measure", "publish"),
    "prune": ("prune", "prune_retrain", "prune_measure", "prune_publish"),
    "spo": ("spo_fit", "spo_train", "spo_measure", "spo_publish"),
}
FOLDERS = {"encoder": ("tokenizer", "run", "control", "export"), "prune": ("prune",), "spo": ("spo",)}
# Part -> under which name state.json has its settings, and their class.
SETTINGS: dict[str, tuple[str, Any]] = {
    "encoder": ("settings", DemoSettings),
    "prune": ("prune_settings", PruneSettings),
    "spo": ("spo_settings", SPOSettings),
}
SHARED = ("hub", "plots")
PARTS = tuple(STAGES)


class DemoState:
    """The record of a demo folder: settings of each part, and the result of each finished stage, as JSON."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], results: dict[str, Any]) -> None:
        self.folder, self.settings, self.results = folder, dict(settings), results

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: DemoSettings | None = None,
        prune_settings: PruneSettings | None = None,
        spo_settings: SPOSettings | None = None,
        *,
        overwrite: bool = False,
    ) -> "DemoState":
        """Return the state of `folder`: that of a demo with the same settings, finished or not, or a new one.

        Args:
            folder: Of the demo.
            settings: Of the encoder, if this part is to be run.
            prune_settings: Of the pruning, if this part is to be run.
            spo_settings: Of the policy, if this part is to be run.
            overwrite: See below.

        Raises:
            FileExistsError: The folder holds something that no demo wrote, or a demo with other settings, and
                `overwrite` is False. With it, the parts asked for start anew, write beside what is there and delete only
                files of a demo.
        """
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file; give another --output-dir")
        given: dict[str, Any] = {"encoder": settings, "prune": prune_settings, "spo": spo_settings}
        wanted = {part: each for part, each in given.items() if each is not None}
        previous = cls._read(folder)
        if previous is None and folder.exists() and any(folder.iterdir()) and not overwrite:
            raise FileExistsError(
                f"{folder} exists and holds something else than a demo; give another --output-dir, "
                "or --overwrite to write there all the same"
            )
        if previous is None:
            previous = cls(folder, {}, {})
        differs = any(previous.settings.get(part, each) != each for part, each in wanted.items())
        if differs and not overwrite:
            raise FileExistsError(
                f"{folder} holds a demo with other settings; give another --output-dir, or --overwrite to replace it"
            )
        if differs or (previous.is_finished(wanted) and overwrite):
            previous.clear(wanted)
        elif previous.results and not previous.is_finished(wanted):
            logger.info("continuing the demo in %s (stages already done: %s)", folder, ", ".join(previous.results))
        if not wanted.items() <= previous.settings.items():
            previous.settings |= wanted
            previous.save()
        return previous

    @staticmethod
    def _read(folder: Path) -> "DemoState | None":
        path = folder / STATE_FILE
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        if record.get("format") != FORMAT:
            return None
        settings = {part: kind.from_dict(record[name]) for part, (name, kind) in SETTINGS.items() if record.get(name)}
        return DemoState(folder, settings, record["results"])

    def save(self) -> None:
        """Write the record, whole or not at all."""
        known = {name: self.settings[part].as_dict() for part, (name, _) in SETTINGS.items() if part in self.settings}
        record = {"format": FORMAT, **known, "results": self.results}
        write_whole(self.folder / STATE_FILE, json.dumps(record))

    def clear(self, parts: Collection[str] = PARTS) -> None:
        """Delete what earlier runs of these parts wrote here, and nothing else."""
        left = [part for part in self.settings if part not in parts]
        for name in (*(folder for part in parts for folder in FOLDERS[part]), *(() if left else SHARED)):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("report.html", "metrics.json"):
            (self.folder / name).unlink(missing_ok=True)
        gone = {"report", *(stage for part in parts for stage in STAGES[part])}
        self.results = {name: record for name, record in self.results.items() if name not in gone}
        self.settings = {part: self.settings[part] for part in left}
        if left:
            self.save()
        else:
            (self.folder / STATE_FILE).unlink(missing_ok=True)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the recorded result of a stage, or do its work and record it with the seconds it took."""
        if name not in self.results:
            started = time.perf_counter()
            result = work()
            self.results[name] = {"result": result, "seconds": time.perf_counter() - started}
            self.save()
        return self.results[name]["result"]

    def is_done(self, part: str) -> bool:
        """Whether all stages of a part are done."""
        return set(STAGES[part]) <= set(self.results)

    def is_finished(self, parts: Collection[str]) -> bool:
        """Whether these parts are done, and the report is of them."""
        if "report" not in self.results:
            return False
        # A report without a list was written before there was a second part.
        return set(parts) <= set(self.results["report"]["result"].get("parts", ["encoder"]))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each finished stage. A resumed training stage counts from its last resume."""
        return {name: round(record["seconds"], 1) for name, record in self.results.items() if name != "report"}
