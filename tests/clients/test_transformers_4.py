"""What is exported gives the same numbers in transformers 4, which spells RoPE bases and layer patterns otherwise.

transformers 4 lies in a folder that `make test` fills; where it is missing these tests are listed as not run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmbert_hf
from mmbert_hf import export_modernbert

FOLDER = Path(__file__).parents[2] / ".transformers-4"

pytestmark = pytest.mark.skipif(
    not (FOLDER / ".installed").is_file() and "MMBERT_REQUIRE_TRANSFORMERS_4" not in os.environ,
    reason="no .transformers-4, which `make test` fills; with MMBERT_REQUIRE_TRANSFORMERS_4 set this fails instead",
)

CLIENT = """
import json, sys, torch, transformers
sys.modules["mmbert_hf"] = None  # an import of it fails
assert transformers.__version__.startswith("4."), transformers.__version__
said = {}
for name in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{name}"
    model = getattr(transformers, name).from_pretrained(folder).eval()
    with torch.no_grad():
        torch.save(model(**torch.load(f"{sys.argv[1]}/inputs.pt"))[0], f"{folder}/said.pt")
    said[name] = type(model).__name__
tokenizer = transformers.AutoTokenizer.from_pretrained(f"{sys.argv[1]}/AutoModel")
print(json.dumps([said, tokenizer(sys.stdin.read())["input_ids"]]))
"""
HEADS = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}


def test_every_head_gives_the_same_numbers(tokenizer, tmp_path):
    text = "Øll menniskju eru fødd fræls — ሰብ"
    ids = torch.randint(5, 400, (2, 70), generator=torch.Generator().manual_seed(1))
    ids[1, 50:] = tokenizer.pad_token_id
    inputs = {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()}
    torch.save(inputs, tmp_path / "inputs.pt")
    expected = {}
    for auto_class, head in HEADS.items():
        torch.manual_seed(0)
        config = mmbert_hf.MMBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            local_attention=16,
            global_rope_theta=3_000.0,  # not transformers 4's default, nor the local one's
            local_rope_theta=500.0,
            initializer_range=0.2,
            num_labels=3,
        )
        model = getattr(mmbert_hf, f"MMBert{head}")(config).eval()
        export_modernbert(model, tmp_path / auto_class, tokenizer=tokenizer)
        with torch.no_grad():
            expected[auto_class] = model(**inputs)[0]
    said, tokens = run(tmp_path, *HEADS, text=text)
    assert said == {auto_class: f"ModernBert{head}" for auto_class, head in HEADS.items()}
    assert tokens == tokenizer(text)["input_ids"]
    real = inputs["attention_mask"].bool()
    for auto_class, ours in expected.items():
        theirs = torch.load(tmp_path / auto_class / "said.pt")
        chosen = slice(None) if ours.ndim == 2 else real
        torch.testing.assert_close(theirs[chosen], ours[chosen], rtol=1e-4, atol=1e-4)


def test_the_comparison_sees_a_base_that_is_spelled_for_transformers_5_alone(tokenizer, tmp_path):
    ids = torch.arange(5, 75)[None]
    torch.save({"input_ids": ids}, tmp_path / "inputs.pt")
    config = mmbert_hf.MMBertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        local_attention=16, local_rope_theta=500.0, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = mmbert_hf.MMBertModel(config).eval()
    export_modernbert(model, tmp_path / "AutoModel", tokenizer=tokenizer)
    path = tmp_path / "AutoModel" / "config.json"
    values = json.loads(path.read_text())
    del values["local_rope_theta"]
    path.write_text(json.dumps(values))
    run(tmp_path, "AutoModel", text="")
    with torch.no_grad():
        ours = model(input_ids=ids)[0]
    assert (torch.load(tmp_path / "AutoModel" / "said.pt") - ours).abs().max() > 1e-2


def run(folder, *names, text):
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CLIENT, str(folder), *names]
    done = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
