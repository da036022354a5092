import doctest
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from mmbert_hf.trainers import runs
from mmbert_hf.trainers.runs import (
    Interrupted,
    RunReport,
    active_languages,
    build_model,
    decay_from_anywhere,
    hold_out,
    preset_for,
    run_recipe,
)
from transformers import TrainerCallback

from mmbert_hf import MMBertConfig, MMBertForMaskedLM, MMBertTokenizer
from mmbert_hf.data import load_udhr
from mmbert_hf.data.sources import Source
from mmbert_hf.data.table import LanguageEntry, LanguageTable
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.data.udhr import TRAINING_ARTICLES
from mmbert_hf.presets import get_preset
from mmbert_hf.schedules import Constant


def test_docstring_examples():
    result = doctest.testmod(runs)
    assert result.attempted >= 5
    assert result.failed == 0


@pytest.fixture(scope="module")
def texts():
    found = load_udhr(["dan", "eng", "fao"])
    return {code: declaration.paragraphs(TRAINING_ARTICLES) for code, declaration in found.items()}


@pytest.fixture(scope="module")
def own_tokenizer(texts):
    return MMBertTokenizer.train([text for found in texts.values() for text in found], vocab_size=1000)


@pytest.fixture(scope="module")
def table(texts, tmp_path_factory):
    """Danish from the start, English from the extension, Faroese from the decay on."""
    folder, entries = tmp_path_factory.mktemp("texts"), {}
    for code, phase in {"dan": None, "eng": "extend", "fao": "decay"}.items():
        lines = [json.dumps({"text": text}) for text in texts[code]]
        (folder / f"{code}.jsonl").write_text("\n".join(lines))
        entries[code] = LanguageEntry(Source(code, str(folder / f"{code}.jsonl")), enters=phase)
    return LanguageTable(entries)


