"""What cannot work is refused before work starts, or at the first response that shows it, and the message says what to do.

Where a model is named that does not exist, the refusal must come before anything is loaded.
"""

import re

import datasets
import numpy as np
import pytest
from mmbert_hf.trainers.spo import SPOConfig, SPOTrainer
from trl import GRPOConfig

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)

NOWHERE = "no/such-model"

BAD_REWARDS = {
    "nan": (lambda n: [float("nan")] + [0.0] * (n - 1), "returned nan for response 0: rewards must be finite numbers, or None"),
    "inf": (lambda n: [0.0] * (n - 1) + [np.inf], "returned inf for response 3"),
    "text": (lambda n: ["good"] * n, "returned 'good' for response 0"),
    "digits": (lambda n: ["1"] * n, "returned '1' for response 0"),
    "lists": (lambda n: [[1.0]] * n, "returned [1.0] for response 0"),
    "too few": (lambda n: [1.0] * (n - 1), "returned 3 rewards for 4 responses"),
    "too many": (lambda n: [1.0] * (n + 1), "returned 5 rewards for 4 responses"),
    "one": (lambda n: 1.0, "must return a list of rewards, got float"),
    "nothing": (lambda n: None, "must return a list of rewards, got NoneType"),
    "a word": (lambda n: "good", "must return a list of rewards, got str"),
    "above 1": (lambda n: [2.0] + [0.0] * (n - 1), "rewards must be in [0, 1] for Beta values, got 0 to 2: scale them"),
    "below 0": (lambda n: [-1.0] * n, "got -1 to -1: scale them (reward_weights), or set value_model='average'"),
}  # fmt: skip


@pytest.mark.parametrize(("give", "message"), BAD_REWARDS.values(), ids=BAD_REWARDS)
def test_rewards(spo, give, message):
    def judge(completions, **_):
        return give(len(completions))

    trainer = spo(judge)
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.train()
    assert not trainer.tracker.visits.any()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("name", ["nan", "too few", "above 1"])
def test_rewards_that_are_awaited(spo, name):
    give, message = BAD_REWARDS[name]

    async def judge(completions, **_):
        return give(len(completions))

    with pytest.raises(ValueError, match=re.escape(message)):
        spo(judge).train()


def test_rewards_before_training(spo):
    calls = []

    def judge(completions, **_):
        calls.append(1)
        return [2.0] * len(completions)

    trainer = spo(judge, initial_values="offline")
    with pytest.raises(ValueError, match=r"rewards must be in \[0, 1\]"):
        trainer.train()
    assert len(calls) == 1  # not after eight responses to every prompt
    assert trainer.num_generations_eval == 1
    assert trainer.model.training


def test_the_function_is_named(spo, tiny):
    def second(completions, **_):
        return [None]

    with pytest.raises(ValueError, match="reward function second returned 1 rewards for 4 responses"):
        spo([tiny.odd, second]).train()


def stream_without_prompts():
    return datasets.Dataset.from_dict({"question": ["1+1="] * 8}).to_iterable_dataset()


