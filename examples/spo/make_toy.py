"""Make what `cpu_toy.yaml` trains, in seconds: a small transformer that half knows its sums, and the sums as prompts.

Design decisions:

- One token a character, so that an answer of two digits is two decisions and the end a third.
- The model is fitted to the sums first, and stopped when it gets about a quarter of them right. From nothing, a right answer
  would be too rare for a demonstration: reinforcement learning makes more of what a model does sometimes.

    python make_toy.py        # writes toy/model and toy/sums.jsonl
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "0123456789+="
LARGEST = 15  # summands from 0 on
FIT_STEPS, FIT_LEARNING_RATE = 120, 3e-3
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_sums() -> list[dict[str, str]]:
    """Every sum once, in random order: columns prompt and answer."""
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    random.Random(0).shuffle(pairs)
    return [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character, `<pad>` and `<eos>`."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def make_model(tokenizer: PreTrainedTokenizerFast, sums: list[dict[str, str]]) -> LlamaForCausalLM:
    """A transformer of some 80,000 weights, fitted to the sums for a moment."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    texts = [f"{row['prompt']}{row['answer']}<eos>" for row in sums]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), FIT_LEARNING_RATE)
    for _ in range(FIT_STEPS):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    """Write the model, its tokenizer and the data set."""
    parser = argparse.ArgumentParser(description="Make a small model and its prompts for cpu_toy.yaml.")
    parser.add_argument("--output-dir", type=Path, default="toy", help="default: %(default)s")
    folder = parser.parse_args().output_dir
    sums, tokenizer = make_sums(), make_tokenizer()
    make_model(tokenizer, sums).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums), encoding="utf-8")


if __name__ == "__main__":
    main()
