"""The SPO benchmark: tasks with known answers, curves and their comparison, cells that are made once."""

import json

import numpy as np
import pytest
import spo
import spo_learning
import spo_overhead
import spo_tasks
import torch

from mmbert_hf import ValueTracker


@pytest.fixture
def small(monkeypatch):
    """Two steps of sixteen responses, policies that were hardly fitted."""
    for name, value in {"BATCH": 16, "STEPS": 2, "EVERY": 1}.items():
        monkeypatch.setattr(spo_learning, name, value)
    make = spo_tasks.make

    def made(name):
        task = make(name)
        task.fit_steps = 2
        return task

    monkeypatch.setattr(spo_tasks, "make", made)


@pytest.mark.parametrize("name", spo_learning.TASKS)
def test_answers_are_right_and_prompts_of_one_length(name):
    task = spo_tasks.make(name)
    assert len(set(task.prompts)) == len(task.prompts)
    ids, start = task.inputs()
    assert ids.shape == (len(task.prompts), start + task.longest_answer)
    assert (ids != task.tokenizer.unk_token_id).all()
    assert (ids[:, : start + 1] != task.tokenizer.pad_token_id).all()
    for prompt, answer in zip(task.prompts, task.answers, strict=True):
        if name == "addition":
            a, _, b, _ = prompt.split()
            assert int(answer) == (int(a) + int(b)) % spo_tasks.MODULUS
        if name == "chain-sum":
            assert answer.endswith(spo_tasks.END)
            assert int(answer.removesuffix(spo_tasks.END).replace(" ", "")) == eval(prompt.removesuffix("="))


def test_the_success_rate_is_the_probability_of_the_whole_answer_and_of_its_end():
    task = spo_tasks.make("chain-sum")
    task.fit_steps = 1
    model = task.policy(0)
    ids, start = task.inputs()
    rates = task.success_rates(model)
    lengths = (ids[:, start:] != task.tokenizer.pad_token_id).sum(1)
    for row in (int(lengths.argmin()), int(lengths.argmax())):
        expected = 1.0
        for place in range(start, start + int(lengths[row])):
            with torch.no_grad():
                probabilities = model(input_ids=ids[row : row + 1, :place]).logits[0, -1].double().softmax(-1)
            expected *= float(probabilities[ids[row, place]])
        assert float(rates[row]) == pytest.approx(expected, rel=1e-4)


def test_the_bandit_has_the_shares_that_are_written_down():
    task = spo_tasks.make("bandit")
    rates = task.success_rates(task.policy(0))
    assert float((rates < 0.05).double().mean()) == pytest.approx(0.4)
    assert float((rates > 0.7).double().mean()) == pytest.approx(0.4)


