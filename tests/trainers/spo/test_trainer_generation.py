"""Other ways to a response than sampling from the model: tools, environments, rollout functions, an engine.

vLLM itself is not run here: its place is taken by a stand-in that records what it is asked for.
"""

import json
import re
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from mmbert_hf.trainers.spo.prompts import EnvironmentPrompts

pytestmark = [
    # TRL 1.16 with transformers 5.23: TRL's own
    pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are using '(rollout_func|environment_factory)', which is an experimental"),
]


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def script(model, tokenizer, reply):
    """Let the model say what `reply` gives for the text so far, in place of what it would sample."""

    def generate(input_ids, **_):
        texts = tokenizer.batch_decode(input_ids)
        replies = [tokenizer(reply(text) + tokenizer.eos_token)["input_ids"] for text in texts]
        width = max(map(len, replies))
        padded = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in replies]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    model.generate = generate
    return model


CONVERSATION = {"max_completion_length": 200}


def moved(trainer):
    """Train, and return whether the weights moved."""
    before = trainer.model.lm_head.weight.clone()
    trainer.train()
    assert trainer.model.lm_head.weight.isfinite().all()
    return not torch.equal(trainer.model.lm_head.weight, before)


# Tools.


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: One.
        b: The other.

    Returns:
        Their sum.
    """
    return a + b


async def add_in_time(a: int, b: int) -> int:
    """Add two numbers, when there is time.

    Args:
        a: One.
        b: The other.

    Returns:
        Their sum.
    """
    return a + b


def asks_the_tool(name):
    def reply(text):
        a, b = re.findall(r"user\n(\d+)\+(\d+)=", text)[-1]
        if "<tool_response>\n" not in text:
            return call(name, a=int(a), b=int(b))
        answer = text.rpartition("<tool_response>\n")[2].partition("\n</tool_response>")[0]
        return answer if int(b) % 2 else "?"

    return reply


def is_right(completions, answer, **_):
    return [float(completion[-1]["content"] == right) for completion, right in zip(completions, answer, strict=True)]


@pytest.mark.parametrize(("tool", "divergence"), [(add, "drift"), (add_in_time, "trajectory")])
def test_tools(spo, tiny, tool, divergence):
    tokenizer, recorder = tiny.tokenizer(), tiny.Recorder(is_right)
    trainer = spo(
        recorder,
        model=script(tiny.model(max_position_embeddings=2048), tokenizer, asks_the_tool(tool.__name__)),
        dataset=tiny.sums(6, conversational=True),
        processing_class=tokenizer,
        tools=[tool],
        divergence=divergence,
        advantage_normalization="token",
        **CONVERSATION | {"max_steps": 3},  # so that prompts come again
    )
    assert moved(trainer)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tools/call_frequency"] == 1 and entry["tools/failure_frequency"] == 0 for entry in steps)
    roles = [message["role"] for message in recorder.calls[0].completions[0]]
    assert roles == ["assistant", "tool", "assistant"]
    odd = np.arange(6) % 2 == 1
    assert (trainer.tracker.values[odd & (trainer.tracker.visits > 0)] > 0.5).all()
    assert (trainer.tracker.values[~odd & (trainer.tracker.visits > 0)] < 0.5).all()
    # what the tool wrote counts nowhere: neither as the policy's tokens nor in the divergence
    last = recorder.calls[-1]
    a, b = (int(last.prompts[0][0]["content"][place]) for place in (0, 2))
    written = (
        call(tool.__name__, a=a, b=b) + tokenizer.eos_token + last.completions[0][-1]["content"] + tokenizer.eos_token
    )
    number = len(tokenizer(written)["input_ids"])
    if divergence == "drift":
        mask = trainer._probe.mask[0]
    else:
        row = tiny.sums(conversational=True)["prompt"][:].index(last.prompts[0])
        mask = trainer._trajectories.kept[row][2]
        assert any(entry.get("spo/divergence", 0) > 0 for entry in trainer.state.log_history)
    assert int(mask.sum()) == number < len(last.ids[0])


# Environments.


class Guessing:
    """Guess a number: the reward is the environment's own."""

    made = 0

    def __init__(self):
        Guessing.made += 1

    def reset(self, number=3, **_):
        self.number, self.solved = number, False
        return f" guess {number % 2}"

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: Your guess.

        Returns:
            Whether it is right.
        """
        self.solved = number == self.number
        return "right" if self.solved else "wrong"

    def get_reward(self):
        return float(self.solved)


class Silent(Guessing):
    """Another environment, which says nothing at the beginning."""

    def reset(self, **_):
        self.number, self.solved = 1, False


def guesses():
    """Always the same guess about some numbers, and a wrong one every third time about the others."""
    asked = 0

    def reply(text):
        nonlocal asked
        if "<tool_response>\n" in text:
            return "ok"
        asked += 1
        return call("guess", number=3 if asked % 3 else 4)

    return reply


def make_guesser(spo, tiny, dataset, factory, **options):
    tokenizer = tiny.tokenizer()
    model = script(tiny.model(max_position_embeddings=2048), tokenizer, guesses())
    return spo(
        None, model=model, dataset=dataset, processing_class=tokenizer, environment_factory=factory,
        **{**CONVERSATION, **options},
    )  # fmt: skip


def test_an_environment_with_prompts(spo, tiny):
    numbers = [3, 4, 5, 3, 4, 5]
    prompts = [[{"role": "user", "content": f"game {place}:"}] for place in range(6)]
    trainer = make_guesser(spo, tiny, datasets.Dataset.from_dict({"prompt": prompts, "number": numbers}), Guessing)
    assert len(trainer.tracker) == 6
    assert moved(trainer)
    seen = trainer.tracker.visits > 0
    never = np.array(numbers) == 5
    assert (trainer.tracker.values[never & seen] < 0.5).all()
    assert trainer.tracker.reward_count == 8
    assert 0 < trainer.tracker.reward_mean < 1


def test_an_environment_that_makes_the_prompts(spo, tiny):
    trainer = make_guesser(spo, tiny, None, Guessing)
    assert isinstance(trainer.prompts, EnvironmentPrompts)
    assert moved(trainer)
    assert trainer.tracker.keys == ["environment"]
    assert trainer.tracker.visits.tolist() == [8]
    assert trainer.tracker.reward_mean == 6 / 8  # every third of the guesses is not 3, which is the number


def test_several_environments(spo, tiny):
    names = datasets.Dataset.from_dict({"environment": ["one", "two", "one", "two"]})
    trainer = make_guesser(spo, tiny, names, {"one": Guessing, "two": Silent}, sampling="uniform")
    assert trainer.tracker.kind == "average"  # a reward function for each
    assert moved(trainer)
    assert (trainer.tracker.visits == 2).all()
    assert trainer.tracker.values[1::2].max() < trainer.tracker.values[0::2].min()  # nobody guesses 1


# Rollouts.


def test_a_rollout_function(spo, tiny):
    tokenizer = tiny.tokenizer()
    asked = []

    def rollout(prompts, trainer):
        asked.append(list(prompts))
        texts = [f"{len(asked)}{prompt}" for prompt in prompts]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(each) for each in ids],
            "env_mask": [[1] + [0] * (len(each) - 1) for each in ids],
            "turns": list(range(len(prompts))),
        }

    recorder = tiny.Recorder(lambda turns, **_: [float(turn % 2) for turn in turns])
    trainer = spo(recorder, rollout_func=rollout, processing_class=tokenizer)
    assert moved(trainer)
    assert [call.prompts for call in recorder.calls] == asked
    assert all(len(prompts) == 4 for prompts in asked)
    assert recorder.calls[0].turns == [0, 1, 2, 3]
    assert trainer._probe.mask.sum(dim=1).tolist() == [1, 1, 1, 1]
    assert trainer.tracker.reward_mean == 0.5


# An engine.


class RecordingEngine:
    """Has the interface that GRPOTrainer expects of vLLM, samples from the model at hand, and writes down what it is asked."""

    shift = 0.1  # its log-probabilities are so much above the model's
    vllm_client = SimpleNamespace(get_server_info=lambda: {"model_config": {"logprobs_mode": "processed_logprobs"}})

    def __init__(self, model, **options):
        self.model, self.options, self.log = model, options, []

    def sync_weights(self):
        self.log.append(("sync", self.model.lm_head.weight.clone()))

    def generate(self, prompts, images, num_generations, profiler=None):
        self.log.append(("generate", [list(ids) for ids in prompts], num_generations))
        answers, logprobs = [], []
        for ids in prompts:
            grown = list(ids)
            found = []
            for _ in range(3):
                with torch.no_grad():
                    logps = self.model(torch.tensor([grown])).logits[0, -1].log_softmax(-1)
                token = int(torch.multinomial(logps.exp(), 1))
                grown.append(token)
                found.append([float(logps[token]) + self.shift])
            answers.append(grown[len(ids) :])
            logprobs.append(found)
        return prompts, answers, logprobs, None


@pytest.mark.parametrize(("where", "mode"), [("colocate", "sequence_mask"), ("server", "token_truncate")])
def test_contract_with_a_stand_in_for_vllm(spo, tiny, monkeypatch, where, mode):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", RecordingEngine)
    recorder, losses = tiny.Recorder(), []
    trainer = spo(
        recorder, use_vllm=True, vllm_mode=where, steps_per_generation=2, gradient_accumulation_steps=1,
        max_steps=4, vllm_importance_sampling_mode=mode,
    )  # fmt: skip
    compute = trainer._compute_loss
    monkeypatch.setattr(trainer, "_compute_loss", lambda model, inputs: losses.append(inputs) or compute(model, inputs))
    assert moved(trainer)
    engine = trainer.vllm_generation
    assert [entry[0] for entry in engine.log] == ["sync", "generate"] * 2
    assert not torch.equal(engine.log[0][1], engine.log[2][1])  # the second time with what was learnt
    for (_, prompts, num_generations), call in zip(engine.log[1::2], recorder.calls, strict=True):
        assert num_generations == 1
        assert prompts == [trainer.processing_class(prompt)["input_ids"] for prompt in call.prompts]
        assert len(prompts) == 8
    assert trainer.tracker.visits.sum() == 16
    tokens = 1 if mode == "token_truncate" else 3
    for inputs in losses:
        ratio = inputs["importance_sampling_ratio"]
        assert ratio.shape == (4, 3 if mode == "token_truncate" else 1)
        assert ratio.flatten().tolist() == pytest.approx([np.exp(-0.1 * tokens)] * ratio.numel(), rel=1e-4)
    assert trainer.state.log_history[0]["sampling/sampling_logp_difference/mean"] == pytest.approx(0.1, rel=1e-3)


def test_contract_with_a_stand_in_for_vllm_before_training(spo, tiny, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", RecordingEngine)
    recorder = tiny.Recorder()
    trainer = spo(
        recorder, use_vllm=True, vllm_mode="colocate", max_steps=1, initial_values="offline", num_initial_samples=2,
        num_generations_eval=4,
    )  # fmt: skip
    trainer.train()
    log = trainer.vllm_generation.log
    assert [entry[0] for entry in log] == ["sync"] + ["generate"] * 6
    assert {entry[2] for entry in log[1:]} == {1}
    asked = [prompt for call in recorder.calls[:-1] for prompt in call.prompts]
    assert {asked.count(prompt) for prompt in tiny.sums()["prompt"]} == {2}
