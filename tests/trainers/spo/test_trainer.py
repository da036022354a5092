"""SPOTrainer does what its parts say, in the order the paper says: draw, answer, compare with the value, learn, forget."""

import json
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from huggingface_hub import ModelCard
from mmbert_hf.trainers.spo import trainer as module
from mmbert_hf.trainers.spo.divergence import kept_share
from mmbert_hf.trainers.spo.sampling import draw_prompts
from mmbert_hf.trainers.spo.tracker import ValueTracker

pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing\\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)


class Watched(module.SPOTrainer):
    """Keeps the drift at which each round learnt, and the batches that the loss saw."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drifts, self.batches = [], []

    def _learn(self, *args):
        self.drifts.append(self.tracker.drift)
        return super()._learn(*args)

    def _compute_loss(self, model, inputs):
        self.batches.append(inputs)
        return super()._compute_loss(model, inputs)


def replay(trainer, calls, prompts):
    """A run once more, by hand, from what the reward function was asked and what it gave: values, draws, advantages."""
    args = trainer.args
    tracker = ValueTracker(len(prompts), prior_weight=args.prior_weight)
    rounds = []
    for call, tracker.drift in zip(calls, trainer.drifts, strict=True):
        rows, from_floor = draw_prompts(
            tracker,
            args.generation_batch_size,
            sampling=args.sampling,
            exploration_floor=args.exploration_floor,
            weight_offset=args.weight_offset,
            n_eff_power=args.n_eff_power,
            seed=args.seed,
        )
        assert call.prompts == [prompts[row] for row in rows]  # each drawn prompt, once
        rewards, values = np.array(call.rewards), tracker.values[rows]
        raw = rewards - values
        if args.advantage_scale == "prompt":
            raw = raw / np.sqrt(values * (1 - values) + 0.02)
        weights = np.array([len(ids) for ids in call.ids]) if args.advantage_normalization == "token" else 1
        repeated = np.repeat(raw, weights)
        std = repeated.std(ddof=1)
        divergence = tracker.drift_since_visit(rows)
        rho = kept_share(divergence, d_half=args.d_half, rho_min=args.rho_min, rho_max=args.rho_max)
        tracker.update(rows, rewards, rho)
        rounds.append(
            SimpleNamespace(
                advantages=(raw - repeated.mean()) / max(std, args.min_advantage_std),
                metrics={
                    "value_mean": tracker.values.mean(),
                    "value_p10": np.quantile(tracker.values, 0.1),
                    "value_p90": np.quantile(tracker.values, 0.9),
                    "advantage_std": std,
                    "divergence": divergence.mean(),
                    "rho": rho.mean(),
                    "n_eff": tracker.weights.mean(),
                    "visits": tracker.visits.mean(),
                    "unseen": np.mean(tracker.visits == 0),
                    "floor_share": from_floor / len(rows),
                    "starved": np.mean(tracker.round - tracker.last_round >= args.starvation_rounds),
                    "brier": np.mean((values - rewards) ** 2),
                    "grpo_wasted": np.mean(tracker.values**8 + (1 - tracker.values) ** 8),
                },
            )
        )
        tracker.round += 1
    return tracker, rounds


def assert_same_tracker(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


WAYS = {
    "as it is": {},
    "paper": {"sampling": "bernoulli", "advantage_scale": "batch", "exploration_floor": 0.0, "divergence": "constant"},
    "thompson, by token": {"sampling": "thompson", "advantage_normalization": "token", "n_eff_power": 0.5},
    "uniform, a large floor of the std": {"sampling": "uniform", "min_advantage_std": 10.0, "divergence": "constant"},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_what_its_parts_say(spo, tiny, way):
    recorder, prompts = tiny.Recorder(), tiny.sums()["prompt"][:]
    trainer = spo(
        recorder,
        trainer_class=Watched,
        max_steps=4,
        gradient_accumulation_steps=2,
        exploration_floor=WAYS[way].get("exploration_floor", 0.3),
        starvation_rounds=2,
        **{name: value for name, value in WAYS[way].items() if name != "exploration_floor"},
    )
    trainer.train()
    tracker, rounds = replay(trainer, recorder.calls, prompts)
    assert_same_tracker(trainer.tracker, tracker)
    assert len(rounds) == 4
    seen = {}
    for batch in trainer.batches:
        for place, advantage in enumerate(batch["advantages"].tolist()):
            ids = (batch["prompt_ids"][place], batch["completion_ids"][place])
            prompt, completion = (trainer.processing_class.decode(each, skip_special_tokens=True) for each in ids)
            seen.setdefault((prompt, completion), set()).add(advantage)
    assert len(seen) > 20
    for call, expected in zip(recorder.calls, rounds, strict=True):
        assert np.std(expected.advantages) > 0
        for prompt, completion, advantage in zip(call.prompts, call.completions, expected.advantages, strict=True):
            assert any(found == pytest.approx(advantage, rel=1e-6) for found in seen[prompt, completion])
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, expected in zip(logged, rounds, strict=True):
        found = {name.removeprefix("spo/"): value for name, value in entry.items() if name.startswith("spo/")}
        assert found == pytest.approx(expected.metrics, rel=1e-9, abs=1e-12)
        assert "frac_reward_zero_std" not in entry


def test_the_table_of_completions_has_our_advantages(spo, tiny, tmp_path, capsys):
    recorder = tiny.Recorder()
    trainer = spo(recorder, trainer_class=Watched, log_completions=True)
    trainer.train()
    _, rounds = replay(trainer, recorder.calls, tiny.sums()["prompt"][:])
    for step, (call, expected) in enumerate(zip(recorder.calls, rounds, strict=True), start=1):
        table = pandas.read_parquet(tmp_path / "run" / "completions" / f"completions_{step:05d}.parquet")
        assert table["prompt"].tolist() == call.prompts
        assert table["completion"].tolist() == call.completions
        assert table["recorder"].tolist() == call.rewards
        assert table["advantage"].tolist() == pytest.approx(list(expected.advantages), rel=1e-9)


def test_evaluation_leaves_the_tracker_alone(spo, tiny):
    recorder, held_out = tiny.Recorder(), tiny.sums(4, first=20)
    trainer = spo(
        recorder, eval_dataset=held_out, eval_strategy="steps", eval_steps=1, num_generations_eval=2,
        per_device_eval_batch_size=4,
    )  # fmt: skip
    trainer.train()
    training = [call for call in recorder.calls if call.prompts[0] not in held_out["prompt"]]
    assert trainer.tracker.round == len(training) == 2
    assert trainer.tracker.visits.sum() == trainer.tracker.reward_count == 8
    before = trainer.tracker.state_dict()
    recorder.calls.clear()
    metrics = trainer.evaluate()
    assert_same_tracker(trainer.tracker, ValueTracker.from_state_dict(before))
    asked = [prompt for call in recorder.calls for prompt in call.prompts]
    assert sorted(asked) == sorted(held_out["prompt"][:] * 2)
    assert metrics["eval_reward"] == pytest.approx(np.mean([call.rewards for call in recorder.calls]))
    assert not any(name.startswith("eval_spo/") for name in metrics)


def log_probs(trainer, prompt_ids, completion_ids):
    """Of one response, without padding and with the plain model."""
    with torch.no_grad():
        logits = trainer.model(torch.tensor([prompt_ids + completion_ids])).logits[0, len(prompt_ids) - 1 : -1]
    logps = (logits / trainer.temperature).log_softmax(-1)
    return logps[torch.arange(len(completion_ids)), completion_ids].double()


class Compared(module.SPOTrainer):
    """Computes every divergence a second time, one response at a time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.last, self.micro_batch, self.expected, self.found = {}, [], [], []

    def _measure_divergence(self, rows):
        moved = [(self._now(ids) - then).abs() for *ids, then in self.micro_batch]
        drift = torch.cat(moved).mean() if moved else 0.0
        self.expected.append(([self._since(row) for row in rows], float(drift)))
        before = self.tracker.drift
        divergence = super()._measure_divergence(rows)
        self.found.append((list(divergence), self.tracker.drift - before))
        return divergence

    def _now(self, ids):
        return log_probs(self, *ids)

    def _since(self, row):
        if row not in self.last:
            return 0.0
        *ids, then = self.last[row]
        kept = self.args.max_trajectory_tokens
        return float((self._now(ids) - then).abs()[:kept].mean())

    def _remember(self, rows, output, written):
        super()._remember(rows, output, written)
        responses = []
        for place in range(len(rows)):
            ids = [
                output[f"{part}_ids"][place][output[f"{part}_mask"][place].bool()].tolist()
                for part in ("prompt", "completion")
            ]
            responses.append((*ids, self._now(ids)))
        self.last |= dict(zip(rows.tolist(), responses, strict=True))
        self.micro_batch = responses[: self.args.per_device_train_batch_size]


