"""`mmbert evaluate-policy` from a file of problems to a table; mistakes are told before a model is loaded."""

import argparse
import dataclasses
import doctest
import importlib.util
import json

import pytest

from mmbert_hf import cli
from mmbert_hf.cli import evaluate_policy
from mmbert_hf.evaluation.samples import read_samples
from mmbert_hf.evaluation.sampling import SamplingSettings

WORDS = ["<pad>", "<end>", "<user>", *"0123456789", "+", "=", "Answer:"]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no cache but this test's, and the verb is there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(cli, "VERBS", tuple(dict.fromkeys([*cli.VERBS, evaluate_policy])))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny policy."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = "{% for message in messages %}<user> {{ message.content }}{% endfor %}"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, initializer_range=0.3, **sizes, **ids)
        )
    folder = tmp_path_factory.mktemp("policy")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"{number} + {number} =", "answer": 2 * number} for number in range(5)]
    return write(tmp_path / "problems.jsonl", rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*argv):
    return cli.main(["evaluate-policy", *map(str, argv)])


def options(data, out, *more):
    return ["--data", data, "--output-dir", out, "--num-samples", 4, "--max-new-tokens", 4, "--checker", "exact", *more]


def test_docstring_examples():
    result = doctest.testmod(evaluate_policy)
    assert result.attempted >= 3
    assert result.failed == 0


def test_from_problems_to_a_table(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(model, *options(data, out, "--k", 1, 2, 4, "--quiet")) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split() == ["pass@k", "maj@k", "avg@k"]
    assert [line.split()[0] for line in lines[1:4]] == ["k=1", "k=2", "k=4"]
    assert lines[4] == "5 problems, 4 samples each; in brackets 95 % intervals over the problems"
    assert lines[-1] == f"written to {out}: samples.jsonl, results.json"
    assert printed.err == ""
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["model"] == str(model)
    assert results["settings"]["max_new_tokens"] == 4
    assert results["checker"] == "exact"
    assert results["sampling"]["mean_tokens"] > 1
    assert len(results["problems"]) == 5
    mean, low, high = (results["metrics"]["pass@4"][name] for name in ("mean", "low", "high"))
    assert f"{mean:.3f} [{low:.3f} to {high:.3f}]" in lines[3]
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "samples.jsonl"]


