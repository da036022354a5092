"""Small tasks of one's own, really run by mteb; and mteb's names, resolved without reading any data."""

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from scipy.stats import spearmanr

from mmbert_hf.evaluation import evaluate_mteb, select_mteb_tasks
from mmbert_hf.evaluation.mteb_tasks import TaskSelection, model_fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

SENTENCES = ["free and equal", "law of the country", "music and peace", "food and health", "trial by judge", "a border"]
PAIRS = [(SENTENCES[place], SENTENCES[(place * 2 + 1) % 6]) for place in range(6)]
SIMILARITY = [0.0, 2.0, 5.0, 1.0, 3.0, 4.0]


def metadata(**more):
    common = {
        "description": "own", "reference": "https://example.org", "dataset": {"path": "own/own", "revision": "1"},
        "category": "t2t", "eval_splits": ["test"], "date": ("2022-12-22", "2022-12-22"), "dialect": ["Written"],
        "domains": [], "task_subtypes": [], "license": "cc-by-4.0", "annotations_creators": "derived",
        "modalities": ["text"], "sample_creation": "found", "bibtex_citation": "",
    }  # fmt: skip
    return TaskMetadata(**{**common, **more})


class OwnSTS(AbsTaskSTS):
    metadata = metadata(
        type="STS",
        name="OwnSTS",
        main_score="cosine_spearman",
        eval_langs={"dan": ["dan-Latn"], "dan-fao": ["dan-Latn", "fao-Latn"]},
    )
    min_score, max_score = 0, 5

    def load_data(self, num_proc=None, **kwargs):
        first, second = zip(*PAIRS, strict=True)
        rows = {"sentence1": first, "sentence2": second, "score": SIMILARITY}
        self.dataset = {name: DatasetDict({"test": Dataset.from_dict(rows)}) for name in ("dan", "dan-fao")}
        self.data_loaded = True


class OwnRetrieval(AbsTaskRetrieval):
    metadata = metadata(type="Retrieval", name="OwnRetrieval", main_score="ndcg_at_10", eval_langs=["eng-Latn"])

    def load_data(self, num_proc=None, **kwargs):
        names = [f"d{place}" for place in range(6)]
        queries = {"id": ["q0", "q1"], "text": [SENTENCES[0], SENTENCES[4]]}
        split = {
            "corpus": Dataset.from_dict({"id": names, "text": SENTENCES, "title": [""] * 6}),
            "queries": Dataset.from_dict(queries),
            "relevant_docs": {"q0": {"d0": 1}, "q1": {"d4": 1}},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def test_own_tasks_run_by_mteb(bert_embedder, tmp_path):
    selection = select_mteb_tasks([OwnSTS(), OwnRetrieval()])
    scores = evaluate_mteb(bert_embedder, selection, tmp_path, name=str(tmp_path / "small"))
    main = {(score.dataset, score.config): score for score in scores if score.is_main}
    first, second = (bert_embedder.encode(list(texts)) for texts in zip(*PAIRS, strict=True))
    expected = spearmanr(np.sum(first * second, axis=1), SIMILARITY).statistic
    sts = main["OwnSTS", "dan-fao"]
    assert sts.value == pytest.approx(expected, abs=1e-4)
    assert (sts.task, sts.metric, sts.language, sts.split) == ("STS", "cosine_spearman", "dan_Latn+fao_Latn", "test")
    assert main["OwnSTS", "dan"].language == "dan_Latn"
    retrieval = main["OwnRetrieval", "default"]
    assert (retrieval.task, retrieval.metric, retrieval.value) == ("Retrieval", "ndcg_at_10", 1.0)
    assert {"recall_at_5", "map_at_10"} <= {score.metric for score in scores if not score.is_main}
    assert len(main) == 3
    files = sorted(path.name for path in tmp_path.rglob("*.json"))
    assert {"OwnSTS.json", "OwnRetrieval.json"} <= set(files)


def test_what_is_there_is_not_run_again_unless_the_model_changed(bert_embedder, tmp_path, monkeypatch):
    selection = select_mteb_tasks([OwnSTS()])
    first = evaluate_mteb(bert_embedder, selection, tmp_path)
    loads = []
    load = OwnSTS.load_data
    monkeypatch.setattr(OwnSTS, "load_data", lambda self, **more: (loads.append(1), load(self, **more)))
    assert evaluate_mteb(bert_embedder, select_mteb_tasks([OwnSTS()]), tmp_path) == first
    assert not loads
    before = model_fingerprint(bert_embedder)
    next(bert_embedder.parameters()).data.mul_(-1.5)
    assert model_fingerprint(bert_embedder) != before
    assert evaluate_mteb(bert_embedder, select_mteb_tasks([OwnSTS()]), tmp_path) != first
    assert loads


def test_the_mean_of_a_benchmark_is_over_its_tasks(bert_embedder, tmp_path):
    selection = select_mteb_tasks([OwnSTS(), OwnRetrieval()])
    both = TaskSelection(selection.tasks, {"Own": ("OwnSTS", "OwnRetrieval"), "More": ("OwnSTS", "STS17")})
    scores = evaluate_mteb(bert_embedder, both, tmp_path)
    sts = np.mean([score.value for score in scores if score.dataset == "OwnSTS" and score.is_main])
    (mean,) = [score for score in scores if score.task == "benchmark"]
    assert (mean.dataset, mean.value) == ("Own", pytest.approx((sts + 1.0) / 2))


def test_names_of_mteb():
    chemistry = select_mteb_tasks(benchmarks=["ChemTEB"])
    assert len(chemistry.tasks) > 20
    assert chemistry.benchmarks == {"ChemTEB": tuple(task.metadata.name for task in chemistry.tasks)}
    finance = select_mteb_tasks(["FinParaSTS", "FinanceBenchRetrieval"])
    assert [task.metadata.name for task in finance.tasks] == ["FinParaSTS", "FinanceBenchRetrieval"]
    assert finance.benchmarks == {}


def test_languages_leave_parts_and_spoil_no_benchmark():
    all_parts = mteb.get_task("STS17").hf_subsets
    some = select_mteb_tasks(["STS17"], languages=["ara"])
    assert set(some.tasks[0].hf_subsets) < set(all_parts)
    benchmark = "MTEB(Scandinavian, v1)"
    whole = select_mteb_tasks(benchmarks=[benchmark])
    parts = [list(task.hf_subsets) for task in whole.tasks]
    danish = select_mteb_tasks(benchmarks=[benchmark], languages=["dan"])
    assert 0 < len(danish.tasks) < len(whole.tasks)
    assert len(danish.tasks) + len(danish.left_out) == len(whole.tasks)
    assert danish.benchmarks == {}
    assert [list(task.hf_subsets) for task in select_mteb_tasks(benchmarks=[benchmark]).tasks] == parts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ["sts17x"]}, "mteb has no task 'sts17x'; near it: STS17"),
        ({"benchmarks": ["chemTEB2"]}, "mteb has no benchmark 'chemTEB2'; near it: ChemTEB"),
        ({"tasks": ["STS17"], "languages": ["faroese"]}, "'faroese' is no language as mteb names them"),
        ({"tasks": ["STS17"], "languages": ["fao"]}, "there is no task in fao: STS17 have other languages"),
        ({}, "name at least one task or benchmark"),
    ],
)
def test_wrong_names_are_told_with_the_nearest(given, message):
    with pytest.raises(ValueError, match=message):
        select_mteb_tasks(**given)
