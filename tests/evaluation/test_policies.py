import doctest
import importlib.util

import pytest

from mmbert_hf.evaluation import policies as module
from mmbert_hf.evaluation.policies import evaluate_policy, load_policy, sample_policy
from mmbert_hf.evaluation.samples import Problem, read_samples, score_samples
from mmbert_hf.evaluation.sampling import SamplingSettings

FOUR = SamplingSettings(num_samples=4, max_new_tokens=8)


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 20
    assert result.failed == 0


def test_scores_are_those_of_the_samples(policy, word_tokenizer, problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    # the right answer of each problem is what its second sample happened to be
    drawn = sample_policy(policy, word_tokenizer, problems, FOUR)
    known = [Problem(each.problem.id, each.problem.prompt, each.completions[1]) for each in drawn]
    scores = evaluate_policy(
        policy, word_tokenizer, known, 4, ks=[1, 2, 4], max_new_tokens=8, checker="exact", samples_file=path
    )
    assert scores.problem_ids == ("one", "long", "short", "chat")
    assert scores.mean("pass@4") == 1.0
    assert 0.2 < scores.mean("avg@4") < 1
    settings, found = read_samples(path)
    assert [each.completions for each in found] == [each.completions for each in drawn]
    assert score_samples(found, [1, 2, 4], "exact").to_dict() == scores.to_dict()
    assert settings["num_samples"] == 4
    assert settings["backend"] == "transformers"


def test_other_batch_sizes_give_the_same_scores_and_file(policy, word_tokenizer, problems, tmp_path):
    options = {"max_new_tokens": 8, "checker": "exact", "temperature": 0.7, "top_p": 0.9}
    results = []
    for batch_size in (1, 5, 64):
        path = tmp_path / f"{batch_size}.jsonl"
        scores = evaluate_policy(
            policy, word_tokenizer, problems, 3, batch_size=batch_size, samples_file=path, **options
        )
        results.append((scores.to_dict(), path.read_bytes()))
    assert results[0] == results[1] == results[2]
    assert [name for name in results[0][0]["metrics"] if name.startswith("pass")] == ["pass@1", "pass@3"]


def test_a_run_that_was_cut_off_goes_on(policy, word_tokenizer, problems, tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    whole = sample_policy(policy, word_tokenizer, problems, FOUR, samples_file=path)
    written = path.read_bytes()
    lines = written.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:50])  # two problems, and half of the third
    sequences = []
    real = policy.generate

    def counting(**inputs):
        sequences.append(len(inputs["input_ids"]))
        return real(**inputs)

    monkeypatch.setattr(policy, "generate", counting)
    assert sample_policy(policy, word_tokenizer, problems, FOUR, samples_file=path) == whole
    assert sum(sequences) == 8
    assert path.read_bytes() == written
    assert sample_policy(policy, word_tokenizer, problems[::-1], FOUR, samples_file=path) == whole[::-1]
    assert sum(sequences) == 8, "nothing was left to generate"


def test_what_was_done_before_an_error_is_kept(policy, word_tokenizer, problems, tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    real, calls = policy.generate, []

    def breaking(**inputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(**inputs)

    with monkeypatch.context() as patch:
        patch.setattr(policy, "generate", breaking)
        with pytest.raises(KeyboardInterrupt):
            sample_policy(policy, word_tokenizer, problems, FOUR, batch_size=4, samples_file=path)
    assert [each.problem.id for each in read_samples(path)[1]] == ["one", "long"]
    assert sample_policy(policy, word_tokenizer, problems, FOUR, samples_file=path) == sample_policy(
        policy, word_tokenizer, problems, FOUR
    )


def test_a_file_of_another_model_is_refused(policy, word_tokenizer, problems, tmp_path):
    path = tmp_path / "samples.jsonl"
    sample_policy(policy, word_tokenizer, problems, FOUR, samples_file=path)
    policy.config._name_or_path = "other"
    with pytest.raises(ValueError, match="was sampled with model '' and not 'other'"):
        sample_policy(policy, word_tokenizer, problems, FOUR, samples_file=path)
    policy.config._name_or_path = ""
    with pytest.raises(ValueError, match=r"dtype 'torch.float32' and not 'torch.bfloat16'"):
        sample_policy(policy.bfloat16(), word_tokenizer, problems, FOUR, samples_file=path)


def test_template_arguments_reach_the_prompt(policy, word_tokenizer, problems):
    plain = sample_policy(policy, word_tokenizer, problems, FOUR)
    loud = sample_policy(policy, word_tokenizer, problems, FOUR, chat_template_kwargs={"loud": True})
    assert plain[:3] == loud[:3]
    assert plain[3] != loud[3]


def test_vllm_that_is_missing_is_told(word_tokenizer, problems, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: found(name) if name != "vllm" else None)
    path = tmp_path / "samples.jsonl"
    with pytest.raises(ValueError, match=r"needs vLLM, which is not installed: pip install vllm .* 'transformers'"):
        evaluate_policy("some/model", word_tokenizer, problems, checker="exact", backend="vllm", samples_file=path)
    assert not path.exists()


def test_mistakes_are_told_before_anything_is_generated(policy, word_tokenizer, problems, monkeypatch, tmp_path):
    monkeypatch.setattr(policy, "generate", lambda **_: pytest.fail("generated"))
    path = tmp_path / "samples.jsonl"

    def evaluate(model=policy, asked=problems, samples=4, **options):
        options = {"max_new_tokens": 8, "checker": "exact", "samples_file": path, **options}
        return evaluate_policy(model, word_tokenizer, asked, samples, **options)

    for options, message in (
        ({"ks": [5]}, r"each k must be from 1 to num_samples, which is 4; got \[5\]"),
        ({"ks": []}, "each k must be"),
        ({"checker": "fuzzy"}, "'math' or 'exact', got 'fuzzy'"),
        ({"asked": []}, "there is no problem"),
        ({"asked": [problems[0], problems[0]]}, "the problems 0 and 1 have the name 'one'"),
        ({"asked": [Problem("a", "1", " ")]}, "a reference answer is empty"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"backend": "magic"}, "backend must be one of transformers, vllm, got 'magic'"),
        ({"model": "a/name"}, "takes a model, such as load_policy gives"),
        ({"max_new_tokens": 55}, r"problem 'long' has 10 tokens; .* 64 positions of the model: set .* at most 54"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(**options)
    assert not path.exists()


def test_an_encoder_is_no_policy(tiny_model, word_tokenizer, problems):
    with pytest.raises(ValueError, match="MMBertForMaskedLM is no causal language model"):
        sample_policy(tiny_model, word_tokenizer, problems, FOUR)


def test_a_saved_policy_is_loaded(policy, word_tokenizer, problems, tmp_path):
    policy.save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_policy(str(tmp_path))
    assert not model.training
    expected = sample_policy(policy, word_tokenizer, problems, FOUR)
    if model.device.type == "cpu":
        assert sample_policy(model, tokenizer, problems, FOUR) == expected
    assert str(load_policy(str(tmp_path), "bfloat16")[0].dtype) == "torch.bfloat16"
