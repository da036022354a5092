"""Does annealing help? 100 languages in three phases, against the same run without one or the other part of it.

    python benchmarks/annealing.py --output docs/results/annealing.json

Trains a small encoder from scratch on the embedded corpus (the Universal Declaration, articles 1 to 25 and the
preamble) through pre-training, extension and decay, for every variant and seed, and measures the masked loss on the
held-out articles 26 to 30 in every language. All runs of a seed have the same initial weights, number of tokens,
learning rates, lengths and RoPE bases, and are measured on the same masks. The variants:

- annealed: temperature 0.7, 0.5, 0.3 and mask ratio 0.30, 0.15, 0.05 (mmBERT, section 3);
- constant temperature: 0.7 throughout;
- constant mask ratio: 0.30 throughout;
- without the added languages: annealed, but the last fifty languages never enter. What their loss does here is what
  falls anyway.

The languages are in the order of `mmbert_hf.demo.tiers`, 30 from the first tier, 20 more from the second, and 50 that
enter in the decay. Texts of all languages have about the same length, so sizes are declared: Zipf's law over the order.
Everything is fixed here, before any run; nothing is chosen by its result. Takes about half an hour on two cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import describe
from report import say

VARIANTS: dict[str, dict[str, tuple[float, float, float]]] = {
    "annealed": {"temperature": (0.7, 0.5, 0.3), "mask_ratio": (0.30, 0.15, 0.05)},
    "constant temperature": {"temperature": (0.7, 0.7, 0.7), "mask_ratio": (0.30, 0.15, 0.05)},
    "constant mask ratio": {"temperature": (0.7, 0.5, 0.3), "mask_ratio": (0.30, 0.30, 0.30)},
    "without the added languages": {"temperature": (0.7, 0.5, 0.3), "mask_ratio": (0.30, 0.15, 0.05)},
}
TIERS = {"pretrain": 30, "extend": 20, "decay": 50}
SHARES, LENGTHS, ROWS, THETAS = (0.6, 0.15, 0.25), (128, 256, 256), (16, 8, 8), (1e4, 1.6e5, 1.6e5)
TOTAL_TOKENS, PEAK, VOCABULARY = 1_600_000, 2e-3, 8192
MODEL = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
MASK_RATIO_MEASURED, MASK_SEED = 0.15, 0


def choose_languages() -> dict[str, list[str]]:
    """Return the languages that enter in each phase."""
    from mmbert_hf.data import load_udhr
    from mmbert_hf.demo.tiers import DECAY_ONLY, EXTENSION_TIER, PRETRAINING_TIER

    corpus = load_udhr()
    first = [code for code in PRETRAINING_TIER if code in corpus][: TIERS["pretrain"]]
    second = [code for code in EXTENSION_TIER if code in corpus][: TIERS["extend"]]
    others = sorted(set(corpus) - {*PRETRAINING_TIER, *EXTENSION_TIER, *DECAY_ONLY})
    wanted = TIERS["decay"] - len(DECAY_ONLY)
    spread = [others[number * len(others) // wanted] for number in range(wanted)]
    return {"pretrain": first, "extend": second, "decay": [*DECAY_ONLY, *spread]}


def make_recipe(variant: str, languages: Mapping[str, Sequence[str]]) -> Any:
    """Return the three phases of a variant."""
    from mmbert_hf.recipes import Phase, Recipe
    from mmbert_hf.schedules import Constant, Trapezoid

    settings = VARIANTS[variant]
    first, second = [*languages["pretrain"]], [*languages["pretrain"], *languages["extend"]]
    last = second if variant == "without the added languages" else [*second, *languages["decay"]]
    shapes = (Trapezoid(warmup=0.1), Constant(1.0), Trapezoid(decay=1.0, final=0.02))
    values = zip(
        ("pretrain", "extend", "decay"),
        SHARES,
        (first, second, last),
        settings["temperature"],
        settings["mask_ratio"],
        LENGTHS,
        THETAS,
        shapes,
        ROWS,
        strict=True,
    )
    return Recipe(
        [
            Phase(name, share, active, tau, ratio, length, theta, PEAK, shape, batch_rows=rows)
            for name, share, active, tau, ratio, length, theta, shape, rows in values
        ],
        TOTAL_TOKENS,
    )


def train_one(variant: str, seed: int, tokenizer_folder: str, output: str) -> None:
    """Train and measure one run, and write its losses per language, in nats per masked token."""
    from mmbert_hf import MLMConfig, MLMTrainer, MMBertConfig, MMBertForMaskedLM, MMBertTokenizer
    from mmbert_hf.data import HELD_OUT_ARTICLES, TRAINING_ARTICLES, load_udhr
    from mmbert_hf.evaluation import FixedMasks, masked_losses

    torch.set_num_threads(1)
    languages, tokenizer = choose_languages(), MMBertTokenizer.from_pretrained(tokenizer_folder)
    order = [code for codes in languages.values() for code in codes]
    corpus = load_udhr(order)
    recipe = make_recipe(variant, languages)
    active = recipe.phases[-1].languages or order
    texts = {code: [text for n in TRAINING_ARTICLES if (text := corpus[code].text([n]))] for code in active}
    counts = {code: 1e9 / (rank + 1) for rank, code in enumerate(order) if code in active}
    torch.manual_seed(seed)
    config = MMBertConfig(vocab_size=len(tokenizer), max_position_embeddings=max(LENGTHS), local_attention=64, **MODEL)
    with TemporaryDirectory() as folder:
        args = MLMConfig(
            folder,
            per_device_train_batch_size=ROWS[0],
            max_repeats=None,
            seed=seed,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=50,
        )
        trainer = MLMTrainer(MMBertForMaskedLM(config), args, texts, None, tokenizer, recipe=recipe, counts=counts)
        trainer.train()
    held_out = {code: corpus[code].paragraphs(HELD_OUT_ARTICLES) for code in order}
    masks = FixedMasks(held_out, tokenizer, mask_ratio=MASK_RATIO_MEASURED, max_length=max(LENGTHS), seed=MASK_SEED)
    record = {
        "variant": variant,
        "seed": seed,
        "steps": trainer.plan.num_steps,
        "tokens": trainer.train_dataset.tokens_per_language(),
        "fill": trainer.train_dataset.fill(),
        "losses": masked_losses(trainer.model, masks),
    }
    Path(output).write_text(json.dumps(record), encoding="utf-8")


def run_all(seeds: Sequence[int], output: Path, processes: int) -> dict[str, Any]:
    """Train every variant with every seed, some at a time, each in a process of its own."""
    from mmbert_hf import MMBertTokenizer
    from mmbert_hf.data import TRAINING_ARTICLES, load_udhr

    languages = choose_languages()
    corpus = load_udhr([code for codes in languages.values() for code in codes])
    with TemporaryDirectory() as folder:
        texts = [text.text(TRAINING_ARTICLES) for text in corpus.values()]
        MMBertTokenizer.train(texts, vocab_size=VOCABULARY).save_pretrained(folder)

        def run(job: tuple[int, str]) -> dict[str, Any]:
            seed, variant = job
            path = Path(folder, f"{seed}-{variant}.json")
            subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--one",
                    variant,
                    "--seeds",
                    str(seed),
                    "--tokenizer",
                    folder,
                    "--output",
                    str(path),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            say(f"seed {seed}, {variant}: done")
            return json.loads(path.read_text(encoding="utf-8"))

        with ThreadPoolExecutor(processes) as pool:
            runs = list(pool.map(run, [(seed, variant) for seed in seeds for variant in VARIANTS]))
    result = {
        "machine": describe(torch.device("cpu")),
        "languages": languages,
        "total_tokens": TOTAL_TOKENS,
        "runs": runs,
    }
    output.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    return result


def summary(result: Mapping[str, Any]) -> str:
    """Return the table: mean held-out loss per group of languages, over the seeds, with its standard deviation."""
    groups = {**result["languages"]}
    groups["all"] = [code for codes in result["languages"].values() for code in codes]
    means: dict[tuple[str, str], list[float]] = {}
    for run in result["runs"]:
        for group, codes in groups.items():
            mean = statistics.fmean(run["losses"][code] for code in codes)
            means.setdefault((run["variant"], group), []).append(mean)
    names = {"pretrain": "from the start", "extend": "from the extension", "decay": "added in the decay", "all": "all"}
    lines = ["| variant | " + " | ".join(f"{names[group]} ({len(groups[group])})" for group in groups) + " |"]
    lines += ["|---|" + "---|" * len(groups)]
    for variant in VARIANTS:
        cells = [_spread(means[variant, group]) for group in groups]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    for variant in list(VARIANTS)[1:]:
        cells = []
        for group in groups:
            pairs = zip(means["annealed", group], means[variant, group], strict=True)
            cells.append(_spread([mine - other for mine, other in pairs], sign="+"))
        lines.append(f"| annealed minus {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{sign}.3f} ± {deviation:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison, or one run of it."""
    parser = argparse.ArgumentParser(description="Annealed training against its ablations.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for everything that was measured")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        train_one(args.one, args.seeds[0], args.tokenizer, str(args.output))
        return 0
    say(summary(run_all(args.seeds, args.output, args.processes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
