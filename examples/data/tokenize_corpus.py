"""Tokenise a corpus beyond one machine with datatrove: text in, token shards and a table for `mmbert pretrain` out.

    python examples/data/tokenize_corpus.py --source corpus/ --tokenizer jhu-clsp/mmBERT-base --output tokens/ --tasks 64
    mmbert pretrain --preset mmbert-base-paper --data tokens/table.yaml --tokenizer jhu-clsp/mmBERT-base --output-dir run

Reads JSON lines, Parquet or a data set of the Hub; each document says its language in a field, or all have one. Writes

    tokens/<language>/<task>.parquet   columns input_ids (list of int32, no special tokens) and language
    tokens/counts.json                 documents and tokens of each language, and of each task
    tokens/table.yaml                  what `mmbert pretrain --data` reads

Runs on this machine; the same command with --executor slurm or --executor ray runs on a cluster, where --output has to be
a folder that all nodes see. Run again, it continues: tasks that are complete are left out.

Needs: pip install 'mmbert-hf[corpus]' (Ray: also ray).

Design decisions:

- Input files are dealt out to tasks, so there should be at least as many files as tasks. A task that is stopped begins
  again and overwrites its own shards: every document is there once, however often a run was stopped.
- Another source, tokenizer or number of tasks would deal the files out otherwise, and leave old shards beside new ones.
  So the settings are kept in `settings.json`, and a run with others is refused.
- datatrove passes over lines that are no JSON, with a warning. Here they stop the task, with file and line.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import HuggingFaceDatasetReader, JsonlReader, ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.batching import batched

DOCUMENTS_PER_BATCH = 1000
SETTINGS = ("reader", "source", "config", "split", "glob", "text_key", "language", "language_key", "tokenizer", "tasks")


class StrictJsonlReader(JsonlReader):
    """JSON lines, every one of which has to be a document."""

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Yield the documents of one file; a line that is none is a ValueError with its number."""
        with self.data_folder.open(filepath, "rb", compression=self.compression) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{filepath}, line {number}: no JSON in UTF-8 ({error})") from error
                if not isinstance(record, dict) or not isinstance(record.get(self.text_key), str):
                    raise ValueError(f"{filepath}, line {number}: expected an object with a text in {self.text_key!r}")
                document = self.get_document_from_dict(record, filepath, number)
                if document:
                    yield document


