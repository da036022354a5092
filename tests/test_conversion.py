"""Exports load without this package and give the same numbers; a failed export leaves no trace."""

import doctest
import json
import logging
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from mmbert_hf import conversion, modeling
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.conversion import MODERNBERT_CLASSES, export_modernbert, from_modernbert, modernbert_values

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 16,
    "initializer_range": 0.1,
    "global_rope_theta": 3_000.0,
    "local_rope_theta": 500.0,
}
TASKS = {
    "Model": ("AutoModel", {}),
    "ForMaskedLM": ("AutoModelForMaskedLM", {}),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", {"num_labels": 3}),
    "ForTokenClassification": ("AutoModelForTokenClassification", {"num_labels": 5}),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", {}),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", {}),
}
# Runs where neither this package nor anything that imports it is loaded.
FOREIGN = """
import sys, torch, transformers
tasks, folder = sys.argv[1].split(","), sys.argv[2]
for task, auto_class in (pair.split(":") for pair in tasks):
    model = getattr(transformers, auto_class).from_pretrained(f"{folder}/{task}")
    assert type(model).__name__ == "ModernBert" + task, type(model)
    inputs = torch.load(f"{folder}/{task}.inputs.pt")
    with torch.no_grad():
        torch.save(model.eval()(**inputs)[0], f"{folder}/{task}.outputs.pt")
assert not [name for name in sys.modules if name.split(".")[0] == "mmbert_hf"]
"""


def make(task="ForMaskedLM", **options):
    torch.manual_seed(0)
    options = {**SIZES, **TASKS[task][1], **options}
    model = getattr(modeling, f"MMBert{task}")(MMBertConfig(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    return model


def make_native(task="ForMaskedLM", **options):
    model = make(task, **options)
    options = {**SIZES, **TASKS[task][1], "pad_token_id": 0, "classifier_pooling": "mean", **options}
    native = getattr(transformers, f"ModernBert{task}")(transformers.ModernBertConfig(**options)).eval()
    native.load_state_dict(model.state_dict())
    return native


def make_inputs(task="ForMaskedLM"):
    ids = torch.randint(5, 120, (2, 70), generator=torch.Generator().manual_seed(1))
    ids[1, 50:] = 0
    inputs = {"input_ids": ids, "attention_mask": ids.ne(0).long()}
    return {name: value[:, None] for name, value in inputs.items()} if task == "ForMultipleChoice" else inputs


def make_tokenizer(size=100, **special):
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"w{i}" for i in range(5, size))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<unk>", **special}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def run(code, *arguments):
    """Run `code` in a fresh interpreter and return what it printed."""
    result = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


def at_real_tokens(values):
    """Outputs without those at padding, which mean nothing; outputs for whole rows as they are."""
    return values[make_inputs()["attention_mask"].bool()] if values.shape[:2] == (2, 70) else values


def outputs(model, task="ForMaskedLM"):
    with torch.no_grad():
        return at_real_tokens(model(**make_inputs(task))[0])


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Export


def test_exports_of_every_task_load_in_plain_transformers(tmp_path):
    expected = {}
    for task in TASKS:
        model = make(task)
        expected[task] = outputs(model, task)
        torch.save(make_inputs(task), tmp_path / f"{task}.inputs.pt")
        export_modernbert(model, tmp_path / task)
    run(FOREIGN, ",".join(f"{task}:{auto_class}" for task, (auto_class, _) in TASKS.items()), tmp_path)
    for task, values in expected.items():
        difference = (at_real_tokens(torch.load(tmp_path / f"{task}.outputs.pt")) - values).abs().max()
        assert difference < 1e-5, task
        assert values.abs().max() > 0.1


def test_exported_files_have_the_mode_of_a_new_file(tmp_path):
    export_modernbert(make(), tmp_path / "export")
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "export").iterdir()}
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode}, modes


