"""What is kept, against sorting everything."""

import doctest

import pytest
import torch

from mmbert_hf.pruning import budgets
from mmbert_hf.pruning.budgets import keep_global, keep_per_row, keep_per_tensor, keep_two_of_four, num_pruned


def sorted_all(scores, sparsity):
    """The same by one sort over everything: the lowest go, among equals the last ones."""
    joined = torch.cat([tensor.flatten() for tensor in scores.values()])
    order = joined.argsort(descending=True, stable=True)
    kept = torch.zeros_like(joined, dtype=torch.bool)
    kept[order[: len(joined) - num_pruned(len(joined), sparsity)]] = True
    parts = kept.split([tensor.numel() for tensor in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


SCORES = {
    "normal": lambda shape: torch.randn(shape),
    "tiny": lambda shape: torch.randn(shape) * 1e-38,
    "many ties": lambda shape: torch.randint(-2, 3, shape).float(),
    "all equal": lambda shape: torch.zeros(shape),
    "both zeros": lambda shape: torch.where(torch.rand(shape) < 0.5, 0.0, -0.0),
    "wide": lambda shape: torch.randn(shape).exp() ** 20 * torch.randn(shape).sign(),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("sparsity", [0.0, 0.013, 0.3, 0.5, 0.9, 0.999])
def test_global_is_one_sort(kind, sparsity):
    torch.manual_seed(0)
    scores = {"a": SCORES[kind]((7, 31)), "b": SCORES[kind]((64, 5)), "c": SCORES[kind]((1, 1))}
    kept = keep_global(scores.__getitem__, list(scores), sparsity)
    expected = sorted_all(scores, sparsity)
    assert sum(int((~mask).sum()) for mask in kept.values()) == num_pruned(7 * 31 + 64 * 5 + 1, sparsity)
    assert all(torch.equal(kept[name], expected[name]) for name in scores)


def test_global_never_asks_for_two_layers_at_once():
    alive = []

    class Scores:
        def __call__(self, name):
            assert not alive or alive[-1]() is None, "the scores of the layer before are still held"
            import weakref

            tensor = torch.randn(8, 8, generator=torch.Generator().manual_seed(int(name)))
            alive.append(weakref.ref(tensor))
            return tensor

    assert len(keep_global(Scores(), ["1", "2", "3"], 0.5)) == 3


def test_per_tensor_and_per_row_counts():
    scores = torch.randn(6, 20)
    assert int((~keep_per_tensor(scores, 0.3)).sum()) == 36
    assert (~keep_per_row(scores, 0.3)).sum(dim=1).tolist() == [6] * 6
    assert bool(scores[keep_per_tensor(scores, 0.3)].min() > scores[~keep_per_tensor(scores, 0.3)].max())


def test_two_of_four_keeps_the_two_best_of_each_group():
    scores = torch.randn(5, 12)
    kept = keep_two_of_four(scores).view(5, 3, 4)
    assert kept.sum(dim=-1).eq(2).all()
    groups = scores.view(5, 3, 4)
    torch.testing.assert_close(groups.masked_fill(~kept, 0).sum(-1), groups.topk(2).values.sum(-1))
    with pytest.raises(ValueError, match="the layer has 10"):
        keep_two_of_four(torch.randn(2, 10))


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_is_checked(sparsity):
    with pytest.raises(ValueError, match=r"in \[0, 1\); got"):
        num_pruned(10, sparsity)


def test_docstring_examples():
    assert doctest.testmod(budgets).failed == 0