@pytest.fixture
def model(own_tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    return MMBertForMaskedLM(MMBertConfig(vocab_size=len(own_tokenizer), max_position_embeddings=128, **sizes))


@pytest.fixture
def run_args(make_args, tmp_path_factory):
    cache = str(tmp_path_factory.getbasetemp() / "tokens")
    return lambda **options: make_args(
        **{
            "recipe": "tiny",
            "phases": ["decay"],
            "total_tokens": 2000,
            "max_length": 64,
            "per_device_train_batch_size": 1,
            "token_cache_dir": cache,
            "save_strategy": "steps",
            **options,
        }
    )


def documents_in(model, read):
    """Note the documents of every training batch, as they were before masking."""

    def note(module, args, kwargs):
        if module.training:
            ids, labels = kwargs["input_ids"][0], kwargs["labels"][0]
            whole = torch.where(labels == -100, ids, labels).tolist()
            ends = kwargs["cu_seq_lens_q"].tolist()
            read.extend(tuple(whole[a + 1 : b - 1]) for a, b in pairwise(ends))

    model.register_forward_pre_hook(note, with_kwargs=True)


def contains(document, piece):
    return any(tuple(document[start : start + len(piece)]) == piece for start in range(len(document)))


def test_what_is_held_out_is_never_read(model, own_tokenizer, table, texts, run_args):
    read = []
    documents_in(model, read)
    report = run_recipe(model, own_tokenizer, table, run_args(), held_out_documents=4)
    ids = {code: own_tokenizer(found, add_special_tokens=False)["input_ids"] for code, found in texts.items()}
    trained = [document for found in ids.values() for document in found[: -min(4, len(found) // 10)]]
    held_out = [document for found in ids.values() for document in found[-min(4, len(found) // 10) :]]
    assert len(held_out) == 12
    assert read
    for piece in set(read):
        assert any(contains(document, piece) for document in trained)
        if len(piece) > 8:
            assert not any(contains(document, piece) for document in held_out)
    assert sum(len(piece) + 2 for piece in read) == sum(report.tokens.values())
    assert set(report.before) == set(report.after) == {"dan", "eng", "fao"}
    record = json.loads(Path(run_args().output_dir, "run.json").read_text())
    assert record["losses"] == {"before": report.before, "after": report.after}
    assert record["repeats"] == report.repeats


@pytest.mark.parametrize(
    ("phases", "languages", "added"),
    [
        (["pretrain"], ["dan"], []),
        (["extend"], ["dan", "eng"], ["eng"]),
        (["decay"], ["dan", "eng", "fao"], ["fao"]),
        (["extend", "decay"], ["dan", "eng", "fao"], ["eng", "fao"]),
        (["pretrain", "extend"], ["dan", "eng"], []),
    ],
)
def test_languages_enter_by_the_table_whatever_is_run(phases, languages, added, model, own_tokenizer, table, run_args):
    report = run_recipe(model, own_tokenizer, table, run_args(phases=phases, total_tokens=1300))
    assert list(report.tokens) == languages
    assert report.added == added
    assert all(report.tokens[code] > 0 for code in languages)
    entering = [{"pretrain": ["dan"], "extend": ["dan", "eng"]}.get(name, ["dan", "eng", "fao"]) for name in phases]
    record = json.loads(Path(run_args().output_dir, "run.json").read_text())
    assert [phase["languages"] for phase in record["phases"]] == entering


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [0, 13, 30])  # the first, one in the middle, the last
def test_an_interrupted_run_continues_to_the_same_bits(step, model, own_tokenizer, table, run_args):
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    straight = run_recipe(model, own_tokenizer, table, run_args())
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(start)
    args = run_args()
    args.output_dir += "-cut"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=rf"stopped behind step {step + 1} of 31; the same command continues"):
        run_recipe(model, own_tokenizer, table, args, callbacks=[Interrupt(step)])
    assert signal.getsignal(signal.SIGINT) is handler  # given back
    assert [path.name for path in Path(args.output_dir).glob("checkpoint-*")] == [f"checkpoint-{step + 1}"]
    model.load_state_dict(start)
    args = run_args()
    args.output_dir += "-cut"
    assert run_recipe(model, own_tokenizer, table, args) == straight
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("record", [None, "", "[]", "{}", '{"losses": null}', '{"losses": {"bef'])
def test_a_record_that_is_lost_is_measured_anew(record, model, own_tokenizer, table, run_args):
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    report = run_recipe(model, own_tokenizer, table, run_args(total_tokens=400))
    path = Path(run_args().output_dir, "run.json")
    path.unlink()
    if record is not None:
        path.write_text(record)
    model.load_state_dict(start)
    assert run_recipe(model, own_tokenizer, table, run_args(total_tokens=400)) == report


def test_nothing_held_out_nothing_measured(model, own_tokenizer, table, run_args, caplog):
    report = run_recipe(model, own_tokenizer, table, run_args(total_tokens=400), held_out_documents=0)
    assert (report.before, report.after) == ({}, {})
    assert "nothing is measured" in caplog.text
    assert "mean" not in report.table()
    assert report.table().splitlines()[1].split()[:4] == ["+fao", "-", "-", "-"]


def test_the_table_of_a_report():
    report = RunReport(
        {"dan": 2.0, "fao": 5.0}, {"dan": 2.25, "fao": 3.0}, ["fao"],
        {"dan": 1_234_567, "eng": 8, "fao": 900}, {"dan": 0.5, "eng": 4.0, "fao": 1.25},
    )  # fmt: skip
    assert report.table().splitlines() == [
        "language       before    after   change         tokens  passes",
        "+fao            5.000    3.000   -2.000            900    1.25",
        " dan            2.000    2.250   +0.250      1,234,567    0.50",
        " eng                -        -        -              8    4.00",
        "mean added      5.000    3.000   -2.000",
        "mean others     2.000    2.250   +0.250",
    ]


@pytest.mark.parametrize(
    ("number", "most", "expected"), [(3, 32, 0), (4, 32, 1), (19, 32, 1), (20, 32, 2), (900, 32, 32), (900, 0, 0)]
)
def test_how_much_is_held_out(number, most, expected):
    documents = TokenDocuments.from_arrays([[index + 5] * 70 for index in range(number)])
    rest, held_out = hold_out({"fao": documents}, most)
    assert len(rest["fao"]) == number - expected
    found = [int(array[0]) - 5 for array in held_out.get("fao", [])]
    assert found == list(range(number - expected, number))
    kept = np.concatenate([rest["fao"].tokens(index) for index in range(len(rest["fao"]))])
    assert not set(kept.tolist()) & {index + 5 for index in found}


def test_who_is_active_in_a_phase(table):
    names = ["pretrain", "extend", "decay"]
    found = [active_languages(table, names, name) for name in names]
    assert found == [["dan"], ["dan", "eng"], ["dan", "eng", "fao"]]
    alone = LanguageTable({"fao": table.entries["fao"]})
    with pytest.raises(ValueError, match="no language of the table is active in 'extend'; let one enter"):
        active_languages(alone, names, "extend")
    with pytest.raises(ValueError, match="'fao' enters in 'decay', but the recipe's phases are pretrain"):
        active_languages(table, ["pretrain", "extend"], "extend")


def test_rewarming_changes_the_decay_alone():
    recipe = get_preset("mmbert-small-paper").recipe
    warmed = decay_from_anywhere(recipe, 0.2)
    assert list(warmed.phases[:2]) == list(recipe.phases[:2])
    rate = warmed.phases[2].learning_rate_schedule
    assert [round(rate.at(t), 6) for t in (0.0, 0.1, 0.2, 0.6, 1.0)] == [0.0, 0.5, 1.0, 0.52, 0.04]
    assert decay_from_anywhere(recipe, 0.0) == recipe
    for warmup in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="warmup"):
            decay_from_anywhere(recipe, warmup)
    assert isinstance(recipe.phases[1].learning_rate_schedule, Constant)


def test_a_fresh_model_has_the_presets_size_and_is_seeded(own_tokenizer):
    one, again, other = (build_model("tiny", own_tokenizer, seed=seed) for seed in (1, 1, 2))
    assert (one.config.vocab_size, one.config.hidden_size, one.config.max_position_embeddings) == (1000, 256, 1024)
    assert one.config.global_rope_theta == one.config.local_rope_theta == 1e4
    weights = [next(model.parameters()) for model in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert preset_for(one) == "tiny"


@pytest.mark.parametrize(("make", "preset"), [("small", "mmbert-small-paper"), ("base", "mmbert-base-paper")])
def test_the_preset_follows_the_width(make, preset):
    with torch.device("meta"):
        assert preset_for(MMBertForMaskedLM(getattr(MMBertConfig, make)())) == preset
