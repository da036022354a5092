"""A small mmBERT from scratch, a language that is added in the decay, and the result in plain transformers. Offline.

    python examples/quickstart/encoder.py --output-dir quickstart        # 35 seconds on two slow cores

The text is the Universal Declaration of Human Rights, which the package carries: articles 0 to 25 to train on, 26 to 30 to
measure on. The model is far too small and sees far too little to be of use; the steps are those of a real run.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from mmbert_hf import (
    MLMConfig,
    MLMTrainer,
    MMBertConfig,
    MMBertForMaskedLM,
    MMBertTokenizer,
    Phase,
    Recipe,
    export_modernbert,
    load_udhr,
)
from mmbert_hf.schedules import Trapezoid

OLD, ADDED = ["dan", "isl", "nno"], "fao"
RECIPE = Recipe(
    [
        # name, share of the run, languages, their temperature, mask ratio, tokens a row, RoPE base, learning rate
        Phase("pretrain", 0.7, OLD, 0.7, 0.30, 128, 10_000.0, 3e-3, Trapezoid(warmup=0.1)),
        Phase("decay", 0.3, None, 0.3, 0.15, 128, 160_000.0, 2e-3, Trapezoid(warmup=0.1, decay=0.9, final=0.02)),
    ],
    total_tokens=140_000,
)


def train(model: MMBertForMaskedLM, tokenizer: MMBertTokenizer, phase: str, languages: list[str], folder: Path) -> dict:
    """Train through one phase; return the held-out loss of every language, in nats per masked token, before and after."""
    corpus = load_udhr([*OLD, ADDED])
    texts = {code: corpus[code].paragraphs(range(26)) for code in languages}
    held_out = {code: corpus[code].paragraphs(range(26, 31)) for code in corpus}
    args = MLMConfig(
        str(folder / phase),
        per_device_train_batch_size=8,
        max_repeats=None,  # so little text is read some ten times
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    recipe = RECIPE.only(phase)
    trainer = MLMTrainer(model, args, texts, held_out, tokenizer, recipe=recipe)
    before = trainer.evaluate()
    trainer.train()
    return {code: (before[f"eval_loss_{code}"], trainer.evaluate()[f"eval_loss_{code}"]) for code in held_out}


def main(argv: list[str] | None = None) -> dict[str, dict[str, tuple[float, float]]]:
    """Run it, and return the losses of both phases."""
    parser = argparse.ArgumentParser(description="A small mmBERT, a language added, and back in plain transformers.")
    parser.add_argument("--output-dir", type=Path, default="quickstart", help="default: %(default)s")
    folder = parser.parse_args(argv).output_dir
    torch.manual_seed(0)
    corpus = load_udhr([*OLD, ADDED])
    tokenizer = MMBertTokenizer.train([p for text in corpus.values() for p in text.paragraphs(range(26))], 2000)
    sizes = {"hidden_size": 96, "intermediate_size": 144, "num_hidden_layers": 3, "num_attention_heads": 3}
    model = MMBertForMaskedLM(MMBertConfig(vocab_size=len(tokenizer), **sizes))

    losses = {"pretrain": train(model, tokenizer, "pretrain", OLD, folder)}
    losses["decay"] = train(model, tokenizer, "decay", [*OLD, ADDED], folder)
    for phase, by_language in losses.items():
        print(
            phase, *(f"{code} {before:.2f} -> {after:.2f}" for code, (before, after) in by_language.items()), sep="  "
        )

    export_modernbert(model, folder / "encoder", tokenizer=tokenizer, overwrite=True)  # for plain transformers
    loaded = AutoModel.from_pretrained(folder / "encoder")
    batch = AutoTokenizer.from_pretrained(folder / "encoder")("Øll menniskju eru fødd fræls.", return_tensors="pt")
    print(type(loaded).__name__, tuple(loaded(**batch).last_hidden_state.shape))
    return losses


if __name__ == "__main__":
    main()
