"""What reward functions may give back, in which kinds they come, and how several are summed."""

import asyncio
import doctest
import functools
import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch
from mmbert_hf.trainers.spo import rewards as module
from mmbert_hf.trainers.spo.rewards import checked, combine

nan = float("nan")


def giving(output):
    return checked(lambda completions, **_: output, "mine")(completions=["a", "b"])


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= len(module.__all__)
    assert result.failed == 0


@pytest.mark.parametrize(
    "output",
    [
        [1.0, None],
        (1, None),
        np.array([1.0, None]),
        [True, None],
        [np.float32(1), None],
        [torch.tensor(1.0), None],
        [torch.tensor([1.0]), None],
        [Fraction(1), None],
    ],
)
def test_numbers_and_none_pass(output):
    rewards = giving(output)
    assert rewards == [1.0, None]
    assert type(rewards[0]) is float


@pytest.mark.parametrize("output", [np.array([0.5, 1.0]), torch.tensor([0.5, 1.0]), torch.tensor([[0.5], [1.0]])])
def test_arrays_pass(output):
    assert giving(output) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            [0.5, nan],
            r"reward function mine returned nan for response 1: rewards must be finite numbers, or None where",
        ),
        ([float("inf"), 0.5], "returned inf for response 0"),
        (torch.tensor([0.5, nan]), r"returned tensor\(nan\) for response 1"),
        (["0.5", 0.5], "returned '0.5' for response 0"),
        ([[0.5], 0.5], r"returned \[0.5\] for response 0"),
        ([1j, 0.5], "returned 1j for response 0"),
        ([0.5], "reward function mine returned 1 rewards for 2 responses"),
        ([0.5] * 3, "returned 3 rewards for 2 responses"),
        (0.5, "reward function mine must return a list of rewards, got float"),
        (None, "must return a list of rewards, got NoneType"),
        ("ab", "must return a list of rewards, got str"),
        (b"ab", "must return a list of rewards, got bytes"),
        ({0: 0.5, 1: 0.5}, "must return a list of rewards, got dict"),
        (torch.tensor(0.5), "must return a list of rewards, got a single Tensor"),
        (np.array(0.5), "must return a list of rewards, got a single ndarray"),
    ],
)
def test_everything_else_is_refused(output, message):
    with pytest.raises(ValueError, match=message):
        giving(output)


def test_arguments_and_name_are_those_of_the_function():
    def length(completions, answer, *, factor=2.0, **_):
        """Twice the length."""
        return [factor * len(text) + len(other) for text, other in zip(completions, answer, strict=True)]

    wrapped = checked(length, "length")
    assert wrapped(completions=["ab"], answer=["x"], prompts=["?"]) == [5.0]
    assert (wrapped.__name__, wrapped.__doc__) == ("length", "Twice the length.")
    assert inspect.signature(wrapped) == inspect.signature(length)
    assert checked(functools.partial(length, factor=1.0), "partial")(completions=["ab"], answer=[""]) == [2.0]


class Waiting:
    async def __call__(self, completions, **_):
        return [nan if text == "bad" else 1.0 for text in completions]


async def waiting(completions, **_):
    await asyncio.sleep(0)
    return [nan if text == "bad" else 1.0 for text in completions]


@pytest.mark.parametrize("function", [waiting, Waiting(), functools.partial(waiting, answer=[])])
def test_async_stays_async(function):
    wrapped = checked(function, "slow")
    assert inspect.iscoroutinefunction(wrapped)
    assert asyncio.run(wrapped(completions=["a", "b"])) == [1.0, 1.0]
    with pytest.raises(ValueError, match="reward function slow returned nan for response 1"):
        asyncio.run(wrapped(completions=["a", "bad"]))


def test_objects_that_are_called():
    class Counting:
        calls = 0

        def __call__(self, completions, **_):
            self.calls += 1
            return [float(self.calls)] * len(completions)

    counting = Counting()
    wrapped = checked(counting, "counting")
    assert not inspect.iscoroutinefunction(wrapped)
    assert [wrapped(completions=["a"]), wrapped(completions=["a"])] == [[1.0], [2.0]]
    assert counting.calls == 2


def test_reward_models_are_left_alone():
    model = torch.nn.Linear(2, 1)
    assert checked(model, "model") is model


def test_sum_by_weight():
    rewards = [[1.0, 2.0, -1.0], [nan, 2.0, nan], [nan, nan, nan], [0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(combine(rewards, [1.0, 0.5, 2.0]), [0.0, 1.0, nan, 0.0])
    assert combine(np.ones((2, 1), np.float32), np.ones(1, np.float32)).dtype == np.float64


def test_sum_leaves_its_input_alone():
    rewards = np.array([[nan, 1.0]])
    combine(rewards, [1.0, 1.0])
    np.testing.assert_array_equal(rewards, [[nan, 1.0]])