def test_the_same_command_continues(model, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(model, *options(data, out, "--quiet")) == 0
    samples, results = ((out / name).read_bytes() for name in ("samples.jsonl", "results.json"))
    (out / "samples.jsonl").write_bytes(samples[:-30])
    (out / "results.json").unlink()
    assert run(model, *options(data, out, "--quiet", "--batch-size", 3)) == 0
    assert (out / "samples.jsonl").read_bytes() == samples
    assert (out / "results.json").read_bytes() == results
    monkeypatch.setattr("transformers.LlamaForCausalLM.generate", lambda *_, **__: pytest.fail("generated"))
    assert run(model, *options(data, out, "--quiet")) == 0
    capsys.readouterr()
    assert run(model, *options(data, out, "--quiet", "--seed", 5)) == 2
    assert "was sampled with seed 0 and not 5" in capsys.readouterr().err


def test_samples_are_scored_again_without_a_model(tmp_path, capsys):
    rows = [{"id": name, "answer": "0.5", "completions": [r"\boxed{\frac12}", "so 3", "0.5"]} for name in "ab"]
    file = write(tmp_path / "samples.jsonl", rows)
    assert run("--from-samples", file, "--checker", "exact", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert results["settings"] == {}
    assert results["metrics"]["avg@3"]["mean"] == pytest.approx(1 / 3)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
    pytest.importorskip("math_verify", reason="comparing mathematics needs the extra [reasoning]")
    assert run("--from-samples", file, "--k", 3, "--output-dir", tmp_path / "again") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["k=3", "1.000"]
    assert lines[3] == "2 of 6 samples without an answer"
    assert lines[4] == f"written to {tmp_path / 'again'}: results.json"
    results = json.loads((tmp_path / "again" / "results.json").read_text())
    assert results["metrics"]["avg@3"]["mean"] == pytest.approx(2 / 3)
    assert run("--from-samples", file, "--k", 3, "--answer-anywhere", "--json") == 0
    assert json.loads(capsys.readouterr().out)["problems"][0]["num_answered"] == 3


def test_columns_chat_and_names(model, tmp_path, capsys):
    rows = [{"question": f"{number} + 1 =", "right": f"#### {number + 1}", "nr": number} for number in range(3)]
    data = write(tmp_path / "p.jsonl", rows)
    columns = ["--prompt-column", "question", "--answer-column", "right", "--id-column", "nr"]
    assert run(model, *options(data, tmp_path / "plain", *columns, "--quiet")) == 0
    assert run(model, *options(data, tmp_path / "chat", *columns, "--quiet", "--chat")) == 0
    plain, chat = (read_samples(tmp_path / name / "samples.jsonl")[1] for name in ("plain", "chat"))
    assert [each.problem.id for each in plain] == ["0", "1", "2"]
    assert plain[1].problem.prompt == "1 + 1 ="
    assert chat[1].problem.prompt == [{"role": "user", "content": "1 + 1 ="}]
    assert plain[1].completions != chat[1].completions
    capsys.readouterr()
    assert run(model, *options(data, tmp_path / "wrong")) == 2
    error = capsys.readouterr().err
    assert "row 0 has no 'prompt' and no 'answer'; its columns are ['nr', 'question', 'right']" in error
    assert "--prompt-column prompt" in error


def test_mistakes_are_one_sentence_and_status_2(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmbert_hf.evaluation.policies.load_policy", lambda *_: pytest.fail("loaded"))
    out = tmp_path / "out"
    full = options(data, out, "--quiet")
    empty = write(tmp_path / "empty.jsonl", [])
    text = write(tmp_path / "problems.txt", [{}])
    file = write(tmp_path / "file", [])
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in ("math_verify", "vllm") else found(name, *more)
    )
    for argv, message in (
        ([], "MODEL, --data, --output-dir is missing; or score samples that there are with --from-samples FILE"),
        ([model, "--data", data], "--output-dir is missing"),
        ([model, *full, "--k", 1, 5], "--k must be from 1 to --num-samples, which is 4; got [5]"),
        ([model, *full, "--temperature", 0], "at temperature 0 all 4 samples would be one"),
        ([model, *full, "--checker", "math"], "pip install 'mmbert-hf[reasoning]'"),
        ([model, *full, "--backend", "vllm"], "the backend 'vllm' needs vLLM, which is not installed"),
        ([model, *full, "--answer-anywhere"], "for the checker 'math'"),
        (["./nowhere", *full], "there is no folder './nowhere'"),
        ([model, *full, "--data", tmp_path / "none.jsonl"], "there is no file"),
        ([model, *full, "--data", empty], "is no file of problems: it is empty, or no .jsonl"),
        ([model, *full, "--data", text], "is no file of problems"),
        ([model, *full, "--output-dir", file], "is a file; give a folder as --output-dir"),
        (["--from-samples", file, "--seed", 0, "--chat"], "leave out --seed, --chat"),
        ([model, "--from-samples", file, "--data", data], "leave out MODEL, --data"),
        (["--from-samples", tmp_path / "none", "--checker", "exact"], "there is no file of samples"),
        (["--from-samples", empty, "--checker", "exact"], "for 0 problems"),
    ):
        assert run(*argv) == 2, argv
        error = capsys.readouterr().err
        assert error.startswith("mmbert evaluate-policy: ")
        assert message in error
        assert "Traceback" not in error
    assert not out.exists()
    with pytest.raises(ValueError, match="is missing"):
        run("--debug")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(model, *full) == 2
    assert "runs in one process" in capsys.readouterr().err


def test_defaults_are_those_of_the_settings(model, data, tmp_path, monkeypatch):
    table = {name: default for name, (_, default, _) in evaluate_policy.SAMPLING.items()}
    assert table == dataclasses.asdict(SamplingSettings())
    parser = argparse.ArgumentParser()
    evaluate_policy.add_parser(parser.add_subparsers(dest="verb"))
    args = parser.parse_args(["evaluate-policy", "m", "--data", "d", "--output-dir", str(tmp_path)])
    evaluate_policy._check(args)
    assert {name: getattr(args, name) for name in table} == table
    assert (args.prompt_column, args.backend, args.dtype, args.chat) == ("prompt", "transformers", "auto", False)