class Tokenize(PipelineStep):
    """Tokenises documents and counts them, per language.

    Args:
        tokenizer: Folder or Hub name of a fast tokenizer.
        language: Language of all documents; None takes it from the field `language_key`.
        language_key: Field with the ISO 639-3 code, optionally with a script (`srp_Cyrl`).
    """

    type = "TOKENIZER"
    name = "Tokenize"

    def __init__(self, tokenizer: str, language: str | None, language_key: str) -> None:
        super().__init__()
        self.tokenizer, self.language, self.language_key = tokenizer, language, language_key

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Replace the metadata of each document by its language and its tokens; documents without a token are dropped."""
        from transformers import AutoTokenizer

        import mmbert_hf  # noqa: F401 - AutoTokenizer knows our tokenizer then
        from mmbert_hf.languages import get_language

        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        if not tokenizer.is_fast:
            raise ValueError(f"{self.tokenizer} has no fast tokenizer (tokenizer.json); convert it first")
        checked = set()
        for batch in batched(data, DOCUMENTS_PER_BATCH):
            with self.track_time(unit="batch"):
                texts = [document.text for document in batch]
                tokens = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            for document, input_ids in zip(batch, tokens["input_ids"], strict=True):
                language = self.language or document.metadata.get(self.language_key)
                if language is None:
                    raise ValueError(
                        f"document {document.id} has no field {self.language_key!r}; name it with --language-key, or "
                        "give --language if all documents have one"
                    )
                if language not in checked:
                    get_language(language)  # refuses what is no code: it becomes the name of a folder
                    checked.add(language)
                if not input_ids:
                    self.stat_update(f"empty/{language}")
                    continue
                self.stat_update(f"documents/{language}")
                self.stat_update(f"tokens/{language}", value=len(input_ids))
                document.metadata = {"language": language, "input_ids": input_ids}
                yield document


class WriteTable(PipelineStep):
    """Adds up what the tasks have counted, and writes `counts.json` and `table.yaml`.

    Args:
        output: Where the shards are.
        logs: Where datatrove keeps the statistics of the tasks.
        tasks: How many there are.
    """

    type = "TABLE"
    name = "Write the table"

    def __init__(self, output: str, logs: str, tasks: int) -> None:
        super().__init__()
        self.output, self.logs, self.tasks = output, logs, tasks

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write both files; every task has to be complete."""
        import yaml

        if data:
            yield from data
        output, per_task = Path(self.output), []
        for task in range(self.tasks):
            statistics = Path(self.logs, "stats", f"{task:05d}.json")
            if not statistics.is_file():
                raise ValueError(f"task {task} of {self.tasks} is not complete: run the same command again")
            per_task.append(task_counts(statistics))
        languages = sorted({language for counts in per_task for language in counts})
        total = {
            language: {
                kind: sum(counts.get(language, {}).get(kind, 0) for counts in per_task)
                for kind in ("documents", "tokens", "empty")
            }
            for language in languages
        }
        write(output / "counts.json", json.dumps({"languages": total, "tasks": per_task}, indent=1))
        table = {
            language: {"source": f"{language}/*.parquet", "count": counts["tokens"]}
            for language, counts in total.items()
            if counts["documents"]
        }
        write(output / "table.yaml", yaml.safe_dump({"languages": table}, sort_keys=False))


def task_counts(statistics: Path) -> dict[str, dict[str, int]]:
    """Return language -> documents, tokens and empty documents, from what datatrove writes for a task."""
    steps = json.loads(statistics.read_text())
    step = next(step for step in steps if step["name"] == f"{Tokenize.type}: {Tokenize.name}")
    counts: dict[str, dict[str, int]] = {}
    for name, stat in step["stats"].items():
        kind, _, language = name.partition("/")
        counts.setdefault(language, {})[kind] = int(stat["total"] if isinstance(stat, dict) else stat)
    return counts


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def as_row(self: ParquetWriter, document: Document) -> dict[str, Any]:
    """Return a row of the shards."""
    return {"input_ids": document.metadata["input_ids"], "language": document.metadata["language"]}


def make_pipeline(args: argparse.Namespace) -> list[PipelineStep]:
    """Return reader, tokeniser and writer."""
    import pyarrow as pa

    reader: PipelineStep
    if args.reader == "hub":
        options = {"name": args.config, "split": args.split}
        reader = HuggingFaceDatasetReader(args.source, options, streaming=True, text_key=args.text_key)
    else:
        kind = {"jsonl": StrictJsonlReader, "parquet": ParquetReader}[args.reader]
        pattern = args.glob or {"jsonl": "*.jsonl*", "parquet": "*.parquet"}[args.reader]
        reader = kind(args.source, glob_pattern=pattern, text_key=args.text_key)
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("language", pa.string())])
    writer = ParquetWriter(
        args.output, "${language}/${rank}.parquet", "zstd", as_row, DOCUMENTS_PER_BATCH, max_file_size=-1, schema=schema
    )
    return [reader, Tokenize(args.tokenizer, args.language, args.language_key), writer]


