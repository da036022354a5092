"""Completions of a causal language model, each drawn with random numbers of its own.

Design decisions:

- Sample j of problem x is drawn with random numbers of its own, one for each token, which depend on the seed, the name
  of x and j alone (`sample_uniforms`). A token is where the cumulated probabilities pass its number (`inverse_cdf`). So
  a sample depends neither on the batch size, nor on the other problems and their order, nor on how many samples
  there are, nor on where a run was stopped. What is left is rounding: other batches add up in another order, and where
  a number falls within that rounding of a boundary, the sample goes another way from there. In float32 that is
  rare; in bfloat16 long samples of different batch sizes will part, both of them drawn from the same distribution.
- ``generate`` itself has one random state for a whole batch, which gives none of this. It is run greedily, on logits of
  which only the chosen token is left; temperature, top-k and top-p are transformers' own, in their order.
- The distribution is the model's at this temperature, top-k and top-p. The model's ``generation_config`` gives the ids
  that end a completion, and nothing else: no repetition penalty comes in by the back door.
- Weights, mode and generation_config of the model are as before afterwards. The global random state is not touched.
- vLLM takes a seed for each problem. Its samples are others than transformers', repeatable as far as vLLM is.

Shape legend: B sequences of a batch, T tokens of a completion, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mmbert_hf.evaluation.samples import Problem, Prompt

if TYPE_CHECKING:
    import torch

__all__ = [
    "SamplingSettings",
    "encode_prompt",
    "generate_by_transformers",
    "generate_by_vllm",
    "inverse_cdf",
    "sample_uniforms",
]

T = TypeVar("T")
Completion = tuple[str, int, bool]  # text, tokens, whether it ended by itself


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn.

    Attributes:
        num_samples: Completions of each problem.
        max_new_tokens: A completion is cut off behind so many.
        temperature: Logits are divided by it; 0 takes the most probable token.
        top_p: Tokens are drawn from the smallest set of at least this probability; 1 for all.
        top_k: Tokens are drawn from so many most probable ones; 0 for all.
        seed: Of all random numbers.

    Raises:
        ValueError: A value is out of its range, or several samples are asked for at temperature 0.

    Example:
        >>> SamplingSettings(num_samples=8, top_p=0.95).temperature
        1.0
    """

    num_samples: int = 32
    max_new_tokens: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("max_new_tokens", 1), ("temperature", 0), ("top_k", 0), ("seed", 0)):
            value = getattr(self, name)
            if not value >= least or value == float("inf"):
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"at temperature 0 all {self.num_samples} samples would be one: set num_samples=1, or a temperature"
            )


def sample_uniforms(seed: int, problem_id: str, sample: int, length: int) -> np.ndarray:
    """Random numbers that one sample of one problem is drawn with.

    Args:
        seed: Of all samples.
        problem_id: Name of the problem.
        sample: Number of the sample, from 0.
        length: How many; more of them begin with the same ones.

    Returns:
        float64 [T], from 0 up to but not including 1.

    Example:
        >>> a, b = sample_uniforms(0, "x", 1, length=3), sample_uniforms(0, "x", 1, length=9)
        >>> bool((a == b[:3]).all()), bool((b == sample_uniforms(0, "y", 1, length=9)).any())
        (True, False)
    """
    return np.random.default_rng([seed, _name_number(problem_id), sample]).random(length)