BAD_DATA = {
    "empty": (lambda: datasets.Dataset.from_dict({"prompt": []}), ValueError, "data set is empty"),
    "no prompts": (
        lambda: datasets.Dataset.from_dict({"question": ["1+1="]}), ValueError,
        "needs a column 'prompt', it has question",
    ),
    "a list": (lambda: [{"prompt": "1+1="}], TypeError, "must be a Dataset or an IterableDataset, got list"),
    "several sets": (
        lambda: datasets.DatasetDict(train=datasets.Dataset.from_dict({"prompt": ["1+1="]})), TypeError,
        "must be a Dataset or an IterableDataset, got DatasetDict",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "error", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_data(spo, data, error, message):
    with pytest.raises(error, match=re.escape(message)):
        spo(model=NOWHERE, dataset=data())


def test_a_stream_without_prompts(spo):
    with pytest.raises(ValueError, match="needs a column 'prompt', it has question"):
        spo(dataset=stream_without_prompts()).train()


IDS = {
    "twice": (["a", "b", "a"], "must differ, got 'a' more than once"),
    "missing": (["a", None, "b"], "column 'id' has no id in row 1"),
    "the same as text": ([1, 2, 1], "must differ, got '1' more than once"),
}


@pytest.mark.parametrize(("ids", "message"), IDS.values(), ids=IDS)
def test_ids(spo, ids, message):
    dataset = datasets.Dataset.from_dict({"prompt": ["1", "2", "3"], "id": ids})
    with pytest.raises(ValueError, match=message):
        spo(model=NOWHERE, dataset=dataset, prompt_id_column="id")


def test_a_column_of_ids_that_is_not_there(spo):
    with pytest.raises(
        ValueError, match="prompt_id_column 'key' is not in the data set, which has prompt, answer, name"
    ):
        spo(model=NOWHERE, prompt_id_column="key")


@pytest.mark.parametrize("way", ["offline", "warmup"])
def test_visits_to_prompts_that_nobody_knows(spo, tiny, way):
    with pytest.raises(ValueError, match=f"initial_values='{way}' visits every prompt, and those of a stream"):
        spo(model=NOWHERE, dataset=tiny.sums().to_iterable_dataset(), initial_values=way)


def test_values_from_nowhere(spo, tmp_path):
    with pytest.raises(ValueError, match=r"holds neither spo_tracker.safetensors nor the data set of a tracker"):
        spo(initial_values=str(tmp_path))


def test_arguments_of_grpo(tiny, tmp_path):
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match="args must be an SPOConfig, got GRPOConfig; it takes the same arguments"):
        SPOTrainer(NOWHERE, tiny.odd, args, tiny.sums())


BAD_OPTIONS = {
    "groups": ({"num_generations": 8}, "num_generations must be 1, got 8: SPO answers every prompt once"),
    "a single response": ({"per_device_train_batch_size": 1}, "a generation must have at least 2 responses"),
    "rewards normalised apart": (
        {"multi_objective_aggregation": "normalize_then_sum"}, "there are no groups: use 'sum_then_normalize'",
    ),
    "sampling": ({"sampling": "greedy"}, "sampling must be one of unsolved, bernoulli, thompson, uniform, got 'greedy'"),
    "rho": ({"rho_min": 0.97}, "0 < rho_min <= rho_max <= 1 must hold, got 0.97 and 0.96"),
    "floor": ({"exploration_floor": 1.5}, "exploration_floor must be in [0, 1], got 1.5"),
    "samples": ({"num_initial_samples": 0}, "num_initial_samples must be at least 1, got 0"),
    "reference in memory": ({"beta": 0.1}, "Save it and pass the folder, pass a PeftModel, or set beta=0"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_options(spo, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        spo(**options)


def test_no_samples(spo):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        spo().estimate_values(0)


def test_trajectories_of_a_model_that_sees(spo, tiny):
    model, processor, pictures = tiny.pictures()
    with pytest.raises(ValueError, match="divergence='trajectory' keeps text alone: for models that see use 'drift'"):
        spo(model=model, processing_class=processor, dataset=pictures, divergence="trajectory")


@pytest.mark.parametrize("version", ["1.9.2", "1.17.0", "2.0.0"])
def test_another_trl(tiny, tmp_path, monkeypatch, version):
    monkeypatch.setattr("mmbert_hf.trainers.spo.compatibility.version", lambda name: version)
    args = SPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match=rf"trl {version} is installed.*pip install 'trl"):
        SPOTrainer(NOWHERE, tiny.odd, args, tiny.sums())


@pytest.mark.parametrize("start", ["prio", "./no-such-folder"])
def test_a_start_that_is_not_there(tiny, tmp_path, start):
    args = SPOConfig(str(tmp_path), initial_values=start, per_device_train_batch_size=4, use_cpu=True, bf16=False)
    with pytest.raises(
        ValueError, match=rf"initial_values='{re.escape(start)}' is none of prior, warmup, offline, and there"
    ):
        SPOTrainer(NOWHERE, lambda **_: [], args, tiny.sums())
