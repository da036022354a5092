"""Retrieval by an embedder, with the evaluator of sentence-transformers, on folders of BEIR's format or on pairs.

Design decisions:

- The evaluator is `InformationRetrievalEvaluator` as it is: with the model's own prompts for queries and documents, and its
  own similarity. Its numbers are those that sentence-transformers prints while training.
- It knows relevant and not relevant. Grades of a qrels file above 0 are relevant, so its nDCG is that of binary relevance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.evaluation.results import Score, SetName
from mmbert_hf.evaluation.retrieval import RetrievalSet

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

__all__ = ["RetrievalData", "evaluate_information_retrieval", "read_beir", "read_pairs"]

MAIN = ("ndcg@10", "mrr@10", "map@100", "recall@10", "accuracy@1")


@dataclass(frozen=True)
class RetrievalData:
    """Queries, documents, and which documents answer which query, by their names.

    Attributes:
        queries: Name -> text; all of them have relevant documents.
        documents: Name -> text.
        relevant: Name of a query -> names of its relevant documents.
        split: Which judgements were read.
    """

    queries: dict[str, str]
    documents: dict[str, str]
    relevant: dict[str, set[str]]
    split: str | None = None


def read_pairs(rows: Dataset, *, query: str = "anchor", document: str = "positive") -> RetrievalData:
    """Make retrieval data of pairs: every query looks for its own document among all.

    Equal documents are one document, and so are equal queries.

    Args:
        rows: With these columns.
        query: Column of the queries.
        document: Column of what answers them.

    Raises:
        ValueError: A column is missing, or a text is none.

    Example:
        >>> from datasets import Dataset
        >>> read_pairs(Dataset.from_dict({"anchor": ["ant", "bee"], "positive": ["an insect", "an insect"]})).relevant
        {'q0': {'d0'}, 'q1': {'d0'}}
    """
    missing = [name for name in (query, document) if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"no column {', '.join(missing)} among {rows.column_names}: name it (--query-column, --document-column)"
        )
    for name in (query, document):
        wrong = [row for row, text in enumerate(rows[name]) if not isinstance(text, str) or not text.strip()]
        if wrong:
            raise ValueError(f"{len(wrong)} values of {name!r} are no text, the first in row {wrong[0]}")
    pairs = RetrievalSet.from_pairs(rows[query], rows[document])
    return RetrievalData(
        {f"q{number}": text for number, text in enumerate(pairs.queries)},
        {f"d{number}": text for number, text in enumerate(pairs.documents)},
        {f"q{number}": {f"d{place}" for place in places} for number, places in enumerate(pairs.relevant)},
    )


def read_beir(folder: str | Path, split: str = "test") -> RetrievalData:
    """Read a folder in the format of BEIR: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (or qrels.tsv).

    Args:
        folder: With these files.
        split: Which judgements.

    Returns:
        The queries that have relevant documents, and all documents, their title in front of their text.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A line is not as it should be, or names a query or document that is not there.
    """
    folder = Path(folder)
    judgements = next(
        (path for path in (folder / "qrels" / f"{split}.tsv", folder / "qrels.tsv") if path.is_file()), None
    )
    if judgements is None:
        there = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
        hint = f"; --split may be {', '.join(there)}" if there else ""
        raise FileNotFoundError(f"{folder} has neither qrels/{split}.tsv nor qrels.tsv{hint}")
    queries, documents = _read_texts(folder / "queries.jsonl"), _read_texts(folder / "corpus.jsonl")
    relevant: dict[str, set[str]] = {}
    for number, line in enumerate(judgements.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.rstrip("\r").split("\t")
        if not line.strip() or (number == 1 and not _is_number(parts[-1])):
            continue  # the header
        if len(parts) not in (3, 4) or not _is_number(parts[-1]):
            raise ValueError(
                f"{judgements}, line {number}: expected query, document and score between tabs, got {line!r:.80}"
            )
        query, document = parts[0], parts[-2]  # the format of TREC has a number between them
        if query not in queries or document not in documents:
            name, file = (query, "queries") if query not in queries else (document, "corpus")
            raise ValueError(f"{judgements}, line {number}: {file}.jsonl has no {name!r}")
        if float(parts[-1]) > 0:
            relevant.setdefault(query, set()).add(document)
    if not relevant:
        raise ValueError(f"{judgements} has no relevant document for any query")
    is_file_of_split = judgements.parent != folder
    return RetrievalData(
        {name: queries[name] for name in relevant}, documents, relevant, split if is_file_of_split else None
    )


def evaluate_information_retrieval(
    model: SentenceTransformer, data: RetrievalData, name: SetName, *, batch_size: int = 64, progress: bool = False
) -> list[Score]:
    """Measure retrieval with the evaluator of sentence-transformers.

    Args:
        model: An embedder.
        data: What is looked for, and where.
        name: Of the data.
        batch_size: Texts per forward pass.
        progress: Show progress bars.

    Returns:
        accuracy, precision and recall at 1, 3, 5 and 10, nDCG and MRR at 10, MAP at 100, by the model's similarity.
    """
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    queries: Any = data.queries
    documents: Any = data.documents  # typed upstream as dictionaries of whatever a model may read
    evaluator = InformationRetrievalEvaluator(
        queries, documents, data.relevant, batch_size=batch_size, show_progress_bar=progress, write_csv=False
    )
    prefix = f"{model.similarity_fn_name}_"
    found = {metric.removeprefix(prefix): float(value) for metric, value in evaluator(model).items()}
    order = {metric: place for place, metric in enumerate(MAIN)}
    return [
        Score("text-retrieval", name.dataset, metric, value, language=name.language, num_examples=len(data.queries),
              config=name.config, split=name.split or data.split, is_main=metric in MAIN)
        for metric, value in sorted(found.items(), key=lambda pair: order.get(pair[0], len(MAIN)))
    ]  # fmt: skip


def _read_texts(path: Path) -> dict[str, str]:
    """Texts of a .jsonl file by their names."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: BEIR's format has corpus.jsonl, queries.jsonl and qrels/")
    texts: dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
                key = str(row["_id"] if "_id" in row else row["id"])
                title = row.get("title") or ""
                text = f"{title} {row['text']}".strip()
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: expected an object with _id and text ({error})") from error
            if key in texts:
                raise ValueError(f"{path}, line {number}: {key!r} comes twice")
            texts[key] = text
    if not texts:
        raise ValueError(f"{path} has no text")
    return texts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
