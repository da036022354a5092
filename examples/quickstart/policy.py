"""A policy that gets better at a task by rewards alone (SPO), and what its tracker then knows of the prompts. Offline.

    python examples/quickstart/policy.py --output-dir quickstart        # 33 seconds on two slow cores

The task is addition modulo 23, one token an answer. A model of your own takes the place of `half_fitted`, and the answers are
checked by any reward function of TRL.
"""

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmbert_hf import SPOConfig, SPOTrainer
from mmbert_hf.data.arithmetic import (
    arithmetic_examples,
    arithmetic_tokenizer,
    encode_answers,
    exact_answer,
    split_examples,
)

MODULUS = 23


def half_fitted(dataset, tokenizer) -> LlamaForCausalLM:
    """A small transformer that was shown some of the answers: reinforcement needs something to reinforce."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids))
    shown = encode_answers(split_examples(dataset, 0.3)[0], tokenizer)
    batch = {name: torch.tensor(shown[name][:]) for name in shown.column_names}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def main(argv: list[str] | None = None) -> tuple[float, float, SPOTrainer]:
    """Train, and return the reward on all prompts before and after, and the trainer."""
    parser = argparse.ArgumentParser(description="A policy that gets better by rewards alone.")
    parser.add_argument("--output-dir", type=Path, default="quickstart", help="default: %(default)s")
    folder = parser.parse_args(argv).output_dir
    tokenizer, dataset = arithmetic_tokenizer(MODULUS), arithmetic_examples(MODULUS)  # columns prompt, answer
    args = SPOConfig(
        str(folder / "spo"),
        max_steps=100,
        per_device_train_batch_size=128,  # prompts a step, each answered once
        per_device_eval_batch_size=len(dataset),
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        max_completion_length=1,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    model = half_fitted(dataset, tokenizer)
    trainer = SPOTrainer(model, exact_answer, args, dataset, eval_dataset=dataset, processing_class=tokenizer)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()["eval_reward"]
    print(f"reward on all {len(dataset)} prompts: {before:.3f} -> {after:.3f}")
    print(trainer.tracker)
    order = trainer.tracker.values.argsort()
    for name, rows in (("hardest", order[:3]), ("easiest", order[-3:])):
        print(name, {dataset["prompt"][row]: round(float(trainer.tracker.values[row]), 2) for row in rows.tolist()})
    trainer.save_model(str(folder / "policy"))  # AutoModelForCausalLM loads it
    return before, after, trainer


if __name__ == "__main__":
    main()
