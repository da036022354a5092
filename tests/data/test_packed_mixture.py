"""Packed rows end to end: what they hold, quotas, caps, sharding, resuming and bad input."""

import doctest
import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from mmbert_hf.data import TRAINING_ARTICLES, load_udhr, packed_mixture, row_plan, row_planner, span_plans
from mmbert_hf.data.packed_mixture import PackedMixture
from mmbert_hf.data.quotas import capped_quotas, language_shares
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.recipes import Phase
from mmbert_hf.step_plan import RowSpan

BOS, EOS = 2, 1
CODES = "bre cat dan eng fao fin fra gle isl nob".split()
IDS_PER_LANGUAGE = 10_000_000


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 rows, so that a short run has many."""
    monkeypatch.setattr(row_plan, "TOKENS_PER_BLOCK", 1)


def make_documents(sizes, seed=0, median=60, sigma=0.8):
    """Lognormal lengths; every token of every language has an id of its own, in order."""
    rng = np.random.default_rng(seed)
    documents = {}
    for number, code in enumerate(sorted(sizes)):
        lengths = np.maximum(1, rng.lognormal(np.log(median), sigma, max(1, 2 * sizes[code] // median))).astype(int)
        lengths = lengths[np.cumsum(lengths) < sizes[code]]
        lengths = np.append(lengths, sizes[code] - lengths.sum())
        ids = np.arange(sizes[code]) + 10 + number * IDS_PER_LANGUAGE
        documents[code] = TokenDocuments.from_arrays(np.split(ids, np.cumsum(lengths)[:-1]))
    return documents


SIZES = {code: 2000 * 2**number for number, code in enumerate(CODES)}
DOCUMENTS = make_documents(SIZES)


def phase(name="all", languages=None, temperature=0.5, mask_ratio=0.3, max_length=128):
    return Phase(name, 1.0, languages, temperature, mask_ratio, max_length=max_length)


def make(documents=DOCUMENTS, spans=None, num_rows=200, **options):
    spans = spans or [RowSpan(phase(), 0, num_rows)]
    return PackedMixture(documents, spans, bos_token_id=BOS, eos_token_id=EOS, **options)


def make_phases():
    return [
        RowSpan(phase("pretrain", CODES[4:], 0.7, 0.3, 128), 0, 150),
        RowSpan(phase("extend", CODES[2:], 0.5, 0.15, 512), 150, 75),
        RowSpan(phase("decay", None, 0.3, 0.05, 512), 225, 60),
    ]


def rows_of(mixture, rows=None):
    return [mixture[row]["input_ids"].tolist() for row in (range(len(mixture)) if rows is None else rows)]


def drawn(mixture, span):
    """Row tokens that a span took: what its rows hold, and what its pool gained."""
    first, stop = mixture.spans[span].first_row, mixture.spans[span].first_row + mixture.spans[span].num_rows
    tokens = mixture.tokens_per_language(first, stop)
    pools = [(1, mixture.left_over(span))] + ([(-1, mixture.left_over(span - 1))] if span else [])
    for sign, pieces in pools:
        for language, _, _, length in pieces.tolist():
            tokens[mixture.languages[language]] += sign * (length + 2)
    return tokens


def planned_blocks(mixture, monkeypatch):
    """The numbers of the blocks that the mixture plans from now on."""
    numbers, plan = [], mixture._planner.plan

    def recorded(state):
        numbers.append(state.block)
        return plan(state)

    monkeypatch.setattr(mixture._planner, "plan", recorded)
    return numbers


@pytest.mark.parametrize("module", [packed_mixture, span_plans], ids=lambda module: module.__name__)
def test_docstring_examples(module):
    results = doctest.testmod(module)
    assert (results.failed, results.attempted > 1) == (0, True)


# Rows


def test_a_row_is_whole_documents_between_bos_and_eos():
    mixture = make()
    assert len(mixture) == mixture.num_rows == 200
    assert mixture.languages == CODES
    for number in range(200):
        row = mixture[number]
        ids, lengths, languages = row["input_ids"], row["document_lengths"], row["languages"]
        assert {ids.dtype, lengths.dtype, languages.dtype} == {np.dtype("int32")}
        assert (row["sample_index"], row["mask_ratio"]) == (number, 0.3)
        assert len(ids) == lengths.sum() <= 128
        for document, language in zip(np.split(ids, np.cumsum(lengths)[:-1]), languages, strict=True):
            assert (document[0], document[-1]) == (BOS, EOS)
            assert set(document[1:-1] // IDS_PER_LANGUAGE) == {language}
            assert (np.diff(document[1:-1]) == 1).all()  # a run of one document


@pytest.mark.parametrize("spans", [None, make_phases()], ids=["one span", "phases"])
def test_every_token_is_seen_once_a_pass(small_blocks, spans):
    """Rows and pool together hold whole passes, and a part of one; nothing is lost and nothing comes twice."""
    sizes = {code: size // 10 for code, size in SIZES.items()}
    documents = make_documents(sizes)
    mixture = make(documents, spans, num_rows=900)
    seen = {code: np.zeros(sizes[code], dtype=int) for code in CODES}
    for ids in rows_of(mixture):
        ids = np.array(ids)
        ids = ids[ids >= 10] - 10
        for language in np.unique(ids // IDS_PER_LANGUAGE):
            of_language = ids[ids // IDS_PER_LANGUAGE == language] % IDS_PER_LANGUAGE
            np.add.at(seen[CODES[language]], of_language, 1)
    for language, document, start, length in mixture.left_over().tolist():
        first = int(documents[CODES[language]].tokens(document)[start]) - 10 - language * IDS_PER_LANGUAGE
        seen[CODES[language]][first : first + length] += 1
    for code in CODES:
        assert seen[code].max() - seen[code].min() <= 1
    assert seen["bre"].max() >= 2  # there was more than one pass to check
    assert 0 < (seen["nob"] == 1).sum() < sizes["nob"]  # and a part of one


def test_long_documents_are_cut_to_full_rows_and_a_tail():
    documents = {"fao": TokenDocuments.from_arrays([np.arange(10, 10 + 100 * 3 + 7)])}
    mixture = make(documents, [RowSpan(phase(max_length=102), 0, 3)])
    lengths = sorted(length for row in range(3) for length in mixture[row]["document_lengths"].tolist())
    assert lengths == [102, 102, 102]
    assert mixture.left_over()[:, 2:].tolist() in ([[300, 7]], [])


def test_every_pass_has_an_order_of_its_own():
    planner = make()._planner
    num_documents = len(DOCUMENTS["bre"])
    passes = [planner._documents_from(0, number * num_documents)[0].tolist() for number in range(4)]
    assert len({tuple(order) for order in passes}) == 4
    assert all(sorted(order) == list(range(num_documents)) for order in passes)


def test_rows_of_a_block_are_shuffled():
    """Packing puts the longest documents into the first rows."""
    mixture = make()
    longest = [int(mixture[row]["document_lengths"].max()) for row in range(200)]
    assert abs(np.corrcoef(np.arange(200), longest)[0, 1]) < 0.25


@pytest.mark.parametrize(("max_length", "num_rows", "median"), [(1024, 1200, 150), (8192, 300, 700)])
def test_rows_are_at_least_99_percent_full(max_length, num_rows, median):
    documents = make_documents(dict.fromkeys(CODES, 300000), median=median, sigma=1.0)
    mixture = make(documents, [RowSpan(phase(max_length=max_length), 0, num_rows)])
    held = sum(len(ids) for ids in rows_of(mixture))
    assert mixture.fill() == held / (max_length * num_rows) >= 0.99
    assert sum(mixture.tokens_per_language().values()) == held


@pytest.mark.parametrize("max_length", [1024, 8192])
@pytest.mark.parametrize("unit", ["paragraphs", "text"])
def test_rows_of_real_text_are_at_least_99_percent_full(max_length, unit):
    """Text as bytes by fours: about as many as a tokenizer's tokens."""
    texts = {code: getattr(text, unit)(TRAINING_ARTICLES) for code, text in load_udhr().items()}
    documents = {
        code: TokenDocuments.from_arrays(
            [np.frombuffer(part.encode()[::4], np.uint8) for part in ([parts] if unit == "text" else parts)]
        )
        for code, parts in texts.items()
    }
    mixture = make(documents, [RowSpan(phase(max_length=max_length), 0, 2**20 // max_length)])
    assert mixture.fill() >= 0.99


def test_awkward_pieces_do_not_wait_for_ever(small_blocks, monkeypatch):
    """Pieces of half a row and more leave room that nothing fits in: the shortest is never in the fullest rows."""

    def longest_wait():
        documents = {
            "dan": TokenDocuments.from_arrays([np.arange(98)] * 400),
            "fao": TokenDocuments.from_arrays([np.arange(length) for length in range(50, 90)]),
        }
        mixture = make(documents, [RowSpan(phase(max_length=100, temperature=1.0), 0, 400)], max_repeats=None)
        pools = [mixture._state_before(block).pool_PC for block in range(1, mixture._planner.num_blocks)]
        return max(block - pool[:, row_plan.TAKEN].min() for block, pool in enumerate(pools, start=1) if len(pool))

    assert longest_wait() <= 4
    monkeypatch.setattr(row_planner, "MAX_WAIT", 10**9)
    assert longest_wait() > 8


def test_long_documents_are_packed_with_more_effort(monkeypatch):
    """Three or four to a row: best fit alone leaves several percent empty."""
    lengths = np.random.default_rng(0).lognormal(np.log(2300), 0.35, 600).astype(int)
    documents = {"fao": TokenDocuments.from_arrays([np.arange(length) for length in lengths])}
    spans = [RowSpan(phase(max_length=8192), 0, 500)]
    assert make(documents, spans).fill() > 0.99
    monkeypatch.setattr(row_planner, "FULL_ENOUGH", 0.0)
    assert make(documents, spans).fill() < 0.98


# Quotas and caps


@pytest.mark.parametrize("temperature", [0.7, 0.5, 0.3])
def test_every_language_is_within_one_piece_of_its_quota(small_blocks, temperature):
    mixture = make(spans=[RowSpan(phase(temperature=temperature), 0, 1500)], max_repeats=None)
    taken = drawn(mixture, 0)
    shares = language_shares(SIZES, temperature)
    for code in CODES:
        assert abs(taken[code] - shares[code] * sum(taken.values())) <= 128
    assert mixture.quotas()[0] == pytest.approx({code: share * 1500 * 128 for code, share in shares.items()})


def test_every_span_keeps_its_quotas_under_caps(small_blocks):
    sizes = {code: size // 10 for code, size in SIZES.items()}
    mixture = make(make_documents(sizes), make_phases(), max_repeats=2, shares={"nob": 0.2})
    left = {code: 2.0 * sizes[code] for code in CODES}
    num_capped = 0
    for number, plan in enumerate(mixture._planner.spans):
        active = [CODES[language] for language in plan.active_A]
        assert active == sorted(mixture.spans[number].phase.languages or CODES)
        per_token = dict(zip(active, plan.row_tokens_A / [sizes[code] for code in active], strict=True))
        taken = drawn(mixture, number)
        shares = language_shares(sizes, mixture.spans[number].phase.language_temperature, {"nob": 0.2}, active)
        room = {code: left[code] * per_token[code] for code in active}
        quotas = capped_quotas(shares, sum(taken.values()), room)
        num_capped += sum(quotas[code] == room[code] for code in active)
        for code in CODES:
            assert abs(taken[code] - quotas.get(code, 0.0)) <= plan.max_length
            left[code] -= taken[code] / per_token[code] if code in active else 0.0
    assert num_capped >= 2


@pytest.mark.parametrize("temperature", [0.7, 0.5, 0.3])
def test_tokens_follow_the_temperature(temperature):
    """Chi-square in documents, 9 degrees of freedom, p = 0.001: it fits, and no other temperature does."""
    mixture = make(spans=[RowSpan(phase(temperature=temperature), 0, 3000)], max_repeats=None)
    tokens = np.array(list(mixture.tokens_per_language().values())) / 80

    def chi_square(tau):
        expected = np.array([count**tau for count in SIZES.values()])
        expected *= tokens.sum() / expected.sum()
        return ((tokens - expected) ** 2 / expected).sum()

    assert chi_square(temperature) < 27.88
    assert min(chi_square(temperature - 0.1), chi_square(temperature + 0.1)) > 27.88


def test_a_tiny_language_is_not_seen_more_often_than_the_cap():
    documents = make_documents({"eng": 2_000_000, "dan": 1_000_000, "fao": 216})
    spans = [RowSpan(phase("a", max_length=256, temperature=0.7), 0, 1000), RowSpan(phase("b", None, 0.3), 1000, 3000)]
    spans[1] = RowSpan(phase("b", None, 0.3, max_length=512), 1000, 3000)
    capped, free = make(documents, spans, max_repeats=4), make(documents, spans, max_repeats=None)
    text = sum(int((np.array(ids) >= 10 + 2 * IDS_PER_LANGUAGE).sum()) for ids in rows_of(capped))
    pool = sum(length for language, _, _, length in capped.left_over().tolist() if language == 2)
    assert text + pool == 4 * 216
    assert capped.repeats()["fao"] == pytest.approx(4.0)
    assert free.repeats()["fao"] > 100
    assert free.tokens_per_language()["fao"] > 100 * 216
    assert max(capped.repeats()[code] for code in ("dan", "eng")) < 4


@pytest.mark.parametrize("max_repeats", [1, 1.5, 3])
def test_no_language_passes_its_limit(small_blocks, max_repeats):
    documents = make_documents(dict.fromkeys(CODES, 3000))
    num_rows = int(0.93 * max_repeats * 10 * 3000 / 124)
    mixture = make(documents, num_rows=num_rows, max_repeats=max_repeats)
    text = np.zeros(10)
    for ids in rows_of(mixture):
        ids = np.array(ids)
        text += np.bincount((ids[ids >= 10] - 10) // IDS_PER_LANGUAGE, minlength=10)
    assert (text <= max_repeats * 3000).all()


def test_a_limit_inside_a_pass_is_not_passed():
    documents = {
        "dan": make_documents({"dan": 50_000})["dan"],
        "fao": TokenDocuments.from_arrays([np.full(100, 7), np.full(60, 7), np.full(10, 7)]),
    }
    given = set()
    for seed in range(20):
        mixture = make(documents, [RowSpan(phase(temperature=0.0), 0, 100)], max_repeats=1.5, seed=seed)
        given.add(mixture._state_before(mixture._planner.num_blocks).tokens_L[1])
    assert 170 <= max(given) <= 1.5 * 170
    assert len(given) > 1  # the limit falls inside documents of several orders


@pytest.mark.parametrize("num_rows", [200, 3200])
def test_no_more_is_taken_than_wanted(small_blocks, monkeypatch, num_rows):
    """Many languages, each of which takes whole pieces, go beyond what a block needs by chance alone."""
    languages = [code for code in load_udhr() if "_" not in code][:100]
    documents = make_documents(dict.fromkeys(languages, 1000))
    if num_rows == 200:
        monkeypatch.setattr(row_plan, "TOKENS_PER_BLOCK", 2**20)
    beyond = []
    for seed in range(4):
        mixture = make(documents, num_rows=num_rows, max_repeats=None, seed=seed)
        for block in range(1, mixture._planner.num_blocks + 1, 20):
            pool = mixture._state_before(block).pool_PC
            beyond.append((pool[:, row_plan.LENGTH] + 2).sum() / 128)
    assert np.mean(beyond) < 5  # rows; two are wanted
    assert np.max(beyond) < 12


def test_a_capped_language_is_spread_over_the_span(small_blocks):
    documents = make_documents({"dan": 200_000, "fao": 2000}, median=20)
    mixture = make(documents, [RowSpan(phase(temperature=0.0), 0, 800)], max_repeats=1)
    quarters = [mixture.tokens_per_language(first, first + 200)["fao"] for first in range(0, 800, 200)]
    assert max(quarters) - min(quarters) < 0.25 * np.mean(quarters)


def test_all_there_is_can_be_used_up():
    documents = make_documents(dict.fromkeys(CODES, 3000))
    pass_size = sum(int((of.lengths + 2 + 2 * ((of.lengths - 1) // 126)).sum()) for of in documents.values())
    num_rows = 2 * pass_size // 128
    mixture = make(documents, num_rows=num_rows, max_repeats=2)
    assert mixture.fill() > 0.98
    assert min(map(len, rows_of(mixture))) > 0
    assert sum(drawn(mixture, 0).values()) >= 2 * pass_size - 128 * 10
    with pytest.raises(ValueError, match=r"languages have only .* left to give .* too few: set max_repeats to "):
        make(documents, num_rows=num_rows + 1, max_repeats=2)


def test_small_languages_enter_at_any_time(small_blocks):
    """Each has about one document to give to the run."""
    small = [code for code in load_udhr() if "_" not in code and code != "eng"][:60]
    documents = make_documents(dict.fromkeys(small, 600) | {"eng": 200_000})
    shares = {"eng": 1 - 60 * 70 / (800 * 128)}
    mixture = make(documents, num_rows=800, shares=shares)
    first = {}
    for row in range(800):
        for language in mixture[row]["languages"].tolist():
            first.setdefault(mixture.languages[language], row)
    entries = [first[code] for code in small if code in first]
    assert len(entries) > 30
    assert sum(entry < 80 for entry in entries) < 0.3 * len(entries)
    assert 0.25 < np.mean(np.array(entries) < 400) < 0.75


# Phases


def test_phases_change_languages_and_row_length():
    spans = make_phases()
    mixture = make(spans=spans)
    for number, span in enumerate(spans):
        rows = [mixture[row] for row in range(span.first_row, span.first_row + span.num_rows)]
        assert {row["mask_ratio"] for row in rows} == {span.phase.mask_ratio}
        assert max(len(row["input_ids"]) for row in rows) <= span.phase.max_length
        languages = {mixture.languages[language] for row in rows for language in row["languages"]}
        assert languages == set(span.phase.languages or CODES)
        assert mixture.fill(span.first_row, span.first_row + span.num_rows) > 0.98
        assert sum(mixture.quotas()[number].values()) == pytest.approx(span.num_rows * span.phase.max_length)
    assert max(mixture[row]["document_lengths"].max() for row in range(150, 285)) > 128


# Ranks, workers, resuming


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_workers_read_the_same_rows(small_blocks, num_workers):
    expected = rows_of(make(spans=make_phases()))
    options = {"multiprocessing_context": "fork"} if num_workers else {}
    loader = torch.utils.data.DataLoader(make(spans=make_phases()), batch_size=None, num_workers=num_workers, **options)
    rows = list(loader)
    assert [row["sample_index"] for row in rows] == list(range(285))
    assert [np.asarray(row["input_ids"]).tolist() for row in rows] == expected


def test_a_pickled_mixture_goes_on_and_does_not_carry_lengths_twice(small_blocks):
    mixture = make(spans=make_phases())
    mixture[100]
    data = pickle.dumps(mixture)
    assert len(data) - len(pickle.dumps(mixture.documents)) < 90_000 < 4 * sum(map(len, mixture.documents))
    assert rows_of(pickle.loads(data)) == rows_of(mixture)


def test_ranks_divide_the_rows(small_blocks):
    expected = rows_of(make(spans=make_phases()))
    of_ranks = {}
    for rank in range(4):
        mixture = make(spans=make_phases())
        for row in range(rank, 285, 4):
            of_ranks[row] = mixture[row]["input_ids"].tolist()
    assert [of_ranks[row] for row in range(285)] == expected


def test_reading_in_order_plans_every_block_once(small_blocks, monkeypatch):
    mixture = make(num_rows=1600)
    numbers = planned_blocks(mixture, monkeypatch)
    for row in range(0, 1600, 3):
        mixture[row]
    assert numbers == list(range(100))
    assert len(mixture._kept) <= packed_mixture.MAX_KEPT_STATES
    mixture.state_at(1599)
    assert mixture.fill(1590) > 0.9
    assert len(numbers) < 105


def test_any_order_is_right_and_starts_from_a_kept_state(small_blocks, monkeypatch):
    expected = rows_of(make(num_rows=1600))
    mixture = make(num_rows=1600)
    numbers = planned_blocks(mixture, monkeypatch)
    order = np.random.default_rng(0).permutation(1600)[:60].tolist()
    assert rows_of(mixture, [1599, 0, *order]) == [expected[row] for row in [1599, 0, *order]]
    assert len(numbers) < 100 + 3 * 62


@pytest.mark.parametrize("row", [0, 1, 149, 150, 200, 284])
def test_a_loaded_state_goes_on_without_planning_from_the_start(small_blocks, monkeypatch, row):
    whole = make(spans=make_phases(), max_repeats=2)
    expected = rows_of(whole)
    state = json.loads(json.dumps(whole.state_at(row)))
    resumed = make(spans=make_phases(), max_repeats=2)
    resumed.load_state(state)
    numbers = planned_blocks(resumed, monkeypatch)
    assert rows_of(resumed, range(row, 285)) == expected[row:]
    assert numbers == list(range(state["block"], resumed._planner.num_blocks))
    assert resumed.left_over().tolist() == whole.left_over().tolist()
    assert rows_of(resumed, range(row)) == expected[:row]  # what lies before is planned from the start


def test_the_state_at_the_end_holds_the_pool():
    mixture = make()
    pool = np.array(mixture.state_at(200)["pool_PC"]).reshape(-1, 5)
    assert pool[:, :4].tolist() == mixture.left_over().tolist()
    with pytest.raises(IndexError, match="row 201 is outside"):
        mixture.state_at(201)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"max_repeats": 0.1},
        {"counts": SIZES | {"fao": 5}},
        {"shares": {"eng": 0.2}},
        {"spans": [RowSpan(phase(temperature=0.4), 0, 200)]},
        {"spans": [RowSpan(phase(), 0, 201)]},
        {"documents": DOCUMENTS | {"fao": make_documents({"fao": 500})["fao"]}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_state_of_another_mixture_is_refused(changes):
    mixture, other = make(), make(**changes)
    assert json.loads(json.dumps(mixture.fingerprint)) == mixture.fingerprint == make().fingerprint
    assert other.fingerprint != mixture.fingerprint
    assert rows_of(other, range(200)) != rows_of(mixture)
    with pytest.raises(ValueError, match="from a mixture of other documents, settings or seed"):
        other.load_state(mixture.state_at(0))


def digest(mixture):
    return hashlib.sha256(json.dumps(rows_of(mixture)).encode()).hexdigest()


def test_another_process_sees_the_same_rows():
    script = (
        "import importlib.util as u; s = u.spec_from_file_location('t', r'''" + __file__ + "'''); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.digest(m.make(spans=m.make_phases())))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == digest(make(spans=make_phases()))


def test_the_order_of_the_languages_given_does_not_matter():
    assert digest(make(dict(reversed(DOCUMENTS.items())))) == digest(make())


# Bad input


class NoTokens:
    lengths, num_tokens, fingerprint = np.array([3, 0]), 3, ""

    def __len__(self):
        return 2


class Nothing(NoTokens):
    def __len__(self):
        return 0


FAO = DOCUMENTS["fao"]


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ([FAO], TypeError, "documents must be like .*got list"),
        ({}, ValueError, "one language at least"),
        ({"faroese": FAO}, ValueError, "unknown language code 'faroese'"),
        ({"fo": FAO}, ValueError, "did you mean 'fao'"),
        ({"fao": Nothing()}, ValueError, "'fao' has no documents"),
        ({"fao": NoTokens()}, ValueError, "document 1 of language 'fao' has no tokens"),
    ],
)
def test_bad_documents_are_refused(documents, error, message):
    with pytest.raises(error, match=message):
        make(documents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"max_repeats": 0}, "max_repeats must be a number above 0, or None"),
        ({"max_repeats": float("nan")}, "max_repeats must be"),
        ({"counts": {"fao": 1.0}}, "counts has no entry for bre, cat"),
        ({"shares": {"deu": 0.1}}, "shares names deu, but there are no documents for it"),
        ({"shares": {"english": 0.1}}, "unknown language code 'english'.*'eng'"),
        ({"shares": {"eng": 0.6, "dan": 0.5}}, "phase 'all': shares sum to 1.1"),
        (
            {"spans": [RowSpan(phase(languages=["fao", "deu", "swe"]), 0, 9)]},
            "phase 'all' names deu, swe, but there are",
        ),
        ({"spans": [RowSpan(phase(languages=["fao", "fro!"]), 0, 9)]}, "unknown language code 'fro!'"),
        ({"spans": [RowSpan(phase(languages=["fao", "dan", "fao"]), 0, 9)]}, r"each once; got \['fao'\]"),
        ({"spans": [RowSpan(phase(), 1, 9)]}, "9 from row 1 on, expected at least 1 from row 0"),
        ({"spans": [RowSpan(phase(), 0, 0)]}, "its rows are 0 from row 0"),
        ({"spans": [RowSpan(phase(), 0, 9), RowSpan(phase("b", max_length=64), 9, 9)]}, "falls from 128 to 64"),
        ({"num_rows": 100_000}, r"phase 'all' fills 100,000 rows of 128 .* too few: set max_repeats to .* or more"),
    ],
)
def test_bad_settings_are_refused_before_work_starts(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_raise_asked_for_is_enough():
    documents = make_documents({"fao": 5000, "dan": 9000})
    with pytest.raises(ValueError, match="set max_repeats to") as caught:
        make(documents, num_rows=300, max_repeats=1)
    enough = float(str(caught.value).split("set max_repeats to ")[1].split()[0])
    assert "or more (now 1)" in str(caught.value)
    make(documents, num_rows=300, max_repeats=enough)


def test_no_spans_and_rows_outside_are_refused():
    with pytest.raises(ValueError, match="spans is empty"):
        PackedMixture(DOCUMENTS, [], bos_token_id=BOS, eos_token_id=EOS)
    mixture = make()
    for row in (-1, 200):
        with pytest.raises(IndexError, match=f"row {row} is outside this mixture of 200 rows"):
            mixture[row]
    with pytest.raises(IndexError, match="rows 5 to 201"):
        mixture.tokens_per_language(5, 201)
    assert mixture.fill(7, 7) == 1.0