def test_the_exported_configuration_has_both_spellings(tmp_path):
    folder = export_modernbert(make().to(torch.bfloat16), tmp_path / "new" / "model")
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == "modernbert"
    assert values["architectures"] == ["ModernBertForMaskedLM"]
    assert values["rope_parameters"]["full_attention"]["rope_theta"] == 3000
    assert values["rope_parameters"]["sliding_attention"]["rope_theta"] == 500
    assert (values["global_rope_theta"], values["local_rope_theta"]) == (3000, 500)
    assert values["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert values["global_attn_every_n_layers"] == 3
    assert values["dtype"] == "bfloat16"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("layer_types", "every"),
    [("gllg", 3), ("glgl", 2), ("gggg", 1), ("glll", 4), ("lggg", None), ("llll", None), ("gglg", None)],
)
def test_the_layer_pattern_for_transformers_4(layer_types, every, caplog):
    names = {"g": "full_attention", "l": "sliding_attention"}
    config = MMBertConfig(**SIZES, layer_types=[names[letter] for letter in layer_types])
    config.global_attn_every_n_layers = 77  # a value left from a file that was read
    with caplog.at_level(logging.WARNING, logger="mmbert_hf.conversion"):
        values = modernbert_values(config, "ModernBertModel")
    assert values.get("global_attn_every_n_layers") == every
    assert ("transformers 4 cannot express the layer pattern" in caplog.text) == (every is None)


def test_scaled_rope_is_reported(caplog):
    rope = {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}
    config = MMBertConfig(rope_parameters=rope)
    with caplog.at_level(logging.WARNING, logger="mmbert_hf.conversion"):
        values = modernbert_values(config, "ModernBertModel")
    assert "transformers 4 cannot express the RoPE types" in caplog.text
    assert values["rope_parameters"]["full_attention"]["factor"] == 2.0


def test_exporting_changes_neither_the_model_nor_its_type(tmp_path):
    model = make()
    before = outputs(model)
    export_modernbert(model, tmp_path / "model")
    assert model.config.model_type == "mmbert"
    assert torch.equal(outputs(model), before)


@pytest.mark.parametrize("make_source", [make, make_native])
def test_exports_from_a_folder(make_source, tmp_path):
    model = make_source()
    model.save_pretrained(tmp_path / "source")
    export_modernbert(str(tmp_path / "source"), tmp_path / "target")
    loaded = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path / "target")
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=0, atol=1e-6)
    assert (
        load_file(tmp_path / "target/model.safetensors").keys()
        == load_file(tmp_path / "source/model.safetensors").keys()
    )


def test_a_native_model_is_exported_too(tmp_path):
    folder = export_modernbert(make_native(), tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["local_rope_theta"] == 500


def test_the_tokenizer_goes_along(tmp_path):
    export_modernbert(make(), tmp_path / "given", tokenizer=make_tokenizer())
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "given").mask_token_id == 4
    export_modernbert(tmp_path / "given", tmp_path / "found")
    assert (tmp_path / "found/tokenizer.json").is_file()


