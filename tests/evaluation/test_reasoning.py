import doctest
import json
from itertools import combinations, product

import numpy as np
import pytest

from mmbert_hf.evaluation import reasoning
from mmbert_hf.evaluation.reasoning import (
    avg_at_k,
    bootstrap_interval,
    maj_at_k,
    pass_at_k,
    reasoning_scores,
    vote_groups,
)
from mmbert_hf.evaluation.retrieval import paired_bootstrap


def test_docstring_examples():
    result = doctest.testmod(reasoning)
    assert result.attempted >= 7
    assert result.failed == 0


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for c, k in product(range(n + 1), range(1, n + 1)):
        subsets = list(combinations([True] * c + [False] * (n - c), k))
        share = sum(map(any, subsets)) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-14)


def test_pass_at_k_of_many_samples():
    n = 10_000  # C(n, k) has thousands of digits
    found = pass_at_k(n, np.arange(n + 1), 1000)
    assert found[0] == 0
    assert found[1] == pytest.approx(0.1, rel=1e-9)
    assert found[-1] == found[n - 1000 + 1] == 1
    assert (np.diff(found) >= 0).all()
    assert pass_at_k(n, np.arange(n + 1), 1) == pytest.approx(np.arange(n + 1) / n, abs=1e-12)


def test_pass_at_k_takes_other_numbers_of_samples():
    found = pass_at_k(np.array([4, 8]), np.array([1, 2]), 2)
    assert found == pytest.approx([1 / 2, 1 - 15 / 28])
    assert found.dtype == np.float64


def test_pass_at_k_is_unbiased():
    # over all ways that n samples of probability p can turn out, its mean is the probability for k samples
    n, p = 6, 0.3
    for k in range(1, n + 1):
        outcomes = np.array(list(product([0, 1], repeat=n)))
        right = outcomes.sum(axis=1)
        chance = p**right * (1 - p) ** (n - right)
        assert (chance * pass_at_k(n, right, k)).sum() == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def expected_majority(votes, correct):
    """By drawing the ties: every winner once, in the mean."""
    answered = [vote for vote in votes if vote >= 0]
    winners = [vote for vote in set(answered) if answered.count(vote) == max(map(answered.count, answered))]
    return np.mean([correct[votes.index(winner)] for winner in winners]) if winners else 0.0


def test_majority_of_all_small_votes():
    cases = [(votes, right) for votes in product(range(-1, 4), repeat=4) for right in range(-1, 4)]
    correct = [[vote >= 0 and vote == right for vote in votes] for votes, right in cases]
    found = maj_at_k([votes for votes, _ in cases], correct, k=4)
    assert {*found.tolist()} == {0, 1 / 4, 1 / 3, 1 / 2, 1}  # ties of two, three and four
    for (votes, _), flags, score in zip(cases, correct, found, strict=True):
        assert score == pytest.approx(expected_majority(votes, flags), abs=1e-15)


def test_majority_does_not_depend_on_the_order_or_the_names_of_answers():
    rng = np.random.default_rng(0)
    votes = rng.integers(-1, 4, size=(50, 9))
    correct = votes == 2
    whole = maj_at_k(votes, correct, k=9)
    assert 0 < whole.mean() < 1
    order = rng.permutation(9)
    names = np.array([7, 3, 9, 0, -1])  # the last one is that of -1
    assert maj_at_k(names[votes][:, order], correct[:, order], k=9) == pytest.approx(whole, abs=0)


def test_only_the_first_k_count():
    votes, correct = [[0, 1, 1]], [[True, False, False]]
    assert [float(maj_at_k(votes, correct, k)[0]) for k in (1, 2, 3)] == [1.0, 0.5, 0.0]
    assert [float(avg_at_k(correct, k)[0]) for k in (1, 2, 3)] == pytest.approx([1, 1 / 2, 1 / 3])


def test_samples_without_an_answer_do_not_vote():
    correct = [[False, False, True, False], [False] * 4]
    assert maj_at_k([[-1, -1, 0, -1], [-1] * 4], correct, k=4).tolist() == [1.0, 0.0]


def test_a_group_of_right_and_wrong_samples_scores_its_share():
    assert maj_at_k([[0, 0, 0, 1]], [[True, False, False, True]], k=4) == pytest.approx([1 / 3])


