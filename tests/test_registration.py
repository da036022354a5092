import json
import subprocess
import sys
from pathlib import Path

import pytest


def run_python(code: str) -> dict:
    """Run code in a fresh process; its last line of output is JSON."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_light_and_registers_when_transformers_comes():
    loaded = run_python("""
import sys, json, mmbert_hf
before = sorted({name.partition(".")[0] for name in sys.modules})
from transformers import AutoConfig
config = AutoConfig.for_model("mmbert")
heavy = [name for name in ("trl", "sentence_transformers", "datasets", "matplotlib", "peft") if name in sys.modules]
modeling = "mmbert_hf.modeling" in sys.modules
print(json.dumps({"before": before, "class": type(config).__name__, "heavy": heavy, "modeling": modeling}))
""")
    assert not {"transformers", "torch", "trl", "peft", "sentence_transformers", "datasets", "matplotlib"} & set(
        loaded["before"]
    )
    assert loaded["class"] == "MMBertConfig"
    assert loaded["heavy"] == []
    assert loaded["modeling"] is False


def test_registers_when_transformers_was_there_first():
    loaded = run_python("""
import json
from transformers import AutoConfig, AutoModel
import mmbert_hf
config = AutoConfig.for_model("mmbert", vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
print(json.dumps({"class": type(AutoModel.from_config(config)).__name__}))
""")
    assert loaded == {"class": "MMBertModel"}


def test_deep_import_of_transformers_registers_as_well():
    loaded = run_python("""
import json, mmbert_hf
from transformers.models.modernbert.modeling_modernbert import ModernBertModel
from transformers.models.auto.modeling_auto import AutoModel, MODEL_MAPPING
from mmbert_hf import MMBertConfig
print(json.dumps({"known": MMBertConfig in MODEL_MAPPING}))
""")
    assert loaded == {"known": True}


def test_asking_whether_transformers_is_installed_does_not_use_up_the_registration():
    loaded = run_python("""
import importlib.util, json, sys, mmbert_hf
lookups = [importlib.util.find_spec("transformers") for _ in range(2)]
source = lookups[0].loader.get_filename("transformers").endswith("__init__.py")
from transformers import AutoConfig
import transformers
from mmbert_hf.registration import _AfterImport
waiting = [finder.module for finder in sys.meta_path if isinstance(finder, _AfterImport)]
loader = type(transformers.__spec__.loader).__name__
known = type(AutoConfig.for_model("mmbert")).__name__
print(json.dumps({"source": source, "waiting": waiting, "loader": loader, "known": known}))
""")
    assert loaded == {
        "source": True,
        "waiting": ["peft.utils.constants"],
        "loader": "SourceFileLoader",
        "known": "MMBertConfig",
    }


# Waiting for a module, with packages made for the purpose.


@pytest.fixture
def make_package(tmp_path, monkeypatch):
    """A function from a name and files to a package that can be imported; it is forgotten after the test."""
    import sys

    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))

    def make(name, **files):
        (tmp_path / name).mkdir()
        for file, text in {"__init__": "", **files}.items():
            (tmp_path / name / f"{file}.py").write_text(text)

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("made_"):
            del sys.modules[name]


def test_a_step_runs_once_right_after_the_first_import(make_package):
    from importlib import import_module

    from mmbert_hf.registration import _after_import

    make_package("made_plain", part="VALUE = 1", other="")
    seen = []
    for _ in range(2):  # registered twice before the import
        _after_import("made_plain.part", lambda: seen.append(sys.modules["made_plain.part"].VALUE))
    import_module("made_plain.other")
    assert seen == []
    import_module("made_plain.part")
    import_module("made_plain.part")
    assert seen == [1]
    _after_import("made_plain.part", lambda: seen.append(2))  # imported already: at once
    assert seen == [1, 2]


def test_a_step_waits_for_a_half_imported_module(make_package):
    from importlib import import_module

    code = """
from mmbert_hf.registration import _after_import
seen = []
_after_import("made_half", lambda: seen.append(LAST))
import made_half.early
early = list(seen)
LAST = 1
"""
    make_package("made_half", __init__=code, early="", later="VALUE = 1", last="")
    module = import_module("made_half")
    assert module.early == [] == module.seen
    import_module("made_half.later")
    import_module("made_half.last")
    assert module.seen == [1]


def test_a_failed_import_can_be_repeated(make_package, monkeypatch):
    from importlib import import_module

    from mmbert_hf.registration import _after_import

    make_package("made_broken", __init__="import os\nif 'MADE_BROKEN' in os.environ: raise ValueError('broken')")
    seen = []
    _after_import("made_broken", lambda: seen.append(1))
    monkeypatch.setenv("MADE_BROKEN", "1")
    with pytest.raises(ValueError, match="broken"):
        import_module("made_broken")
    assert seen == []
    monkeypatch.delenv("MADE_BROKEN")
    import_module("made_broken")
    assert seen == [1]


@pytest.fixture
def saved(tmp_path, tiny_model, tokenizer) -> Path:
    tiny_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_every_auto_class_gives_the_mmbert_class(saved):
    import transformers

    from mmbert_hf.registration import AUTO_CLASSES

    for auto_class, expected in AUTO_CLASSES.items():
        model = getattr(transformers, auto_class).from_pretrained(saved)
        assert type(model).__name__ == expected
        assert type(model).__module__.startswith("mmbert_hf.")
    assert type(transformers.AutoTokenizer.from_pretrained(saved)).__name__ == "MMBertTokenizer"


def test_registering_again_changes_nothing(saved):
    import sys

    from transformers import AutoModel

    import mmbert_hf

    finders = list(sys.meta_path)
    mmbert_hf.register()
    mmbert_hf.register()
    assert sys.meta_path == finders
    assert type(AutoModel.from_pretrained(saved)) is mmbert_hf.MMBertModel


def test_mappings_can_be_listed_and_pickled():
    import pickle

    from transformers import MODEL_MAPPING

    import mmbert_hf

    again = pickle.loads(pickle.dumps(MODEL_MAPPING))
    assert list(again[mmbert_hf.MMBertConfig]) == [mmbert_hf.MMBertModel]


def test_modernbert_checkpoints_are_ours_only_when_asked(tmp_path, tiny_model, tokenizer):
    from mmbert_hf import export_modernbert

    export_modernbert(tiny_model, tmp_path / "export", tokenizer=tokenizer)
    loaded = run_python(f"""
import json, mmbert_hf
from transformers import AutoModel, AutoModelForMaskedLM
folder = {str(tmp_path / "export")!r}
before = type(AutoModel.from_pretrained(folder)).__name__
mmbert_hf.register(modernbert=True)
models = [cls.from_pretrained(folder) for cls in (AutoModel, AutoModelForMaskedLM)]
ours = [isinstance(models[0], mmbert_hf.MMBertModel), isinstance(models[1], mmbert_hf.MMBertForMaskedLM)]
models[1].save_pretrained(folder + "/again")
saved = json.load(open(folder + "/again/config.json"))
print(json.dumps({{"before": before, "ours": ours, "saved": [saved["model_type"], saved["architectures"]]}}))
""")
    assert loaded["before"] == "ModernBertModel"
    assert loaded["ours"] == [True, True]
    assert loaded["saved"] == ["modernbert", ["ModernBertForMaskedLM"]]


def test_unknown_public_name_is_an_attribute_error():
    import mmbert_hf

    with pytest.raises(AttributeError, match="no attribute 'MMBertForEverything'; it has"):
        _ = mmbert_hf.MMBertForEverything
    assert set(mmbert_hf.__all__) <= set(dir(mmbert_hf))
    for name in mmbert_hf.__all__:
        assert getattr(mmbert_hf, name) is not None
