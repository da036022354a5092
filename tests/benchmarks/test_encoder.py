import doctest
import json
import statistics
import sys

import comparison
import encoder
import pytest
import torch
from encoder import UsageError, _cannot_run, main, plan
from machine import available_memory

TINY = ["--model", "tiny", "--cases", "128x8", "--mode", "inference", "--skip-memory"]


@pytest.mark.parametrize("module", [encoder, comparison])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_a_run_writes_everything(tmp_path, capsys):
    output, page = tmp_path / "run.json", tmp_path / "run.md"
    assert main([*TINY, "--pairs", "6", "--output", str(output), "--markdown", str(page)]) == 0
    document = json.loads(output.read_text())
    (result,) = document["results"]
    ours, baseline = (result["implementations"][name] for name in ("mmbert", "modernbert-sdpa"))
    assert list(result["implementations"]) == ["mmbert", "modernbert-sdpa", "xlm-roberta-shape"]
    assert len(ours["time"]["seconds"]) == len(baseline["time"]["seconds"]) == result["pairs"] == 6
    ratios = [b / a for a, b in zip(ours["time"]["seconds"], baseline["time"]["seconds"], strict=True)]
    assert result["ratios"]["modernbert-sdpa"]["ratios"] == ratios
    assert result["ratios"]["modernbert-sdpa"]["interval"] == [min(ratios), max(ratios)]
    assert ours["time"]["tokens_per_second"] == 1024 / statistics.median(ours["time"]["seconds"])
    assert ours["peak_memory"] == {"bytes": None, "note": "not measured"}
    assert result["agreement"]["modernbert-sdpa"]["outputs"] <= 1e-4
    assert document["versions"]["torch"] == torch.__version__
    assert document["command"].endswith(f"--pairs 6 --output {output} --markdown {page}")
    assert str(tmp_path) not in json.dumps(document["options"])
    printed = capsys.readouterr().out
    assert "128 x 8 tokens, 100.0% real" in printed
    assert f"{statistics.median(ratios):.3f}" in printed
    assert f"| modernbert-sdpa | {baseline['time']['median_seconds']:.4g} |" in page.read_text()


def test_a_disagreement_stops_before_timing(tmp_path, capsys, monkeypatch):
    def wrong_weights(ours, baseline):
        baseline.load_state_dict(ours.state_dict())
        with torch.no_grad():
            baseline.layers[0].attn.Wo.weight.mul_(1.01)

    monkeypatch.setattr(comparison, "copy_weights", wrong_weights)
    output = tmp_path / "run.json"
    assert main([*TINY, "--pairs", "1", "--output", str(output)]) == 1
    document = json.loads(output.read_text())
    assert document["results"] == []
    assert document["notes"][-1].startswith("stopped: 128x8 inference: outputs of mmbert and modernbert-sdpa differ")
    assert "error: 128x8 inference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "mixed,9x9"], "unknown case 9x9; --cases takes some of mixed,4x512,1x2048,1x8192,128x8,mlm"),
        (["--cases", "mixed,mixed"], "given more than once"),
        (["--cases", ","], "nothing to measure"),
        (["--cases", "mlm", "--mode", "inference"], "nothing to measure"),
        (["--pairs", "0"], "--pairs is 0"),
        (["--threads", "-1"], "--threads is -1"),
        (["--output", "/no/such/folder/a.json"], "create it first"),
        (["--markdown", "/no/such/folder/a.md"], "create it first"),
        (["--output", __file__], "not written over"),
        (["--attn-implementation", "magic"], "--attn-implementation magic does not run here"),
    ],
)
def test_errors_come_before_work(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_says_what_to_do(capsys):
    assert main(["--device", "cuda"]) == 2
    assert "use --device cpu, or install a CUDA build" in capsys.readouterr().err


def test_the_encoder_comes_before_the_masked_language_model():
    pairs, notes = plan("mlm,128x8,1x2048", "training")
    assert [case.name for case, _ in pairs] == ["128x8", "1x2048", "mlm"]
    assert notes == []
    with pytest.raises(UsageError, match="unknown case"):
        plan("128X8", "both")


def test_what_ran_out_of_memory_is_not_timed_and_has_no_figure(tmp_path, monkeypatch):
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    output = tmp_path / "run.json"
    arguments = ["--model", "tiny", "--cases", "128x8", "--mode", "inference", "--pairs", "1", "--output", str(output)]
    assert main(arguments) == 0
    document = json.loads(output.read_text())
    (result,) = document["results"]
    assert result["ratios"] == {}
    for name, measured in result["implementations"].items():
        assert measured["time"] is None
        assert measured["peak_memory"] == {"bytes": None, "note": "ended by signal 9, mostly out of memory"}
        assert f"128x8 inference: {name} not timed: its memory process ended by signal 9" in "\n".join(
            document["notes"]
        )


def test_what_would_exhaust_the_memory_is_not_timed():
    peaks = {"large": {"bytes": 10**15, "note": None}, "small": {"bytes": 10**3, "note": None}}
    peaks["unknown"] = {"bytes": None, "note": "no peak memory on this system"}
    reasons = _cannot_run(peaks)
    assert list(reasons) == ([] if available_memory() is None else ["large"])