def test_answers_join_the_first_group_that_they_equal():
    def near(a, b):
        return abs(a - b) <= 1

    assert vote_groups([0, 1, 2, None, 3, 1], near) == [0, 0, 1, -1, 1, 0]
    assert vote_groups([None, None], near) == [-1, -1]


def test_scores_fit_together():
    rng = np.random.default_rng(1)
    votes = rng.integers(-1, 3, size=(40, 8))
    correct = votes == 1
    scores = reasoning_scores(correct, votes, ks=[8, 1, 8], problem_ids=[f"p{i}" for i in range(40)], seed=3)
    assert scores.ks == [8, 1]
    assert list(scores.intervals) == ["pass@8", "maj@8", "avg@8", "pass@1", "maj@1", "avg@1"]
    assert scores.mean("pass@1") == pytest.approx(scores.mean("avg@8"))
    assert scores.mean("maj@1") == scores.mean("avg@1") == correct[:, 0].mean()
    assert (scores.per_problem["pass@8"] == correct.any(axis=1)).all()
    assert (scores.num_answered == (votes >= 0).sum(axis=1)).all()
    assert scores.intervals["maj@8"] == bootstrap_interval(maj_at_k(votes, correct, 8), seed=3)
    written = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert written["num_problems"] == 40
    assert written["metrics"]["pass@8"] == dict(zip(("mean", "low", "high"), scores.intervals["pass@8"], strict=True))
    assert written["problems"][3]["id"] == "p3"
    assert written["problems"][3]["maj@8"] == scores.per_problem["maj@8"][3]
    assert written["problems"][3]["num_correct"] == correct[3].sum()


def test_problems_may_have_more_samples_than_others():
    scores = reasoning_scores([[True, False], [False, False, True]], [[0, 1], [0, 0, 1]], ks=[2])
    assert scores.per_problem["pass@2"] == pytest.approx([1.0, 2 / 3])
    assert scores.per_problem["avg@2"].tolist() == [0.5, 0.0]
    with pytest.raises(ValueError, match="k is 3, but a problem has only 2 samples"):
        reasoning_scores([[True, False], [False, False, True]], [[0, 1], [0, 0, 1]], ks=[3])


def test_bootstrap_of_known_spread():
    values = np.repeat([0.0, 1.0], [150, 250])
    mean, low, high = bootstrap_interval(values)
    error = values.std() / np.sqrt(400)
    assert mean == values.mean()
    assert low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)
    assert bootstrap_interval(values, resamples=99, seed=1) != bootstrap_interval(values, resamples=99, seed=2)
    zeros = np.zeros(400)
    assert paired_bootstrap(values, zeros) == (mean, low, high)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"1 problems .* the first 5 of 4"):
        pass_at_k(4, np.array([1, 5]), 1)
    with pytest.raises(ValueError, match="num_correct must be integers, got float64"):
        pass_at_k(4, 2.0, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        pass_at_k(4, 2, 0)
    with pytest.raises(ValueError, match="only 4 samples: draw more samples, or give a smaller k"):
        pass_at_k(4, 2, 5)
    with pytest.raises(ValueError, match="only 1 samples"):
        avg_at_k([[True], [True, False]], 2)
    with pytest.raises(ValueError, match="give one vote a sample"):
        maj_at_k([[0]], [[True, False]], 1)
    with pytest.raises(ValueError, match=r"problem 1 has a sample without an answer .* said to be right"):
        maj_at_k([[0], [-1]], [[True], [True]], 1)
    with pytest.raises(ValueError, match="0 problems and 1 values"):
        reasoning_scores([], [], ks=[1])
    with pytest.raises(ValueError, match="2 names of 1 problems"):
        reasoning_scores([[True]], [[0]], ks=[1], problem_ids=["a", "b"])
    with pytest.raises(ValueError, match=r"no 'pass@3'; computed were pass@1, maj@1, avg@1"):
        reasoning_scores([[True]], [[0]], ks=[1]).mean("pass@3")
    with pytest.raises(ValueError, match=r"got the shape \(0,\)"):
        bootstrap_interval(np.array([]))
    with pytest.raises(ValueError, match="leave out what has no score"):
        bootstrap_interval(np.array([np.nan]))
