import doctest

import numpy as np
import pytest
import torch

from mmbert_hf.evaluation import sampling
from mmbert_hf.evaluation.sampling import (
    SamplingSettings,
    encode_prompt,
    generate_by_transformers,
    inverse_cdf,
    sample_uniforms,
)


def test_docstring_examples():
    result = doctest.testmod(sampling)
    assert result.attempted >= 10
    assert result.failed == 0


def generate(policy, tokenizer, problems, batch_size=6, **settings):
    """Name of a problem -> its completions."""
    prompts = {problem.id: encode_prompt(tokenizer, problem.prompt) for problem in problems}
    drawn = SamplingSettings(**{"num_samples": 4, "max_new_tokens": 12, **settings})
    return {
        problem.id: completions
        for problem, completions in generate_by_transformers(policy, tokenizer, problems, prompts, drawn, batch_size)
    }


def test_inverse_cdf_draws_each_token_as_often_as_it_is_probable():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(1, 11)) * 2)
    uniforms = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    chosen = inverse_cdf(logits.expand(100_000, -1), uniforms)
    shares = torch.bincount(chosen, minlength=11) / 100_000
    assert shares.numpy() == pytest.approx(logits.softmax(-1)[0].numpy(), abs=2e-5)
    assert (chosen.diff() >= 0).all()


def test_inverse_cdf_never_draws_what_is_impossible():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    uniforms = torch.tensor([0.0, 0.5, np.nextafter(0.5, 0), np.nextafter(1.0, 0)], dtype=torch.float64)
    assert inverse_cdf(logits, uniforms).tolist() == [1, 3, 1, 3]
    assert inverse_cdf(logits.bfloat16(), uniforms).tolist() == [1, 3, 1, 3]
    for broken in (torch.nan, -torch.inf):
        with pytest.raises(ValueError, match="logits are NaN, or all -inf: load it in another dtype"):
            inverse_cdf(torch.full((1, 3), broken), torch.zeros(1))


def test_random_numbers_of_a_sample_are_its_own():
    base = sample_uniforms(0, "x", 0, 50)
    assert 0 <= base.min() < base.max() < 1
    assert (sample_uniforms(0, "x", 0, 9) == base[:9]).all()
    for other in (sample_uniforms(1, "x", 0, 50), sample_uniforms(0, "y", 0, 50), sample_uniforms(0, "x", 1, 50)):
        assert not np.isin(other, base).any()


def one_by_one(policy, tokenizer, problem, number, settings):
    """Draw one sample alone, token by token, without cache, batch or padding."""
    ids = encode_prompt(tokenizer, problem.prompt)
    new = []
    for uniform in sample_uniforms(settings.seed, problem.id, number, settings.max_new_tokens):
        with torch.no_grad():
            probabilities = (policy(torch.tensor([ids + new])).logits[0, -1] / settings.temperature).softmax(-1)
        order = probabilities.argsort(descending=True)
        kept = order[: settings.top_k or len(order)]
        shares = probabilities[kept] / probabilities[kept].sum()
        kept = kept[shares.cumsum(0) - shares < settings.top_p]
        allowed = torch.zeros_like(probabilities).index_fill(0, kept, 1.0)
        cumulated = (probabilities * allowed).double().cumsum(0)
        new.append(int((cumulated <= uniform * cumulated[-1]).sum()))
        if new[-1] == tokenizer.eos_token_id:
            break
    text = tokenizer.decode(new, skip_special_tokens=True)
    return text, len(new), new[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5, "top_p": 0.6, "seed": 3}, {"top_k": 6, "top_p": 0.8, "temperature": 1.5}],
)
def test_a_sample_is_what_it_would_be_alone(policy, word_tokenizer, problems, options):
    settings = SamplingSettings(num_samples=4, max_new_tokens=12, **options)
    found = generate(policy, word_tokenizer, problems, batch_size=5, **options)
    for problem in problems:
        expected = [one_by_one(policy, word_tokenizer, problem, number, settings) for number in range(4)]
        assert found[problem.id] == expected


def test_samples_differ_and_some_end(policy, word_tokenizer, problems):
    found = [each for completions in generate(policy, word_tokenizer, problems).values() for each in completions]
    texts, tokens, finished = zip(*found, strict=True)
    assert len(set(texts)) > 8
    assert len(set(tokens)) > 3
    assert {*finished} == {True, False}
    assert all(number == 12 for number, flag in zip(tokens, finished, strict=True) if not flag)
    assert not any("<end>" in text or "<pad>" in text for text in texts)


