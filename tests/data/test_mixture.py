import doctest
import pickle

import numpy as np
import pytest
import torch

from mmbert_hf.data import mixture as module
from mmbert_hf.data.mixture import LanguageMixture, cut
from mmbert_hf.languages import sampling_probabilities
from mmbert_hf.schedules import Linear, Piecewise

COUNTS = {"eng": 1e6, "dan": 1e4, "fao": 1e2}


def make_documents():
    """Documents whose token ids tell language and position: language k owns 1000 k .. 1000 k + 999."""
    return {
        code: [list(range(1000 * k, 1000 * k + n))]
        for k, (code, n) in enumerate(zip(COUNTS, (90, 50, 7), strict=True), 1)
    }


def make_mixture(tokenizer, **changes):
    settings = {"num_samples": 400, "temperature": 0.5, "counts": COUNTS, "max_length": 12, "seed": 3} | changes
    return LanguageMixture(make_documents(), tokenizer, **settings)


def test_examples_in_the_docstrings():
    result = doctest.testmod(module)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize(("length", "piece"), [(1, 5), (5, 5), (6, 5), (999, 10), (1000, 10)])
def test_cut_covers_everything_once_in_nearly_equal_pieces(length, piece):
    pieces = cut(length, piece)
    assert [i for start, stop in pieces for i in range(start, stop)] == list(range(length))
    sizes = [stop - start for start, stop in pieces]
    assert max(sizes) <= piece
    assert max(sizes) - min(sizes) <= 1
    assert len(pieces) == -(-length // piece)


def test_languages_are_drawn_by_temperature(tokenizer):
    mixture = make_mixture(tokenizer, num_samples=30_000)
    expected = sampling_probabilities(COUNTS, 0.5)
    for code, drawn in mixture.samples_per_language().items():
        p = expected[code]
        assert drawn / 30_000 == pytest.approx(p, abs=5 * (p * (1 - p) / 30_000) ** 0.5)


def test_each_pass_visits_every_piece_once_in_another_order(tokenizer):
    mixture = make_mixture(tokenizer, languages=["eng"], num_samples=18)
    rows = [tuple(mixture[i]["input_ids"][1:-1].tolist()) for i in range(18)]
    passes = rows[:9], rows[9:]
    for one_pass in passes:
        assert sorted(token for row in one_pass for token in row) == list(range(1000, 1090))
    assert passes[0] != passes[1]
    assert passes[0] != tuple(sorted(passes[0]))


def test_rows_have_bos_and_eos_and_fit(tokenizer):
    mixture = make_mixture(tokenizer)
    for i in range(len(mixture)):
        ids = mixture[i]["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert len(ids) <= 12
        assert {code // 1000 for code in ids[1:-1].tolist()} == {mixture.languages.index(mixture.language_of(i)) + 1}


def test_schedules_hold_for_whole_steps(tokenizer):
    mixture = make_mixture(
        tokenizer,
        languages=Piecewise([["eng"], ["eng", "fao"]], [0.5]),
        max_length=Piecewise([8, 32], [0.5]),
        num_samples=100,
    )
    mixture.bind(temperature=Piecewise([1.0, 0.0], [0.5]), samples_per_step=10, total_samples=100)
    assert mixture.samples_per_language(0, 50) == {"eng": 50, "dan": 0, "fao": 0}
    late = mixture.samples_per_language(50, 100)
    assert late["fao"] > 10  # temperature 0 is uniform: about 25 of 50 in spite of the counts
    assert late["dan"] == 0
    assert max(len(mixture[i]["input_ids"]) for i in range(50)) <= 8
    assert max(len(mixture[i]["input_ids"]) for i in range(50, 100)) > 8
    assert [mixture[i]["progress"] for i in (0, 9, 10, 59, 60, 99)] == [0.0, 0.0, 0.1, 0.5, 0.6, 0.9]


def test_progress_in_tokens_counts_real_tokens(tokenizer):
    mixture = make_mixture(tokenizer, num_samples=40)
    mixture.bind(samples_per_step=4, total_tokens=300)
    tokens = 0
    for step in range(10):
        rows = [mixture[i] for i in range(4 * step, 4 * step + 4)]
        assert {row["progress"] for row in rows} == {min(1.0, tokens / 300)}
        tokens += sum(len(row["input_ids"]) for row in rows)
    assert tokens > 300


def test_a_sample_depends_on_nothing_but_its_index(tokenizer):
    mixture = make_mixture(tokenizer)
    forward = [mixture[i]["input_ids"].tolist() for i in range(60)]
    again = pickle.loads(pickle.dumps(make_mixture(tokenizer)))
    assert [again[i]["input_ids"].tolist() for i in reversed(range(60))][::-1] == forward
    loader = torch.utils.data.DataLoader(mixture, batch_size=None, num_workers=2, multiprocessing_context="fork")
    from_workers = [sample["input_ids"] for _, sample in zip(range(60), loader, strict=False)]
    assert [np.asarray(ids).tolist() for ids in from_workers] == forward
    assert [make_mixture(tokenizer, seed=4)[i]["input_ids"].tolist() for i in range(60)] != forward


def test_texts_are_tokenised_without_special_tokens(tokenizer, sentences):
    mixture = LanguageMixture({"fao": sentences["fao"]}, tokenizer, num_samples=2, max_length=128)
    rows = {tuple(mixture[i]["input_ids"].tolist()) for i in range(2)}
    assert rows == {tuple(tokenizer(text)["input_ids"]) for text in sentences["fao"]}
    assert mixture.counts == {"fao": sum(len(tokenizer(t)["input_ids"]) - 2 for t in sentences["fao"])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"temperature": 1.5}, "1.5"),
        ({"temperature": Linear(0.5, -0.5)}, "-0.5"),
        ({"counts": {"eng": 1.0}}, "counts has no entry for dan, fao"),
        ({"languages": ["eng", "deu"]}, "no documents for .*deu"),
        ({"languages": []}, "no documents for any language|active languages are"),
        ({"max_length": 2}, "max_length must be above 2"),
    ],
)
def test_bad_settings_are_refused_before_work_starts(tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        make_mixture(tokenizer, **changes)


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ({}, ValueError, "one language at least; got {}"),
        ({"fao": []}, ValueError, "'fao' has no documents"),
        ({"fao": [[]]}, ValueError, "document 0 of language 'fao' is empty"),
        ({"fao": ["text", [5, 6]]}, TypeError, "mixes texts and token ids"),
        ({"faroese": ["text"]}, ValueError, "faroese"),
        ({"fao": "one text"}, TypeError, r"must be a sequence of texts, got str; write \['one text'\]"),
        ({"fao": iter(["text"])}, TypeError, "list"),
        (["text"], ValueError, r"documents must be like \{'fao'"),
    ],
)
def test_bad_documents_are_refused(tokenizer, documents, error, message):
    with pytest.raises(error, match=message):
        LanguageMixture(documents, tokenizer, num_samples=1)


def test_columns_of_a_data_set_are_documents(tokenizer, sentences):
    from datasets import Dataset

    column = Dataset.from_dict({"text": sentences["fao"]})["text"]
    mixture = LanguageMixture({"fao": column}, tokenizer, num_samples=2, max_length=128)
    assert {len(mixture[i]["input_ids"]) for i in range(2)} == {len(tokenizer(text)["input_ids"]) for text in column}


def test_bind_refuses_two_units(tokenizer):
    with pytest.raises(ValueError, match="not both"):
        make_mixture(tokenizer).bind(total_samples=1, total_tokens=1)
    with pytest.raises(ValueError, match="samples_per_step must be at least 1"):
        make_mixture(tokenizer).bind(samples_per_step=0)
    with pytest.raises(IndexError, match="sample 400 is outside"):
        make_mixture(tokenizer)[400]