# num_iterations=2: GRPOTrainer has log-probabilities of its own, with the dropout of training in them
DIVERGENCE_RUNS = {
    "plain": {},
    "several steps": {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "num_iterations": 2},
}


@pytest.mark.parametrize("options", DIVERGENCE_RUNS.values(), ids=DIVERGENCE_RUNS)
@pytest.mark.parametrize("divergence", ["drift", "trajectory"])
def test_divergence_is_how_far_the_policy_moved(spo, divergence, options):
    steps = 3 * options.get("steps_per_generation", 1) * options.get("num_iterations", 1)
    trainer = spo(
        trainer_class=Compared,
        divergence=divergence,
        max_trajectory_tokens=2,
        max_steps=steps,
        temperature=0.7,
        **options,
    )
    trainer.train()
    assert len(trainer.found) == 3
    for (found, drift), (expected, expected_drift) in zip(trainer.found, trainer.expected, strict=True):
        if divergence == "trajectory":
            assert found == pytest.approx(expected, abs=2e-5)
        else:
            assert drift == pytest.approx(expected_drift, abs=2e-5)
    if divergence == "trajectory":
        assert max(max(found) for found, _ in trainer.found) > 0.01
        assert trainer.tracker.drift == 0
    else:
        assert trainer.tracker.drift > 0.03
        assert all(drift > 0.001 for _, drift in trainer.found[1:])