def make_executor(args: argparse.Namespace) -> Any:
    """Return the executor that writes the table; it runs the one that tokenises first."""
    logs = [os.path.join(args.output, "logs", name) for name in ("tokenize", "table")]
    table = [WriteTable(args.output, logs[0], args.tasks)]
    if args.executor == "local":
        first = LocalPipelineExecutor(make_pipeline(args), args.tasks, args.workers, logs[0])
        return LocalPipelineExecutor(table, 1, 1, logs[1], depends=first, skip_completed=False)
    resources = {"cpus_per_task": args.cpus_per_task, "mem_per_cpu_gb": args.memory_gb}
    if args.executor == "ray":
        from datatrove.executor import RayPipelineExecutor

        first = RayPipelineExecutor(make_pipeline(args), args.tasks, args.workers, logging_dir=logs[0], **resources)
        return RayPipelineExecutor(table, 1, logging_dir=logs[1], depends=first, skip_completed=False, **resources)
    import dill
    from datatrove.executor import SlurmPipelineExecutor

    dill.settings["recurse"] = True  # a node unpickles the steps of this script, and needs what they refer to
    if not args.partition:
        raise ValueError("--executor slurm needs --partition; `sinfo` lists those that there are")
    slurm = {"time": args.time, "partition": args.partition, "qos": args.qos, "env_command": args.env_command}
    first = SlurmPipelineExecutor(
        make_pipeline(args),
        args.tasks,
        workers=args.workers,
        job_name="tokenize",
        logging_dir=logs[0],
        **slurm,
        **resources,
    )
    return SlurmPipelineExecutor(
        table, 1, job_name="table", logging_dir=logs[1], depends=first, skip_completed=False, **slurm, **resources
    )


def check_settings(args: argparse.Namespace) -> None:
    """Keep the settings that decide which document is in which shard; refuse to continue a run with others."""
    path, settings = Path(args.output, "settings.json"), {name: getattr(args, name) for name in SETTINGS}
    if path.is_file():
        before = json.loads(path.read_text())
        changes = [
            f"{name} was {before.get(name)!r}, is {settings[name]!r}"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if changes:
            raise ValueError(
                f"{args.output} was begun with other settings ({'; '.join(changes)}): take another --output"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(settings, indent=1))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Tokenise a corpus into shards for mmbert pretrain.")
    parser.add_argument("--reader", choices=("jsonl", "parquet", "hub"), default="jsonl")
    parser.add_argument("--source", required=True, help="folder (local, s3://, hf://), or the name of a data set")
    parser.add_argument("--config", help="configuration of a data set on the Hub, such as fao_Latn")
    parser.add_argument("--split", default="train", help="split of a data set on the Hub")
    parser.add_argument("--glob", help="which files of the folder (default: by the reader)")
    parser.add_argument("--text-key", default="text", help="field of the text (default: %(default)s)")
    parser.add_argument("--language", help="language of all documents: ISO 639-3 code")
    parser.add_argument("--language-key", default="language", help="field of the language (default: %(default)s)")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub name of a fast tokenizer")
    parser.add_argument("--output", required=True, help="folder of the shards")
    parser.add_argument("--tasks", type=int, default=1, help="parts of the work; at most as many as input files")
    parser.add_argument("--workers", type=int, default=-1, help="tasks at a time (default: all)")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--cpus-per-task", type=int, default=1, help="on Slurm and Ray")
    parser.add_argument("--memory-gb", type=int, default=4, help="per CPU, on Slurm and Ray")
    parser.add_argument("--partition", help="on Slurm")
    parser.add_argument("--time", default="12:00:00", help="of a task, on Slurm")
    parser.add_argument("--qos", default="normal", help="on Slurm")
    parser.add_argument("--env-command", help="what activates the environment on a node of Slurm")
    return parser


def main() -> int:
    """Tokenise, and return the exit status."""
    parser = build_parser()
    args = parser.parse_args()
    # One thread for each task that runs beside others; more where a task has more CPUs.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if args.cpus_per_task > 1 else "false")
    args.output = args.output if "://" in args.output else os.path.abspath(args.output)
    try:
        check_settings(args)
        executor = make_executor(args)
    except ValueError as error:
        parser.error(str(error))
    executor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
