"""Scores of a policy: completions sampled to every problem, checked, and counted as pass@k, maj@k and avg@k.

Design decisions:

- What can be wrong is told before anything is generated: settings, missing packages, right answers that are empty,
  prompts that are too long, and a file of samples of other settings.
- Sampling and scoring are two steps with a file between them (`mmbert_hf.evaluation.samples`); `evaluate_policy` is both.
- How samples are drawn, and how far they are repeatable, is in `mmbert_hf.evaluation.sampling`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from mmbert_hf.evaluation.answers import AnswerChecker, get_checker
from mmbert_hf.evaluation.reasoning import ReasoningScores
from mmbert_hf.evaluation.samples import Problem, Samples, append_samples, check_problems, resume_samples, score_samples
from mmbert_hf.evaluation.sampling import (
    SamplingSettings,
    encode_prompt,
    generate_by_transformers,
    generate_by_vllm,
)

__all__ = ["check_backend", "evaluate_policy", "load_policy", "sample_policy"]

BACKENDS = {"transformers": generate_by_transformers, "vllm": generate_by_vllm}


def evaluate_policy(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    num_samples: int = 32,
    ks: Sequence[int] | None = None,
    max_new_tokens: int = 2048,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    *,
    top_k: int = 0,
    checker: str | AnswerChecker = "math",
    samples_file: str | Path | None = None,
    backend: Literal["transformers", "vllm"] = "transformers",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> ReasoningScores:
    """Sample completions to every problem, check them, and score: pass@k, maj@k and avg@k.

    How far the result does not depend on the batch size and the order of the problems: see `sample_policy`.

    Args:
        model: See `sample_policy`.
        tokenizer: Of the model.
        problems: What to ask, with the right answers.
        num_samples: Completions of each problem.
        ks: Each from 1 to `num_samples`; where None, 1 and `num_samples`.
        max_new_tokens: A completion is cut off behind so many.
        temperature: Logits are divided by it; 0 takes the most probable token.
        top_p: Tokens are drawn from the smallest set of at least this probability.
        seed: Of all random numbers.
        batch_size: Sequences of a forward pass; for vLLM, problems between two writes of `samples_file`.
        top_k: Tokens are drawn from so many most probable ones; 0 for all.
        checker: "math" (needs math-verify), "exact", or an object with the methods of `AnswerChecker`.
        samples_file: Keeps the completions, and lets a run that was stopped go on.
        backend: "transformers" or "vllm".
        chat_template_kwargs: More arguments of the chat template.
        progress: Show a bar.

    Returns:
        The scores, in the order of the problems.

    Raises:
        ValueError: Before anything is generated, if an argument is out of its range, a right answer is empty, or a
            package is missing; see also `sample_policy`.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"1": 0, "+": 1, "=": 2, "2": 3}, unk_token="2"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=4, **sizes, eos_token_id=None))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> problems = [Problem("sum", "1 + 1 =", "2")]
        >>> scores = evaluate_policy(model, tokenizer, problems, 8, max_new_tokens=1, checker="exact")
        >>> scores.ks, scores.num_samples, scores.num_answered
        ([1, 8], array([8]), array([8]))
    """
    settings = SamplingSettings(num_samples, max_new_tokens, temperature, top_p, top_k, seed)
    ks = sorted({1, num_samples}) if ks is None else ks
    if not ks or not all(1 <= k <= num_samples for k in ks):
        raise ValueError(f"each k must be from 1 to num_samples, which is {num_samples}; got {list(ks)}")
    checker = get_checker(checker) if isinstance(checker, str) else checker  # type: ignore[arg-type]
    for problem in problems:
        checker.reference(problem.answer)
    samples = sample_policy(
        model,
        tokenizer,
        problems,
        settings,
        batch_size=batch_size,
        samples_file=samples_file,
        backend=backend,
        chat_template_kwargs=chat_template_kwargs,
        progress=progress,
    )
    return score_samples(samples, ks, checker)


def sample_policy(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    settings: SamplingSettings,
    *,
    batch_size: int = 32,
    samples_file: str | Path | None = None,
    backend: Literal["transformers", "vllm"] = "transformers",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Samples]:
    """Sample completions to every problem.

    With transformers, the random numbers of a sample depend on the seed, the name of its problem and its number alone.
    So a sample is the same for any batch size, order and choice of problems, and number of samples, but for rounding
    (see `mmbert_hf.evaluation.sampling`). With vLLM each problem has a seed of its own, and the rest is vLLM's.
    The vLLM part follows vLLM's documentation; the tests of this project do not run it, but for its errors.

    Args:
        model: A causal language model of transformers, on its device; for vLLM, a folder or Hub name, or a `vllm.LLM`.
        tokenizer: Of the model.
        problems: What to ask.
        settings: How completions are drawn.
        batch_size: Sequences of a forward pass; for vLLM, problems between two writes of `samples_file`.
        samples_file: Samples are written there as each problem is done, and those that it has are not drawn again. It
            remembers the settings and the model's name, and refuses others.
        backend: "transformers" or "vllm".
        chat_template_kwargs: More arguments of the chat template.
        progress: Show a bar.

    Returns:
        The samples, in the order of the problems.

    Raises:
        ValueError: There is no problem, or two of one name; a prompt and its completion are longer than the model's
            positions; the model cannot generate; the file is of other settings; or vLLM is missing.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"1": 0, "+": 1, "=": 2, "2": 3}, unk_token="2"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=4, **sizes, eos_token_id=None))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> problems = [Problem("sum", "1 + 1 =", "2")]
        >>> few, more = (
        ...     sample_policy(model, tokenizer, problems, SamplingSettings(number, max_new_tokens=3)) for number in (2, 5)
        ... )
        >>> few[0].completions == more[0].completions[:2], few[0].num_tokens
        (True, (3, 3))
    """
    check_problems(problems)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_backend(backend)
    if backend == "transformers":
        _check_can_generate(model)
    prompts = {problem.id: encode_prompt(tokenizer, problem.prompt, chat_template_kwargs) for problem in problems}
    if backend == "transformers":
        _check_lengths(model, prompts, settings.max_new_tokens)
    done: dict[str, Samples] = {}
    if samples_file is not None:
        about = {"model": _model_name(model), "dtype": str(getattr(model, "dtype", None)), "backend": backend}
        template: dict[str, Any] = {"chat_template": dict(chat_template_kwargs or {})}
        done = resume_samples(samples_file, {**about, **template, **asdict(settings)}, problems)
    todo = [problem for problem in problems if problem.id not in done]

    from mmbert_hf.progress import progress_bar

    with progress_bar(progress, total=len(problems), initial=len(done), desc="problems", unit="") as bar:
        for problem, completions in BACKENDS[backend](model, tokenizer, todo, prompts, settings, batch_size):
            done[problem.id] = Samples(problem, *zip(*completions, strict=True))
            if samples_file is not None:
                append_samples(samples_file, done[problem.id])
            bar.update()
    return [done[problem.id] for problem in problems]


def load_policy(name: str, dtype: str = "auto") -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, onto the GPU if there is one.

    Args:
        name: Folder or Hub name.
        dtype: Of the weights, such as "bfloat16"; "auto" is the one that they were saved in.

    Returns:
        Model in evaluation mode, and tokenizer.

    Raises:
        OSError: There is no such model.
        ValueError: It is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from mmbert_hf.hub.fetching import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), load_tokenizer(name)


def check_backend(backend: str) -> None:
    """Raise a ValueError if there is no such backend, or if it is not installed.

    Args:
        backend: "transformers" or "vllm".

    Example:
        >>> check_backend("transformers")
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "the backend 'vllm' needs vLLM, which is not installed: pip install vllm (on Linux with a GPU), "
            "or take the backend 'transformers'"
        )


def _check_can_generate(model: Any) -> None:
    if isinstance(model, str):
        raise ValueError(f"got the name {model!r}: the backend 'transformers' takes a model, such as load_policy gives")
    can_generate = getattr(model, "can_generate", None)
    if can_generate is None or not can_generate() or model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is no causal language model, which a policy has to be")


def _check_lengths(model: Any, prompts: Mapping[str, list[int]], max_new_tokens: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    name, longest = max(((name, len(ids)) for name, ids in prompts.items()), key=lambda pair: pair[1])
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"problem {name!r} has {longest} tokens; with {max_new_tokens} new ones that is more than the {limit} "
            f"positions of the model: set max_new_tokens to at most {limit - longest}, or leave the problem out"
        )


def _model_name(model: Any) -> str:
    return model if isinstance(model, str) else str(getattr(getattr(model, "config", None), "_name_or_path", ""))
