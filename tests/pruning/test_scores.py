"""Scores, against cases by hand and plain formulas."""

import doctest
import math

import pytest
import torch

from mmbert_hf.pruning import scores
from mmbert_hf.pruning.scores import METHODS, Scorer, alignment, dai


class Known:
    """Statistics of two layers that are known."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.weights = {name: torch.randn(3, 4, generator=generator) for name in ("a", "b")}
        self.tensors = {
            (field, set_name, layer): torch.rand(shape, generator=generator)
            for layer in ("a", "b")
            for set_name in ("domain", "general")
            for field, shape in (("fisher", (3, 4)), ("gradient", (3, 4)), ("input", (4,)))
        }

    def fisher(self, set_name, layer):
        return self.tensors["fisher", set_name, layer]

    def gradient(self, set_name, layer):
        return self.tensors["gradient", set_name, layer]

    def input_square(self, set_name, layer):
        return self.tensors["input", set_name, layer]


@pytest.fixture
def known():
    return Known()


def test_dai_by_hand():
    """One weight -0.25, F_dom 2, F_gen 0.5, gradients (1, 0) and (1, 1): s = 1/sqrt 2."""
    aligned = alignment(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert aligned == pytest.approx(1 / math.sqrt(2))
    value = dai(torch.tensor([-0.25]), torch.tensor([2.0]), torch.tensor([0.5]), aligned)
    by_hand = ((2.0 - 1.0 * 0.5) * 0.25 + 0.5 * math.sqrt(0.25)) * (1 + 0.2 / math.sqrt(2))
    assert float(value) == pytest.approx(by_hand, rel=1e-6)


def test_the_default_of_dai_is_the_paper_s(known):
    scorer = Scorer("dai", known.weights, known)
    assert scorer.coefficients == {"alpha": 0.2, "beta": 1.0, "gamma": 0.5}
    for layer, weight in known.weights.items():
        s = torch.nn.functional.cosine_similarity(
            known.gradient("domain", layer).flatten(), known.gradient("general", layer).flatten(), dim=0
        )
        expected = (
            (known.fisher("domain", layer) - known.fisher("general", layer)) * weight.abs() + 0.5 * weight.abs().sqrt()
        ) * (1 + 0.2 * s)
        torch.testing.assert_close(scorer.score(layer), expected)


def test_normalised_terms_have_mean_one_over_all_layers(known):
    scorer = Scorer("dai-normalized", known.weights, known, gamma=0.0)
    weight = torch.cat([weight.flatten() for weight in known.weights.values()]).abs()
    fisher = torch.cat([known.fisher("domain", layer).flatten() for layer in known.weights])
    expected = (fisher / fisher.mean()) * (weight / weight.mean())
    got = torch.cat([scorer.score(layer).flatten() for layer in known.weights])
    torch.testing.assert_close(got, expected)
    with_general = Scorer("dai-normalized", known.weights, known, alpha=0.1, beta=0.3, gamma=0.2)
    assert with_general.coefficients == {"alpha": 0.1, "beta": 0.3, "gamma": 0.2}


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        ("magnitude", lambda known, weight: weight.abs()),
        ("fisher-domain", lambda known, weight: known.fisher("domain", "a")),
        ("fisher-general", lambda known, weight: known.fisher("general", "a")),
        (
            "obd",
            lambda known, weight: 0.5 * weight**2 * (known.fisher("domain", "a") + known.fisher("general", "a")) / 2,
        ),
        ("wanda", lambda known, weight: weight.abs() * known.input_square("domain", "a").sqrt()),
    ],
)
def test_the_others(known, method, formula):
    torch.testing.assert_close(Scorer(method, known.weights, known).score("a"), formula(known, known.weights["a"]))


def test_random_repeats_and_differs_by_layer_and_seed(known):
    one, again, other = (Scorer("random", known.weights, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.score("a"), again.score("a"))
    assert not torch.equal(one.score("a"), one.score("b"))
    assert not torch.equal(one.score("a"), other.score("a"))


def test_shares_say_when_dai_is_magnitude(known):
    shares = Scorer("dai", known.weights, known).term_shares()
    assert sum(shares.values()) == pytest.approx(1)
    for key in known.tensors:
        if key[0] == "fisher":
            known.tensors[key] *= 1e-9
    assert Scorer("dai", known.weights, known).term_shares()["magnitude"] > 0.999999
    assert Scorer("obd", known.weights, known).term_shares() == {}


def test_refusals(known):
    with pytest.raises(ValueError, match=r"method must be one of dai, .*; got 'snip'"):
        Scorer("snip", known.weights, known)
    with pytest.raises(ValueError, match="'wanda' needs statistics"):
        Scorer("wanda", known.weights)
    known.tensors["fisher", "domain", "a"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 12 scores of 'a' are not finite"):
        Scorer("obd", known.weights, known).score("a")


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_weights_are_scored_in_float32(known, method):
    weights = {name: weight.bfloat16() for name, weight in known.weights.items()}
    assert Scorer(method, weights, known).score("a").dtype == torch.float32


def test_docstring_examples():
    assert doctest.testmod(scores).failed == 0