def test_rewards_are_exact():
    assert spo_tasks.reward(["1 2", " 1 2", "12", "1"], answer=["1 2"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert spo_tasks.reward(["1 2", "1 2 3"], answer=[f"1 2 {spo_tasks.END}"] * 2) == [1.0, 0.0]


def test_curves_are_read_at_the_same_tokens(tmp_path):
    total = spo_learning.budget(spo_tasks.make("addition"))
    for seed in spo_learning.SEEDS:
        curve = [{"tokens": tokens, "success": success} for tokens, success in ((seed, 0.2), (total + 7 * seed, 0.4))]
        (tmp_path / spo_learning.Cell("addition", "spo", seed, 1e-3).file).write_text(json.dumps({"curve": curve}))
    tokens, values = spo.read_curves(tmp_path, "addition", "spo", 1e-3)
    assert values.shape == (len(spo_learning.SEEDS), len(tokens))
    assert tokens[-1] == total
    assert (values[:, 0] == 0.2).all(), "starting samples are paid before anything is learnt"
    assert values[:, len(tokens) // 2] == pytest.approx(0.3, abs=1e-3)
    assert spo.read_curves(tmp_path, "addition", "grpo", 1e-3) is None


def test_where_a_curve_reaches_a_level():
    tokens, mean = np.array([0.0, 10.0, 20.0]), np.array([0.2, 0.2, 0.6])
    assert spo.tokens_to_reach(tokens, mean, 0.4) == 15.0
    assert spo.tokens_to_reach(tokens, mean, 0.2) == 0.0
    assert spo.tokens_to_reach(tokens, mean, 0.7) == float("inf")


def test_a_method_that_is_the_base_needs_all_of_its_tokens():
    tokens = np.array([0.0, 10.0, 20.0])
    values = np.array([[0.1, 0.2, 0.5], [0.1, 0.3, 0.7]])
    figures = spo.compare(tokens, values, tokens, values)
    assert figures["difference"] == 0
    assert figures["difference_interval"] == [0, 0]
    assert figures["share"] == 1.0
    better = spo.compare(tokens, values + 0.2, tokens, values)
    assert better["difference"] == pytest.approx(0.2)
    assert better["share"] < 1
    assert spo.compare(tokens, values - 0.2, tokens, values)["share"] == float("inf")


@pytest.mark.parametrize("method", ["grpo", "grpo-weighted", "spo", "spo-paper", "no-baseline"])
def test_a_cell_spends_its_tokens_and_no_more(small, method):
    cell = spo_learning.Cell("addition", method, 1, 1e-3)
    if method == "spo-paper":  # 8 starting samples for each of 529 prompts are more than two steps
        assert spo_learning.run(cell)["curve"][-1]["tokens"] == 8 * 529 + 16 + (-8 * 529) % 16
        return
    record = spo_learning.run(cell)
    assert [point["tokens"] for point in record["curve"]] == [0, 16, 32]
    assert record["curve"][0]["success"] != record["curve"][-1]["success"], "the policy has learnt something"
    json.dumps(record)


def test_groups_of_weighted_grpo_are_groups(small, monkeypatch):
    seen = []
    monkeypatch.setattr(
        spo_tasks, "reward", lambda completions, answer, prompts, **_: seen.append(prompts) or [0.0] * len(prompts)
    )
    spo_learning.run(spo_learning.Cell("addition", "grpo-weighted", 1, 1e-3))
    assert all(len(set(prompts[start : start + 8])) == 1 for prompts in seen for start in (0, 8))


def test_cells_are_made_once(small, tmp_path, monkeypatch):
    cells = [spo_learning.Cell("addition", "spo", seed, 1e-3) for seed in (1, 2, 3)]
    spo_learning.run_missing(iter(cells), tmp_path, 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == [cells[1].file]
    monkeypatch.setattr(spo_learning, "run", lambda cell: pytest.fail("it is there already"))
    spo_learning.run_missing(iter(cells), tmp_path, 1, 2)


def test_the_report_has_the_methods_of_which_all_seeds_are_there(tmp_path):
    for cell in spo_learning.selection_cells(("addition",)):
        success = 0.5 + cell.learning_rate
        curve = [{"tokens": 0, "success": 0.4}, {"tokens": 20, "success": success}]
        (tmp_path / cell.file).write_text(json.dumps({"curve": curve}))
    assert set(spo_learning.chosen_rates(tmp_path, "addition").values()) == {max(spo_learning.LEARNING_RATES)}
    for cell in spo_learning.final_cells(tmp_path, ("addition",)):
        if cell.method in ("grpo", "spo") or (cell.method == "spo-paper" and cell.seed == 1):
            success = {"grpo": 0.5, "spo": 0.6, "spo-paper": 0.0}[cell.method]
            total = spo_learning.budget(spo_tasks.make("addition"))
            points = ((0, 0.4, 0.3), (total, success, 0.1 * cell.seed))
            curve = [{"tokens": token, "success": rate, "hard": hard} for token, rate, hard in points]
            (tmp_path / cell.file).write_text(json.dumps({"curve": curve}))
    report = spo.report(tmp_path)
    figures = "0.600 +- 0.000 | 0.500 +- 0.000 | 0.550 +- 0.303 | +0.100 (+0.100 to +0.100) | 0.50 (0.50 to 0.50) |"
    assert f"| spo | 0.001 | {figures}" in report
    assert "spo-paper" not in report


def test_a_round_is_what_the_trainer_does_with_its_tracker():
    tracker = ValueTracker(5000)
    spo_overhead.one_round(tracker, seed=1)
    assert tracker.round == 1
    assert tracker.visits.sum() == spo_overhead.BATCH


def test_a_step_of_a_larger_model_has_all_its_tokens(monkeypatch):
    monkeypatch.setattr(spo_overhead, "RESPONSES", 4)
    monkeypatch.setattr(spo_overhead, "TOKENS", 3)
    seconds, responses = spo_overhead.large_step(
        vocab_size=49_152, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    assert seconds > 0
    assert responses == 4


def test_the_table_of_costs():
    rounds = {"14000": {"median": 0.002, "min": 0.001, "max": 0.003}}
    steps = {"addition": {"seconds": 0.1, "responses": 128}, "135 M": {"seconds": 20.0, "responses": 32}}
    lines = spo.overhead_table({"rounds": rounds, "steps": steps}).splitlines()
    assert lines[0].endswith("| share of a step: addition, 100 ms | share of a step: 135 M, 20,000 ms |")
    assert lines[2] == "| 14,000 | 2.00 (1.00 - 3.00) | 2.00% | 0.01% |"


def test_everything_in_one_file(small, tmp_path):
    cell = spo_learning.Cell("bandit", "spo", 1, 1e-3)
    spo_learning.run_missing(iter([cell]), tmp_path)
    (tmp_path / "overhead.json").write_text('{"batch": 1024}')
    spo.write_collected(spo.collected(tmp_path), tmp_path / "all.json")
    found = json.loads((tmp_path / "all.json").read_text())
    curve = json.loads((tmp_path / cell.file).read_text())["curve"]
    (run,) = found["runs"]
    assert (run["task"], run["method"], run["seed"]) == ("bandit", "spo", 1)
    assert run["tokens"] == [point["tokens"] for point in curve]
    assert run["success"] == pytest.approx([point["success"] for point in curve], abs=1e-4)
    assert found["overhead"] == {"batch": 1024}