def inverse_cdf(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw a token from each row's distribution by one random number.

    Args:
        scores: Logits [B, V]; -inf for tokens that must not come.
        uniforms: From 0 up to but not including 1, float64 [B] on the same device.

    Returns:
        int64 [B]: the first token at which the cumulated probability exceeds the number.

    Raises:
        ValueError: A row has a NaN, or no finite logit.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.5, 0.0, 0.5]]).log().expand(4, 3)
        >>> inverse_cdf(logits, torch.tensor([0.0, 0.49, 0.51, 0.999]))
        tensor([0, 0, 2, 2])
    """
    import torch

    precise = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
    cumulated_BV = scores.to(precise).softmax(-1).cumsum(-1)
    if not torch.isfinite(cumulated_BV[:, -1]).all():
        raise ValueError("the model's logits are NaN, or all -inf: load it in another dtype, such as float32")
    targets_B = uniforms.to(precise) * cumulated_BV[:, -1]
    chosen_B = torch.searchsorted(cumulated_BV, targets_B[:, None], right=True)[:, 0]
    return chosen_B.clamp(max=scores.shape[1] - 1)


def encode_prompt(tokenizer: Any, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt.

    Args:
        tokenizer: Of the model.
        prompt: A text, which takes the tokenizer's special tokens, or messages, which take its chat template.
        chat_template_kwargs: More arguments of the template, such as ``enable_thinking``.

    Returns:
        The ids.

    Raises:
        ValueError: The prompt is of messages and there is no chat template, or it has no tokens.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"ask": 0, "1": 1, "+": 2}, unk_token="ask"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> tokenizer.chat_template = "ask {{ messages[-1].content }}"
        >>> encode_prompt(tokenizer, "1 + 1"), encode_prompt(tokenizer, [{"role": "user", "content": "1 + 1"}])
        ([1, 2, 1], [0, 1, 2, 1])
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "a prompt is a list of messages, but the tokenizer has no chat template: give texts as prompts"
        )
    else:
        text = tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, **(chat_template_kwargs or {})
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"the prompt {str(prompt)[:80]!r} has no tokens")
    return list(ids)


def generate_by_transformers(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    prompts: Mapping[str, list[int]],
    settings: SamplingSettings,
    batch_size: int,
) -> Iterator[tuple[Problem, list[Completion]]]:
    """Complete prompts by ``model.generate``.

    Args:
        model: A causal language model, on its device.
        tokenizer: Of the model.
        problems: To be completed in this order.
        prompts: Name of a problem -> its token ids.
        settings: How completions are drawn.
        batch_size: Sequences of a forward pass, of one problem or several.

    Yields:
        A problem with its completions, as soon as all of them are there.
    """
    ends = _end_ids(model, tokenizer)
    waiting: dict[str, list[Completion]] = {}
    with _ready(model, settings, ends, tokenizer) as config:
        samples = ((problem, number) for problem in problems for number in range(settings.num_samples))
        for batch in _batched(samples, batch_size):
            ids = [prompts[problem.id] for problem, _ in batch]
            uniforms_BT = np.stack(
                [
                    sample_uniforms(settings.seed, problem.id, number, settings.max_new_tokens)
                    for problem, number in batch
                ]
            )
            rows = _generate_batch(model, ids, uniforms_BT, settings, config)
            for (problem, _), row in zip(batch, rows, strict=True):
                length = next((place + 1 for place, token in enumerate(row) if token in ends), None)
                kept = row[:length]
                text = tokenizer.decode(kept, skip_special_tokens=True)
                waiting.setdefault(problem.id, []).append((text, len(kept), length is not None))
                if len(waiting[problem.id]) == settings.num_samples:
                    yield problem, waiting.pop(problem.id)


def _generate_batch(
    model: Any, prompts: Sequence[list[int]], uniforms_BT: np.ndarray, settings: SamplingSettings, config: Any
) -> list[list[int]]:
    """New tokens of each sequence, with whatever comes behind its end."""
    import torch
    from transformers import LogitsProcessorList

    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), config.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):  # padded on the left
        input_ids[row, longest - len(ids) :] = torch.tensor(ids)
        attention_mask[row, longest - len(ids) :] = 1
    processors = LogitsProcessorList()
    if settings.temperature > 0:
        processors.append(_Sampler(torch.from_numpy(uniforms_BT).to(model.device), longest, settings))
    with torch.no_grad():
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=config,
            logits_processor=processors,
        )
    return output[:, longest : longest + settings.max_new_tokens].tolist()


class _Sampler:
    """Leaves of the logits only the token that is drawn."""

    def __init__(self, uniforms_BT: torch.Tensor, prompt_length: int, settings: SamplingSettings) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self.uniforms_BT, self.prompt_length = uniforms_BT, prompt_length
        self.warpers: list[Any] = []  # in transformers' order
        if settings.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            self.warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self.warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        # transformers may ask for one token more before it finds that all sequences have ended
        step = min(input_ids.shape[1] - self.prompt_length, self.uniforms_BT.shape[1] - 1)
        chosen_B = inverse_cdf(scores, self.uniforms_BT[:, step])
        return scores.new_full(scores.shape, -float("inf")).scatter_(1, chosen_B[:, None], 0.0)


def generate_by_vllm(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    prompts: Mapping[str, list[int]],
    settings: SamplingSettings,
    batch_size: int,
) -> Iterator[tuple[Problem, list[Completion]]]:
    """Complete prompts by vLLM, which makes batches of its own.

    Written after vLLM's documentation. It is not run by the tests of this project, where vLLM is not installed.

    Args:
        model: A folder or Hub name, or a `vllm.LLM`. A name is loaded only if there is a problem.
        tokenizer: Not used: vLLM has its own for the text of a completion.
        problems: To be completed in this order.
        prompts: Name of a problem -> its token ids.
        settings: How completions are drawn.
        batch_size: Problems that are given to vLLM at a time.

    Yields:
        A problem with its completions.
    """
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, seed=settings.seed) if problems and isinstance(model, str) else model
    for batch in _batched(problems, batch_size):
        parameters = [
            SamplingParams(
                n=settings.num_samples,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k or -1,
                max_tokens=settings.max_new_tokens,
                seed=_name_number(problem.id, settings.seed) % 2**31,
            )
            for problem in batch
        ]
        inputs = [{"prompt_token_ids": prompts[problem.id]} for problem in batch]
        for problem, output in zip(batch, engine.generate(inputs, parameters, use_tqdm=False), strict=True):
            yield problem, [(each.text, len(each.token_ids), each.finish_reason == "stop") for each in output.outputs]


@contextmanager
def _ready(model: Any, settings: SamplingSettings, ends: list[int], tokenizer: Any) -> Iterator[Any]:
    """Evaluation mode and a plain generation_config for a block, and back however it ends."""
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=pad
    )
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]  # peft keeps two
    own = [holder.generation_config for holder in holders]
    was_training = model.training
    for holder in holders:  # else the model's values fill in for those that are not set here
        holder.generation_config = config
    model.eval()
    try:
        yield config
    finally:
        for holder, before in zip(holders, own, strict=True):
            holder.generation_config = before
        model.train(was_training)


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a completion: the model's, else the tokenizer's."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter (itertools.batched, which Python 3.11 has not)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _name_number(problem_id: str, seed: int = 0) -> int:
    """A number of 64 bits that depends on a name, and a seed."""
    text = f"{seed}:{problem_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