@pytest.mark.parametrize("options", DIVERGENCE_RUNS.values(), ids=DIVERGENCE_RUNS)
@pytest.mark.parametrize("divergence", ["drift", "trajectory"])
def test_a_policy_that_stays_has_not_moved(spo, tiny, divergence, options):
    steps = 3 * options.get("steps_per_generation", 1) * options.get("num_iterations", 1)
    model = tiny.model(attention_dropout=0.5)
    trainer = spo(
        model=model, trainer_class=Compared, divergence=divergence, learning_rate=0.0, max_steps=steps,
        dataset=tiny.sums(5), **options,
    )  # fmt: skip
    trainer.train()
    assert trainer.tracker.drift == 0
    assert np.abs(np.concatenate([found for found, _ in trainer.found])).max() < 1e-6
    assert model.training


def test_warmup_visits_everybody_first(spo, tiny):
    recorder = tiny.Recorder()
    trainer = spo(recorder, initial_values="warmup", max_steps=3, exploration_floor=0.0)
    trainer.train()
    asked = [call.prompts for call in recorder.calls]
    assert len({*asked[0], *asked[1]}) == 8
    assert {*asked[0], *asked[1], *asked[2]} == {*tiny.sums()["prompt"]}
    plain = spo(tiny.Recorder(), max_steps=3, exploration_floor=0.0, folder="plain")
    plain.train()
    assert plain.tracker.visits.min() == 0


def test_ids_carry_values_to_a_changed_data_set(spo, tiny, tmp_path):
    first = spo(max_steps=4, prompt_id_column="name", save_strategy="steps", save_steps=4)
    first.train()
    value_of = dict(zip(first.tracker.keys, first.tracker.values, strict=True))
    changed = tiny.sums(8, first=5).select([7, 0, 3, 1, 2, 4, 5, 6])  # five are known, three are new
    second = spo(
        initial_values=str(tmp_path / "run" / "checkpoint-4"), prompt_id_column="name", dataset=changed, folder="second"
    )
    expected = [value_of.get(name, 0.5) for name in changed["name"]]
    assert second.tracker.values.tolist() == expected
    assert len({*expected} - {0.5}) >= 2


def test_a_stream_takes_over_what_it_knows(spo, tiny, tmp_path):
    stream = tiny.sums().to_iterable_dataset()
    first = spo(max_steps=2, dataset=stream, save_strategy="steps", save_steps=2)
    first.train()
    assert len(first.tracker) == 8
    second = spo(initial_values=str(tmp_path / "run" / "checkpoint-2"), dataset=stream, folder="second")
    assert second.tracker.keys == first.tracker.keys
    assert second.tracker.values.tolist() == first.tracker.values.tolist()
    second.train()
    assert len(second.tracker) == 8  # the same first prompts


def test_the_card_says_what_was_done(spo, tmp_path):
    trainer = spo(max_steps=3, logging_steps=1, sampling="thompson")
    trainer.train()
    trainer.create_model_card(model_name="sums", dataset_name="me/sums", tags="arithmetic")
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "2509.13232" in card
    visits, rewards = int(trainer.tracker.visits.sum()), [log["reward"] for log in trainer.state.log_history[:3]]
    for name, value in {"method": "SPO, one", "steps": "3 |", "responses": visits, "sampling": "thompson |"}.items():
        assert f"| {name} | {value}" in card
    assert f"| reward of a response | {rewards[0]:.4g} | {rewards[2]:.4g} |" in card
    assert "Its licence is not known here" in card
    data = ModelCard(card).data
    assert {"spo", "mmbert-hf", "arithmetic"} <= set(data.tags)
    assert (data.datasets, data.pipeline_tag, data.base_model) == (["me/sums"], "text-generation", None)


def test_the_card_before_training(spo, tmp_path):
    spo().create_model_card()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "| steps | 0 |" in card
    assert "Not measured." in card


def test_the_config_survives_a_round_trip(spo):
    args = spo(sampling="thompson", d_half=0.1).args
    assert type(args.num_generations) is int
    assert json.loads(args.to_json_string())["sampling"] == "thompson"
