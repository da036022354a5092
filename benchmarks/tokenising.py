"""Tokens per second of the tokenizer alone, of tokenising into a store, and of packing, on the embedded corpus.

    TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 python benchmarks/tokenising.py --tokenizer jhu-clsp/mmBERT-base

With TOKENIZERS_PARALLELISM=false the figures are those of one core. Each is the median of a few runs, after one that
is not counted.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from report import say

from mmbert_hf import MMBertTokenizer
from mmbert_hf.data import load_udhr
from mmbert_hf.data.packed_mixture import PackedMixture
from mmbert_hf.data.sources import Source
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.data.tokenising import TextEncoder, tokenize_source
from mmbert_hf.recipes import Phase
from mmbert_hf.step_plan import RowSpan

TEXTS_PER_BATCH = 64
ROW_LENGTHS = (1024, 8192)


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one call that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def tokenizer_alone(tokenizer: MMBertTokenizer, texts: list[str]) -> None:
    """Encodes all texts in batches and drops the result."""
    for first in range(0, len(texts), TEXTS_PER_BATCH):
        batch = texts[first : first + TEXTS_PER_BATCH]
        tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)


def pack(documents: TokenDocuments, tokenizer: MMBertTokenizer, max_length: int) -> int:
    """Packs all documents once into rows, reads every row, and returns how many tokens the rows have."""
    phase = Phase("all", 1.0, ["mul"], language_temperature=1.0, mask_ratio=0.3, max_length=max_length)
    num_rows = (documents.num_tokens + 2 * len(documents)) // max_length
    mixture = PackedMixture(
        {"mul": documents},
        [RowSpan(phase, 0, num_rows)],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return sum(len(mixture[row]["input_ids"]) for row in range(num_rows))


def measure(tokenizer_name: str, repeats: int) -> dict[str, float]:
    """All figures, in tokens per second."""
    tokenizer = MMBertTokenizer.from_pretrained(tokenizer_name)
    encoder = TextEncoder(tokenizer)
    texts = [declaration.text(range(31)) for declaration in load_udhr().values()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.jsonl")
        path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
        source = Source("mul", str(path))

        def store() -> TokenDocuments:
            return tokenize_source(source, encoder, folder, overwrite=True)

        documents = store()
        num_tokens = documents.num_tokens
        figures = {
            "tokens": num_tokens,
            "tokenizer alone": num_tokens / median_seconds(lambda: tokenizer_alone(tokenizer, texts), repeats),
            "tokenising + store": num_tokens / median_seconds(store, repeats),
            "opening the store": num_tokens / median_seconds(lambda: tokenize_source(source, encoder, folder), repeats),
        }
        for max_length in ROW_LENGTHS:
            packed = pack(documents, tokenizer, max_length)
            seconds = median_seconds(partial(pack, documents, tokenizer, max_length), repeats)
            figures[f"packing at {max_length}"] = packed / seconds
        return figures


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="folder or name of a tokenizer of mmBERT's layout")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    logging.basicConfig()
    parallel = os.environ.get("TOKENIZERS_PARALLELISM", "true")
    say(f"TOKENIZERS_PARALLELISM={parallel}, {len(os.sched_getaffinity(0))} cores")
    for name, value in measure(arguments.tokenizer, arguments.repeats).items():
        say(f"{name:20} {value / 1e6:8.2f} M" + ("" if name == "tokens" else " tokens/s"))


if __name__ == "__main__":
    main()
