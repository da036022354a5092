"""What policies learn in the SPO benchmark: a bandit, and arithmetic, whose prompts share structure.

Design decisions:

- Answers are checked exactly, and the success rate of a policy is *computed*, not sampled: the probability of the right
  answer, by teacher forcing, with the temperature of the generation. So curves have no noise of measuring.
- `bandit`: prompts share nothing. Each is one token of its own, and so is each answer; how likely the right answer is at
  first is set by hand: 40 % of the prompts are easy, 20 % in the middle, 40 % hard.
- `addition`: a + b modulo 23 as one token, all 529 prompts. A transformer is fitted to 30 % of them before, which makes it
  right with about a third of the probability; the rest it must find. This is where learning one prompt helps others.
- `chain-sum`: 600 problems of reasoning-gym's task of that name, "3 + 8 - 9 =", answered character by character and ended:
  two to four tokens a response. Fitted to 30 % of them too.
- Fitting stops while the policy is unsure: of the prompts that it was not fitted to, the median is right with probability
  .007 in `addition`. One that is sure of wrong answers finds nothing, with any method.
- An answer counts if it is the expected one, word for word. reasoning-gym's own score gives a part to longer answers that
  contain the right one, and a success rate with parts cannot be computed.
- A seed decides weights, fitting, and everything that is drawn.

Shape legend: P prompts, T tokens of prompt and answer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MODULUS = 23
BANDIT_SHARES = ((0.4, 0.8), (0.2, 0.3), (0.4, 0.01))  # of the prompts, with this probability of the right answer
BANDIT_PROMPTS, BANDIT_ANSWERS = 200, 16
CHAIN_SUMS = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1, "seed": 23}
NUM_CHAIN_SUMS = 600
END = "<eos>"
FITTED_SHARE, FIT_LEARNING_RATE, BANDIT_LEARNING_RATE = 0.3, 1e-3, 3e-3
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass
class Task:
    """Prompts with their answers, and how a fresh policy is made.

    Attributes:
        name: Of the task.
        tokenizer: One token a word.
        prompts: P texts of as many words each, apart by blanks.
        answers: P texts. If they differ in length, they have `END` as their last word.
        fit_steps: Steps of fitting to the answers of `fitted` prompts.
        fitted: How many prompts, in an order by seed.
    """

    name: str
    tokenizer: Any
    prompts: list[str]
    answers: list[str]
    fit_steps: int
    fitted: int

    @property
    def longest_answer(self) -> int:
        """Tokens."""
        return max(len(answer.split()) for answer in self.answers)

    @property
    def mean_answer(self) -> float:
        """Tokens."""
        return sum(len(answer.split()) for answer in self.answers) / len(self.answers)

    def dataset(self) -> Dataset:
        """Columns prompt and answer."""
        return Dataset.from_dict({"prompt": self.prompts, "answer": self.answers})

    def inputs(self) -> tuple[torch.Tensor, int]:
        """Prompts with their answers, int64 [P, T], filled up to the right; and the length of the prompts."""
        texts = [f"{p} {a}" for p, a in zip(self.prompts, self.answers, strict=True)]
        ids = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
        return ids, len(self.prompts[0].split())

    def success_rates(self, model: Any) -> torch.Tensor:
        """Probability of the right answer to each prompt, float64 [P]."""
        ids, start = self.inputs()
        was_training = model.training
        model.eval()
        with torch.no_grad():
            logits = model(input_ids=ids[:, :-1]).logits[:, start - 1 :].double()
        model.train(was_training)
        logps = logits.log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]
        return logps.masked_fill(ids[:, start:] == self.tokenizer.pad_token_id, 0.0).sum(1).exp()

    def policy(self, seed: int) -> Any:
        """A policy before it is improved by rewards."""
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            **SIZES,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
            max_position_embeddings=64,
        )
        model = LlamaForCausalLM(config)
        if self.name == "bandit":
            _fit_bandit(self, model)
        else:
            _fit(self, model, seed)
        return model


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 for the right answer, else 0. What comes without its end, for want of room, is longer than any answer."""
    return [
        float(got.split() == wanted.replace(END, "").split()) for got, wanted in zip(completions, answer, strict=True)
    ]


def make(name: str) -> Task:
    """One of the tasks by name."""
    return {"bandit": _bandit, "addition": _addition, "chain-sum": _chain_sums}[name]()


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<pad>", END, "<unk>", *words])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token=END, unk_token="<unk>", padding_side="left"
    )


def _bandit() -> Task:
    prompts = [f"p{number}" for number in range(BANDIT_PROMPTS)]
    answers = [f"a{number % BANDIT_ANSWERS}" for number in range(BANDIT_PROMPTS)]
    words = prompts + [f"a{number}" for number in range(BANDIT_ANSWERS)]
    return Task("bandit", _tokenizer(words), prompts, answers, fit_steps=400, fitted=BANDIT_PROMPTS)


def _addition() -> Task:
    pairs = [(a, b) for a in range(MODULUS) for b in range(MODULUS)]
    words = [str(number) for number in range(MODULUS)] + ["+", "="]
    prompts = [f"{a} + {b} =" for a, b in pairs]
    answers = [str((a + b) % MODULUS) for a, b in pairs]
    return Task("addition", _tokenizer(words), prompts, answers, fit_steps=100, fitted=round(FITTED_SHARE * len(pairs)))


def _chain_sums() -> Task:
    from reasoning_gym import create_dataset

    problems: dict[str, str] = {}
    for entry in create_dataset("chain_sum", size=4 * NUM_CHAIN_SUMS, **CHAIN_SUMS):
        if len(problems) < NUM_CHAIN_SUMS:
            problems.setdefault(f"{entry['metadata']['expression']} =", " ".join([*entry["answer"], END]))
    words = [*"0123456789", "+", "-", "="]
    fitted = round(FITTED_SHARE * len(problems))
    return Task("chain-sum", _tokenizer(words), list(problems), list(problems.values()), fit_steps=100, fitted=fitted)


def _fit(task: Task, model: Any, seed: int) -> None:
    """Cross-entropy on the answers of some prompts."""
    ids, start = task.inputs()
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[: task.fitted]
    optimizer = torch.optim.AdamW(model.parameters(), lr=FIT_LEARNING_RATE, weight_decay=0.01)
    for _ in range(task.fit_steps):
        logits = model(input_ids=ids[order, :-1]).logits[:, start - 1 :]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[order, start:].flatten(), ignore_index=task.tokenizer.pad_token_id
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _fit_bandit(task: Task, model: Any) -> None:
    """Make the probability of the right answer what the prompt's share says, and the others equal."""
    ids, start = task.inputs()
    wanted = torch.cat([torch.full((round(s * len(ids)),), p) for s, p in BANDIT_SHARES])
    target = ((1 - wanted) / (BANDIT_ANSWERS - 1))[:, None].repeat(1, len(task.tokenizer))
    target[:, : len(task.tokenizer) - BANDIT_ANSWERS] = 0
    target.scatter_(1, ids[:, start:], wanted[:, None])
    optimizer = torch.optim.AdamW(model.parameters(), lr=BANDIT_LEARNING_RATE, weight_decay=0.0)
    for _ in range(task.fit_steps):
        logits = model(input_ids=ids[:, :-1]).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