def test_a_tokenizer_with_a_portable_form_is_saved_in_it(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_portable = lambda folder: (folder / "portable").write_text("yes")
    folder = export_modernbert(make(), tmp_path / "model", tokenizer=tokenizer)
    assert (folder / "portable").is_file()
    assert not (folder / "tokenizer.json").exists()


def test_a_tokenizer_that_does_not_fit_is_refused_before_writing(tmp_path):
    with pytest.raises(ValueError, match="200 tokens and the model 120 embeddings"):
        export_modernbert(make(), tmp_path / "model", tokenizer=make_tokenizer(200))
    with pytest.raises(ValueError, match="no mask token"):
        export_modernbert(make(), tmp_path / "model", tokenizer=make_tokenizer(mask_token=None))
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not empty.*overwrite=True"):
        export_modernbert(make(), tmp_path)
    assert snapshot(tmp_path) == {"README.md": b"mine"}
    with pytest.raises(NotADirectoryError, match="is a file"):
        export_modernbert(make(), tmp_path / "README.md")
    (tmp_path / "empty").mkdir()
    assert (export_modernbert(make(), tmp_path / "empty") / "model.safetensors").is_file()


def test_overwriting_replaces_the_model_and_keeps_other_files(tmp_path):
    folder = tmp_path / "model"
    export_modernbert(make(), folder, tokenizer=make_tokenizer())
    (folder / "README.md").write_text("a card")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    for stale in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        (folder / stale).write_text("stale")
    smaller = make(num_hidden_layers=2)
    export_modernbert(smaller, folder, overwrite=True)
    left = {path.name for path in folder.iterdir()}
    assert left >= {"README.md", "1_Pooling", "config.json", "model.safetensors", "tokenizer.json"}
    assert not left & {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"}
    assert (folder / "1_Pooling/config.json").read_text() == "{}"
    loaded = transformers.ModernBertForMaskedLM.from_pretrained(folder)
    torch.testing.assert_close(outputs(loaded), outputs(smaller), rtol=0, atol=1e-6)
    (folder / "special_tokens_map.json").write_text("stale")
    export_modernbert(smaller, folder, overwrite=True, tokenizer=make_tokenizer())
    assert not (folder / "special_tokens_map.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_move_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    export_modernbert(make(), folder)
    before = snapshot(folder)
    rename = type(folder).rename

    def fail_on_arrival(self, target):
        if ".incomplete-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", fail_on_arrival)
    with pytest.raises(OSError, match="no"):
        export_modernbert(make(num_hidden_layers=2), folder, overwrite=True)
    assert snapshot(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


DISK_FULL = """
import resource, signal, sys, torch
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.conversion import export_modernbert
from mmbert_hf.modeling import MMBertForMaskedLM
model = MMBertForMaskedLM(MMBertConfig(
    vocab_size=120, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    export_modernbert(model, sys.argv[1], overwrite=True)
except OSError as error:
    print(error)
else:
    sys.exit("the export did not fail")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("limit", [100, 50_000], ids=["configuration", "weights"])
def test_a_full_disk_leaves_the_old_folder(tmp_path, limit):
    folder = tmp_path / "model"
    export_modernbert(make(), folder)
    before = snapshot(folder)
    result = run(DISK_FULL, folder, limit)
    assert "could not write the export" in result.stdout
    assert "too large" in result.stdout
    assert snapshot(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_that_cannot_be_written_is_an_os_error(tmp_path):
    def save(folder):
        raise Exception("File too large")  # what tokenizers raises

    tokenizer = make_tokenizer()
    tokenizer.save_portable = save
    with pytest.raises(OSError, match=r"could not write the export.*File too large"):
        export_modernbert(make(), tmp_path / "model", tokenizer=tokenizer)
    tokenizer.save_portable = lambda folder: folder.missing_attribute
    with pytest.raises(AttributeError):
        export_modernbert(make(), tmp_path / "model", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("convert", [from_modernbert, lambda model: export_modernbert(model, "unused")])
def test_other_models_are_refused(convert):
    with pytest.raises(TypeError, match=r"got a torch.nn.modules.linear.Linear; it must be one of.*merge_and_unload"):
        convert(torch.nn.Linear(1, 1))


def test_a_model_with_an_adapter_is_refused(tmp_path):
    model = make()
    model._hf_peft_config_loaded = True
    with pytest.raises(ValueError, match="adapter"):
        export_modernbert(model, tmp_path / "model")


# The other way


@pytest.mark.parametrize("task", TASKS)
def test_from_modernbert_is_exact(task, tmp_path):
    native = make_native(task)
    native.save_pretrained(tmp_path)
    for converted in (from_modernbert(native), from_modernbert(tmp_path), from_modernbert(str(tmp_path))):
        assert type(converted) is getattr(modeling, f"MMBert{task}")
        assert converted.config.model_type == "mmbert"
        assert (converted.config.global_rope_theta, converted.config.local_rope_theta) == (3000, 500)
        weights = converted.state_dict()
        assert weights.keys() == native.state_dict().keys()
        assert all(torch.equal(weights[name], value) for name, value in native.state_dict().items())
        torch.testing.assert_close(outputs(converted, task), outputs(native, task), rtol=0, atol=1e-6)


def test_from_modernbert_copies_and_keeps_mode_and_dtype():
    native = make_native().to(torch.bfloat16).train()
    converted = from_modernbert(native)
    assert converted.training
    assert converted.dtype == torch.bfloat16
    with torch.no_grad():
        converted.model.layers[0].mlp.Wo.weight.zero_()
    assert native.model.layers[0].mlp.Wo.weight.abs().sum() > 0
    assert converted.decoder.weight is converted.model.embeddings.tok_embeddings.weight


@pytest.mark.parametrize("task", TASKS)
def test_from_pretrained_takes_native_folders_without_a_warning(task, tmp_path):
    native = make_native(task)
    native.save_pretrained(tmp_path)
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    model = getattr(modeling, f"MMBert{task}").from_pretrained(tmp_path)
    logging.getLogger("transformers").removeHandler(handler)
    assert messages == []
    assert all(torch.equal(model.state_dict()[name], value) for name, value in native.state_dict().items())
    torch.testing.assert_close(outputs(model, task), outputs(native, task), rtol=0, atol=1e-6)


def test_a_native_configuration_is_taken_and_shared_by_encoder_and_head():
    model = modeling.MMBertForMaskedLM(transformers.ModernBertConfig(**{**SIZES, "pad_token_id": 0}))
    assert type(model.config) is MMBertConfig
    assert model.model.config is model.config
    assert model.config.local_rope_theta == 500


@pytest.mark.parametrize(
    ("damage", "message"), [("missing", "missing_keys.*mlp.Wi"), ("left over", "unexpected_keys.*extra")]
)
def test_weights_that_do_not_fit_are_an_error(damage, message, tmp_path):
    make().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del weights["model.layers.1.mlp.Wi.weight"]
    else:
        weights["model.extra"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        from_modernbert(tmp_path)


def test_an_unknown_architecture_is_an_error(tmp_path):
    make().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match=r"names the architectures \['BertModel'\]; it must name one of"):
        from_modernbert(tmp_path)


# Our code on native checkpoints, through the Auto classes

REGISTERED = """
import sys, json, torch, transformers, mmbert_hf
from mmbert_hf import conversion, modeling
auto, ours = transformers.AutoModelForMaskedLM, conversion.MODERNBERT_CLASSES[modeling.MMBertForMaskedLM]
assert type(auto.from_pretrained(sys.argv[1])) is transformers.ModernBertForMaskedLM
mmbert_hf.register(modernbert=True)
model = auto.from_pretrained(sys.argv[1])
assert type(model) is ours
assert type(model.config) is transformers.ModernBertConfig
assert model.model.config is model.config
model.set_rope_theta(70.0)
model.save_pretrained(sys.argv[2])
inputs = torch.load(sys.argv[3])
with torch.no_grad():
    torch.save(model(**inputs)[0], sys.argv[4])
transformers.AutoModelForMaskedLM.from_config(model.config)
"""


def test_auto_classes_can_run_native_checkpoints_with_our_code(tmp_path):
    native = make_native()
    native.save_pretrained(tmp_path / "native")
    torch.save(make_inputs(), tmp_path / "inputs.pt")
    run(REGISTERED, tmp_path / "native", tmp_path / "saved", tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert saved["model_type"] == "modernbert"
    assert saved["architectures"] == ["ModernBertForMaskedLM"]
    loaded = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(outputs(loaded), at_real_tokens(torch.load(tmp_path / "outputs.pt")), rtol=0, atol=1e-6)
    assert (outputs(loaded) - outputs(native)).abs().max() > 1e-3  # the other RoPE base


@pytest.mark.parametrize("task", TASKS)
def test_native_typed_classes(task, tmp_path):
    ours = getattr(modeling, f"MMBert{task}")
    native_typed = MODERNBERT_CLASSES[ours]
    native = make_native(task)
    native.save_pretrained(tmp_path)
    model = native_typed.from_pretrained(tmp_path)
    assert isinstance(model, ours)
    assert type(model.config) is transformers.ModernBertConfig
    assert model.base_model.config is model.config
    torch.testing.assert_close(outputs(model, task), outputs(native, task), rtol=0, atol=1e-6)
    assert getattr(conversion, native_typed.__name__) is native_typed  # importable by name, so it pickles


def test_docstring_examples():
    results = doctest.testmod(conversion)
    assert results.failed == 0
    assert all(">>>" in getattr(conversion, name).__doc__ for name in conversion.__all__ if name.islower())