def test_batch_size_order_and_number_change_nothing(policy, word_tokenizer, problems):
    whole = generate(policy, word_tokenizer, problems)
    for batch_size in (1, 7, 100):
        assert generate(policy, word_tokenizer, problems, batch_size) == whole
    assert generate(policy, word_tokenizer, problems[::-1], 5) == whole
    assert generate(policy, word_tokenizer, problems[1:2], 4) == {"long": whole["long"]}
    more = generate(policy, word_tokenizer, problems, 9, num_samples=6)
    assert {name: completions[:4] for name, completions in more.items()} == whole
    assert generate(policy, word_tokenizer, problems, seed=1) != whole


def test_problems_come_when_they_are_done(policy, word_tokenizer, problems, monkeypatch):
    batches = []
    real = policy.generate
    monkeypatch.setattr(
        policy, "generate", lambda **inputs: (batches.append(len(inputs["input_ids"])), real(**inputs))[1]
    )
    prompts = {problem.id: encode_prompt(word_tokenizer, problem.prompt) for problem in problems}
    settings = SamplingSettings(num_samples=4, max_new_tokens=2)
    stream = generate_by_transformers(policy, word_tokenizer, problems, prompts, settings, batch_size=6)
    assert [(problem.id, sum(batches)) for problem, _ in stream] == [
        ("one", 6),
        ("long", 12),
        ("short", 12),
        ("chat", 16),
    ]


def test_temperature_0_is_greedy(policy, word_tokenizer, problems):
    found = generate(policy, word_tokenizer, problems, num_samples=1, temperature=0)
    ids = torch.tensor([encode_prompt(word_tokenizer, problems[1].prompt)])
    greedy = policy.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    assert found["long"][0][0] == word_tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_model_is_left_as_it_was_and_its_generation_config_keeps_out(policy, word_tokenizer, problems):
    whole = generate(policy, word_tokenizer, problems)
    own = policy.generation_config
    own.update(do_sample=True, temperature=0.1, top_k=1, repetition_penalty=9.0, min_new_tokens=11, max_new_tokens=3)
    policy.train()
    before = torch.random.get_rng_state()
    assert generate(policy, word_tokenizer, problems) == whole
    assert (torch.random.get_rng_state() == before).all()
    assert policy.generation_config is own
    assert own.repetition_penalty == 9.0
    assert policy.training
    stream = generate_by_transformers(
        policy, word_tokenizer, problems, {problem.id: [99] for problem in problems}, SamplingSettings(2), 1
    )
    with pytest.raises(IndexError):
        next(stream)
    assert policy.generation_config is own
    assert policy.training


def test_the_model_says_what_ends_a_completion(policy, word_tokenizer, problems):
    policy.generation_config.eos_token_id = [word_tokenizer.eos_token_id, word_tokenizer.convert_tokens_to_ids("=")]
    found = [each for completions in generate(policy, word_tokenizer, problems).values() for each in completions]
    assert any(text.endswith("=") for text, _, _ in found)
    assert all(flag for text, _, flag in found if "=" in text)


def test_without_an_end_all_tokens_are_drawn(policy, word_tokenizer, problems):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer.backend_tokenizer)
    policy.generation_config.eos_token_id = None
    found = generate(policy, bare, problems[:3])
    assert all(number == 12 and not flag for completions in found.values() for _, number, flag in completions)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_peft_model_samples_as_its_merged_one(policy, word_tokenizer, problems):
    from peft import LoraConfig, get_peft_model

    policy.generation_config.repetition_penalty = 9.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(policy, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    found = generate(adapted, word_tokenizer, problems)
    assert adapted.get_base_model().generation_config.repetition_penalty == 9.0
    assert adapted.generation_config.repetition_penalty == 9.0
    assert generate(adapted.merge_and_unload(), word_tokenizer, problems) == found


def test_prompts_of_messages_take_the_chat_template(word_tokenizer):
    def ids(text):
        return word_tokenizer.convert_tokens_to_ids(text.split())

    chat = [{"role": "user", "content": "2 + 3 ="}]
    assert encode_prompt(word_tokenizer, chat) == ids("<user> 2 + 3 = <bot>")
    assert encode_prompt(word_tokenizer, chat, {"loud": True}) == [*ids("<user> 2 + 3 = <bot>"), 0]  # unknown
    assert encode_prompt(word_tokenizer, "2 + 3 =") == ids("2 + 3 =")
    with pytest.raises(ValueError, match="has no tokens"):
        encode_prompt(word_tokenizer, "  ")


def test_messages_without_a_template_are_told(word_tokenizer, monkeypatch):
    monkeypatch.setattr(word_tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="has no chat template: give texts as prompts"):
        encode_prompt(word_tokenizer, [{"role": "user", "content": "2"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be at least 0, got inf"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"temperature": 0.0}, "all 32 samples would be one: set num_samples=1"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**options)


def test_problem_names_may_be_any_text():
    assert sample_uniforms(0, "\ud800 é", 0, 1) != sample_uniforms(0, "é", 0, 1)
