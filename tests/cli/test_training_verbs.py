"""``mmbert pretrain``, ``extend`` and ``decay``, end to end on real text, through the command line."""

import contextlib
import io
import json
import logging
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
import transformers.trainer
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerCallback
from transformers.initialization import no_init_weights

from mmbert_hf import MMBertConfig, MMBertForMaskedLM, MMBertTokenizer, export_modernbert
from mmbert_hf.cli import main
from mmbert_hf.data import load_udhr
from mmbert_hf.data.udhr import TRAINING_ARTICLES
from mmbert_hf.evaluation.masked import FixedMasks, masked_scores


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three languages as files, a table of two of them, and a small model with its tokenizer."""
    folder = tmp_path_factory.mktemp("verbs")
    texts = {code: found.paragraphs(TRAINING_ARTICLES) for code, found in load_udhr(["dan", "eng", "fao"]).items()}
    for code, paragraphs in texts.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in paragraphs]
        (folder / f"{code}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "table.yaml").write_text("languages:\n  dan: {source: dan.jsonl}\n  eng: {source: eng.jsonl}\n")
    tokenizer = MMBertTokenizer.train([text for found in texts.values() for text in found], vocab_size=1000)
    config = MMBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=128,
        local_attention=16,
        global_rope_theta=1e4,
        local_rope_theta=1e4,
    )
    torch.manual_seed(0)
    MMBertForMaskedLM(config).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    return SimpleNamespace(
        folder=folder, texts=texts, table=folder / "table.yaml", start=folder / "start", tokenizer=tokenizer
    )


@pytest.fixture(scope="module")
def mmbert(world):
    """Call a verb with short rows; return its exit status and what it printed."""

    def call(*argv, short=True):
        small = ["--total-tokens", "2k", "--max-length", "64", "--rows", "1", "--held-out", "4"]
        quiet = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--logging_steps", "100"]
        words = [str(word) for word in argv]
        options = [] if not short else [*small, *quiet, "--token_cache_dir", str(world.folder / "tokens")]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), logging_as_it_was():
            try:
                status = main([*words[:1], *_before(words[1:], options)])
            except SystemExit as stop:
                status = stop.code
        return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())

    return call


@contextlib.contextmanager
def logging_as_it_was():
    """A verb says how much is logged, for its whole process: other tests are in it, too."""
    loggers = [logging.getLogger(), logging.getLogger("mmbert_hf")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers


def _before(words, options):
    """Put the defaults behind the positional argument, so that what a test says comes later and wins."""
    positional = words[:1] if words and not words[0].startswith("-") else []
    return [*positional, *options, *words[len(positional) :]]


def report_of(done):
    """The printed table: language -> (marked, before, after, tokens)."""
    lines = done.out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("language "))
    rows = {}
    for line in lines[first + 1 :]:
        if line.startswith("mean "):
            break
        code, before, after, change, tokens, _ = line[1:].split()
        assert float(after) - float(before) == pytest.approx(float(change), abs=2e-3)
        rows[code] = (line[0] == "+", float(before), float(after), int(tokens.replace(",", "")))
    return rows


@pytest.fixture(scope="module")
def pipeline(world, mmbert):
    """Pre-training, extension, and a decay that adds Faroese; longer rows in the second and third."""
    runs = {}
    data = ("--data", world.table)
    runs["pretrain"] = mmbert("pretrain", "--model", world.start, *data, "--output-dir", world.folder / "pretrain")
    longer = ("--max-length", 160, "--total-tokens", "3k")
    runs["extend"] = mmbert(
        "extend", world.folder / "pretrain", *data, "--output-dir", world.folder / "extend", *longer
    )
    decay = ("--output-dir", world.folder / "decay", *longer, "--learning_rate", 1e-2)
    added = ("--add-language", f"fao={world.folder / 'fao.jsonl'}")
    runs["command"] = ("decay", world.folder / "extend", *data, *decay, *added)
    runs["decay"] = mmbert(*runs["command"])
    return runs


def test_three_verbs_make_one_model(world, pipeline):
    for verb in ("pretrain", "extend", "decay"):
        assert pipeline[verb].status == 0, pipeline[verb].err
    contexts, thetas = [], []
    for folder in ("start", "pretrain", "extend", "decay"):
        config = AutoModelForMaskedLM.from_pretrained(world.folder / folder).config
        contexts.append(config.max_position_embeddings)
        thetas.append({values["rope_theta"] for values in config.rope_parameters.values()})
    assert contexts == [128, 128, 160, 160]
    assert thetas == [{1e4}, {1e4}, {1.6e5}, {1.6e5}]
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "decay")
    assert tokenizer("Øll menniskju")["input_ids"] == world.tokenizer("Øll menniskju")["input_ids"]


def test_the_report_is_an_independent_measurement(world, pipeline):
    report = report_of(pipeline["decay"])
    assert list(report) == ["fao", "dan", "eng"]  # what was added comes first
    assert [row[0] for row in report.values()] == [True, False, False]
    losses = json.loads((world.folder / "decay/run.json").read_text())["losses"]
    held_out = {code: texts[-min(4, len(texts) // 10) :] for code, texts in world.texts.items()}
    masks = FixedMasks(held_out, world.tokenizer, mask_ratio=0.15, max_length=160, seed=42)
    for column, (when, folder) in enumerate({"before": "extend", "after": "decay"}.items(), start=1):
        model = AutoModelForMaskedLM.from_pretrained(world.folder / folder)
        for code, score in masked_scores(model, masks).items():
            assert losses[when][code] == pytest.approx(score.nats_per_token, rel=1e-5)
            assert report[code][column] == pytest.approx(score.nats_per_token, abs=6e-4)
    assert report["fao"][2] < report["fao"][1] - 0.1  # it was learned


def test_run_json_says_what_the_run_was(world, pipeline):
    record = json.loads((world.folder / "decay/run.json").read_text())
    assert [phase["name"] for phase in record["phases"]] == ["decay"]
    assert record["phases"][0]["languages"] == ["dan", "eng", "fao"]
    assert record["phases"][0]["learning_rate_schedule"].startswith("Trapezoid(warmup=0.05, decay=0.95")
    assert (record["total_tokens"], record["num_steps"], record["seed"]) == (3000, 19, 42)
    tokens = {code: row[3] for code, row in report_of(pipeline["decay"]).items()}
    assert 0.9 * 19 * 160 < sum(tokens.values()) <= 19 * 160
    assert list(record["losses"]) == ["before", "after"]
    assert not list((world.folder / "decay").glob("*.part"))


def test_the_same_command_again_does_nothing_new(world, mmbert, pipeline):
    weights = load_file(world.folder / "decay/model.safetensors")
    record = (world.folder / "decay/run.json").read_text()
    again = mmbert(*pipeline["command"])
    assert again.status == 0
    assert report_of(again) == report_of(pipeline["decay"])
    assert (world.folder / "decay/run.json").read_text() == record
    same = load_file(world.folder / "decay/model.safetensors")
    assert all(torch.equal(same[name], weights[name]) for name in weights)


class Interrupt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_the_same_command_continues(world, mmbert, pipeline, monkeypatch):
    out = world.folder / "cut"
    command = ("pretrain", "--model", world.start, "--data", world.table, "--output-dir", out)
    with monkeypatch.context() as patch:
        patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Interrupt])
        stopped = mmbert(*command)
    assert stopped.status == 130
    assert "mmbert pretrain: stopped behind step 8 of 31; the same command continues" in stopped.err
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-8"]
    assert list(json.loads((out / "run.json").read_text())["losses"]) == ["before"]
    done = mmbert(*command)
    assert done.status == 0, done.err
    assert report_of(done) == report_of(pipeline["pretrain"])
    straight = load_file(world.folder / "pretrain/model.safetensors")
    continued = load_file(out / "model.safetensors")
    assert all(torch.equal(continued[name], straight[name]) for name in straight)


def test_another_run_in_the_same_folder_is_refused_and_leaves_it_alone(world, mmbert, pipeline):
    out = world.folder / "changed"
    shutil.copytree(world.folder / "pretrain", out)
    record = (out / "run.json").read_text()
    command = ("pretrain", "--model", world.start, "--data", world.table, "--output-dir", out)
    longer = mmbert(*command, "--total-tokens", "2500")
    assert longer.status == 2
    assert "belongs to another run: " in longer.err
    assert "plan.total_tokens: 2000 -> 2500" in longer.err
    assert "--allow-change" in longer.err
    assert (out / "run.json").read_text() == record
    allowed = mmbert(*command, "--total-tokens", "2500", "--allow-change")
    assert allowed.status == 0, allowed.err
    assert json.loads((out / "run.json").read_text())["num_steps"] == 39
    assert (out / "checkpoint-39").is_dir()
    held_out_more = mmbert(*command, "--total-tokens", "2500", "--held-out", "2")
    assert held_out_more.status == 2
    assert "data" in held_out_more.err
    # a change of what is measured is measured: what the checkpoint's run had held out is not compared with it
    other_masks = mmbert(*command, "--total-tokens", "2500", "--allow-change", "--seed", "7")
    assert other_masks.status == 0
    model = AutoModelForMaskedLM.from_pretrained(world.start)
    masks = FixedMasks({"dan": world.texts["dan"][-4:]}, world.tokenizer, max_length=128, seed=7)
    assert report_of(other_masks)["dan"][1] == pytest.approx(
        masked_scores(model, masks)["dan"].nats_per_token, abs=6e-4
    )


def test_another_number_of_processes_is_refused_not_started_anew(world, mmbert, pipeline):
    """What a run of two processes leaves behind: two files of random numbers, and the number in the state."""
    out = world.folder / "two"
    shutil.copytree(world.folder / "pretrain", out)
    (checkpoint,) = out.glob("checkpoint-*")
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["stateful_callbacks"]["PlanCallback"]["attributes"]["fingerprint"]["processes"] = 2
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    done = mmbert("pretrain", "--model", world.start, "--data", world.table, "--output-dir", out)
    assert done.status == 2
    assert "processes: 2 -> 1" in done.err


def test_adding_without_the_old_languages_has_to_be_meant(world, mmbert):
    out = world.folder / "alone"
    command = ("decay", world.start, "--output-dir", out, "--add-language", f"fao={world.folder / 'fao.jsonl'}")
    refused = mmbert(*command)
    assert refused.status == 2
    assert "--data TABLE.yaml" in refused.err
    assert "--no-replay" in refused.err
    assert not out.exists()
    done = mmbert(*command, "--no-replay", "--total-tokens", "1k", "--save_strategy", "no")
    assert done.status == 0, done.err
    assert list(report_of(done)) == ["fao"]
    assert not list(out.glob("checkpoint-*"))  # TrainingArguments pass through


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("decay", "START", "--data", "TABLE", "--add-language", "dan=FOLDER/dan.jsonl"), "has 'dan' already"),
        (
            ("decay", "START", "--data", "TABLE", "--add-language", "dan_Latn=FOLDER/dan.jsonl"),
            "name the same language",
        ),
        (("decay", "START", "--data", "TABLE", "--add-language", "fao"), "fao"),
        (("decay", "START", "--data", "TABLE", "--add-language", "xqx=FOLDER/dan.jsonl"), "xqx"),
        (("decay", "START", "--data", "TABLE", "--add-language", "fao=FOLDER/no.jsonl"), "no.jsonl"),
        (("decay", "START", "--no-replay"), "the table has no languages"),
        (("decay", "START", "--data", "TABLE", "--rewarm", "1.5"), "warmup must be a number in [0, 1], got 1.5"),
        (("pretrain", "--data", "TABLE"), "--tokenizer FOLDER_OR_NAME"),
        (
            ("pretrain", "--model", "START", "--data", "TABLE", "--bf17", "true"),
            "there is no option '--bf17'; did you mean '--bf16'",
        ),
        (("pretrain", "--model", "START", "--data", "TABLE", "--save_steps", "many"), "many"),
        (("pretrain", "--model", "START", "--data", "TABLE", "--max_steps", "9"), "set total_tokens instead"),
        (("pretrain", "--model", "START", "--data", "TABLE", "--total-tokens", "20"), "does not fit: its budget of 20"),
        (("pretrain", "--model", "START", "--data", "TABLE", "--total-tokens", "some"), "got 'some'"),
        (("pretrain", "--model", "START", "--data", "TABLE", "--preset", "tinny"), "did you mean 'tiny'"),
        (("pretrain", "--model", "START", "--data", "TABLE", "--max-length", "256"), "the model 128 positions"),
        (("pretrain", "--model", "START", "--data", "FOLDER/no.yaml"), "no.yaml does not exist"),
        (("pretrain", "--model", "START", "--data", "ENTERS"), "'eng' enters in 'decai', but the recipe's phases are"),
        (("pretrain", "--model", "START", "--data", "LATE"), "no language of the table is active in 'pretrain'"),
        (("pretrain", "--model", "strat", "--data", "TABLE"), "there is no folder 'strat', and a name on the Hub is"),
        (("decay", "./start/x", "--data", "TABLE"), "there is no folder './start/x'"),
        (("pretrain", "--model", "START"), "--data"),
        (("extend",), "required: model, --data, --output-dir"),
        # argparse takes "none" for the model where it does not know the option before it; nothing is looked up then
        (("extend", "--data", "TABLE", "--report_to", "none", "START"), "mmbert extend MODEL [options]"),
    ],
)
def test_mistakes_are_one_message_and_status_2(argv, message, world, mmbert):
    (world.folder / "enters.yaml").write_text(
        "languages:\n  dan: {source: dan.jsonl}\n  eng: {source: eng.jsonl, enters: decai}\n"
    )
    (world.folder / "late.yaml").write_text("languages:\n  dan: {source: dan.jsonl, enters: decay}\n")
    names = {"START": world.start, "TABLE": world.table, "FOLDER": world.folder}
    names |= {"ENTERS": world.folder / "enters.yaml", "LATE": world.folder / "late.yaml"}
    words = list(argv)
    for name, path in names.items():
        words = [word.replace(name, str(path)) for word in words]
    out = ("--output-dir", world.folder / "refused")
    done = mmbert(*words, short=False) if len(words) == 1 else mmbert(*words, *out)
    assert done.status == 2, done.out
    assert message in done.err
    assert f"mmbert {argv[0]}" in done.err
    assert "Traceback" not in done.err
    assert not (world.folder / "refused").exists()


def test_arguments_of_the_trainer_pass_through(world, mmbert, tmp_path):
    options = ("--save_steps", 4, "--save_total_limit", 2, "--bf16", "false", "--total-tokens", 640)
    command = ("pretrain", "--model", world.start, "--data", world.table, "--output-dir", tmp_path / "out")
    done = mmbert(*command, *options, "--report_to", "tensorboard")
    assert done.status == 0, done.err
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-8"]
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("verb", ["pretrain", "extend", "decay"])
def test_help_has_every_option(verb, mmbert):
    done = mmbert(verb, "--help", short=False)
    assert done.status == 0
    for word in ("--data TABLE.yaml", "--total-tokens", "--allow-change", "--save_steps 500"):
        assert word in " ".join(done.out.split())
    assert "%%" not in done.out
    assert "%(" not in done.out


def test_decay_of_a_modernbert_folder(world, mmbert, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(world.start)
    export_modernbert(model, tmp_path / "published", tokenizer=world.tokenizer)
    assert json.loads((tmp_path / "published/config.json").read_text())["model_type"] == "modernbert"
    added = ("--add-language", f"fao={world.folder / 'fao.jsonl'}")
    out = tmp_path / "out"
    done = mmbert("decay", tmp_path / "published", "--data", world.table, *added, "--output-dir", out)
    assert done.status == 0, done.err
    assert [code for code, row in report_of(done).items() if row[0]] == ["fao"]
    loads_as_published(out, tmp_path / "again", AutoTokenizer.from_pretrained(out))


def loads_as_published(folder, exported, tokenizer):
    """Export again, and compare with what plain transformers makes of it."""
    ours = AutoModelForMaskedLM.from_pretrained(folder).eval()
    export_modernbert(folder, exported)
    theirs = AutoModelForMaskedLM.from_pretrained(exported, attn_implementation="eager").eval()
    assert type(theirs).__module__.startswith("transformers.")
    inputs = tokenizer("Øll menniskju eru <mask> fræls.", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, ours(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_three_steps_from_the_released_shape(gemma_folder, world, mmbert, tmp_path):
    """140M parameters and Gemma 2's 256,000 tokens: the recipe is for the published checkpoints, too."""
    tokenizer = MMBertTokenizer.from_pretrained(gemma_folder)
    torch.manual_seed(0)
    with no_init_weights():  # a truncated normal of 140M numbers would take half of the test
        model = MMBertForMaskedLM(MMBertConfig.small())
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.03, 0.03) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    export_modernbert(model, tmp_path / "released", tokenizer=tokenizer)
    start = model.model.layers[5].mlp.Wo.weight.detach().clone()
    del model
    added = ("--add-language", f"fao={world.folder / 'fao.jsonl'}")
    size = ("--max-length", 128, "--total-tokens", 384, "--held-out", 1, "--save_strategy", "no")
    out = tmp_path / "out"
    try:
        done = mmbert("decay", tmp_path / "released", "--data", world.table, *added, "--output-dir", out, *size)
        assert done.status == 0, done.err
        record = json.loads((out / "run.json").read_text())
        assert (record["num_steps"], record["phases"][0]["max_length"]) == (3, 128)
        assert [phase["weight_decay"] for phase in record["phases"]] == [4e-5]  # found to be small's recipe
        with safe_open(out / "model.safetensors", "pt") as weights:
            trained = weights.get_tensor("model.layers.5.mlp.Wo.weight")
        assert 1e-6 < (trained - start).abs().max() < 1e-2
        loads_as_published(out, tmp_path / "again", tokenizer)
    finally:
        for folder in ("released", "out", "again"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
