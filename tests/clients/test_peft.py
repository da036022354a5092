"""peft without a word about target modules, and adapters that train, save, load and merge."""

import json
import subprocess
import sys

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import constants
from transformers.integrations.peft import MIN_PEFT_VERSION

from mmbert_hf import MMBertConfig

# peft 0.21 reads a property that transformers 5.23 has renamed.
UPSTREAM = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
# peft 0.19 looks for the configuration of a base model that was made in memory.
pytestmark = pytest.mark.filterwarnings(UPSTREAM, "ignore:Could not find a config file in  -:UserWarning")

HEADS = {
    "MMBertModel": ("FEATURE_EXTRACTION", None),
    "MMBertForMaskedLM": (None, None),
    "MMBertForSequenceClassification": ("SEQ_CLS", "classifier"),
    "MMBertForTokenClassification": ("TOKEN_CLS", "classifier"),
}
TASKS = pytest.mark.parametrize("class_name", HEADS)
# Fields that these methods need at the size of the tiny model.
METHODS = {
    "LoraConfig": {},
    "AdaLoraConfig": {"total_step": 10},
    "IA3Config": {},
    "LoHaConfig": {},
    "LoKrConfig": {},
    "OFTConfig": {},
    "HRAConfig": {},
    "VeraConfig": {},
    "FourierFTConfig": {},
    "RandLoraConfig": {},
    "VBLoRAConfig": {"vector_length": 16, "num_vectors": 8},
    "C3AConfig": {"block_size": 16},
    "RoadConfig": {"group_size": 16},
    "WaveFTConfig": {"n_frequency": 16},
}


def adapted(make_model, class_name, **options):
    """A model with LoRA in every default place, its B matrices not zero, so that the adapter shows."""
    model = get_peft_model(
        make_model(class_name), LoraConfig(task_type=HEADS[class_name][0], r=4, **options), adapter_name="default"
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def outputs(model, batch):
    """Whatever the model says about the real tokens or the rows."""
    with torch.no_grad():
        said = model(**batch)
    values = said.logits if "logits" in said else said.last_hidden_state
    return values[batch["attention_mask"].bool()] if values.ndim == 3 else values


def run_python(code):
    command = [sys.executable, "-W", "error", "-W", UPSTREAM, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


USE = """
model = mmbert_hf.MMBertModel(mmbert_hf.MMBertConfig(
    vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1))
model = peft.get_peft_model(model, peft.LoraConfig(task_type="FEATURE_EXTRACTION"))
import json
print(json.dumps([sorted(model.targeted_module_names), sorted(model.peft_config["default"].target_modules)]))
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import peft, mmbert_hf",
        "import mmbert_hf, importlib.util; importlib.util.find_spec('peft.utils.constants'); import peft",
    ],
)
def test_targets_are_found_in_either_order_of_imports(imports):
    assert run_python(imports + USE) == [["layers.0.attn.Wqkv", "layers.1.attn.Wqkv"], ["Wqkv"]]


def test_every_mapping_with_fused_encoders_has_an_entry_and_only_those():
    mappings = {name: value for name, value in vars(constants).items() if name.endswith("_MODULES_MAPPING")}
    assert len(mappings) > 20
    for name, mapping in mappings.items():
        assert ("mmbert" in mapping) == ("bert" in mapping and "bloom" in mapping), name
        assert ("modernbert" in mapping) == ("mmbert" in mapping), name
    assert "mmbert" not in mappings.get("TRANSFORMERS_MODELS_TO_BEFT_TARGET_MODULES_MAPPING", {})


def test_what_peft_says_itself_is_kept():
    from mmbert_hf import register

    mapping = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    before = mapping["modernbert"]
    try:
        mapping["modernbert"] = ["Wi"]
        register()
        assert mapping["modernbert"] == ["Wi"]
    finally:
        mapping["modernbert"] = before


@pytest.mark.parametrize("method", METHODS)
def test_methods_find_their_modules_and_train_them(make_model, batch, method):
    model = get_peft_model(make_model("MMBertModel"), getattr(peft, method)(**METHODS[method]))
    expected = {"Wqkv", "mlp.Wo"} if method == "IA3Config" else {"Wqkv"}
    assert model.peft_config["default"].target_modules == expected
    assert len(model.targeted_module_names) == 3 * len(expected)
    model(**batch).last_hidden_state.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@TASKS
def test_a_step_changes_the_adapter_and_the_new_head_alone(make_model, batch, class_name):
    model = adapted(make_model, class_name).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = {
        "MMBertForMaskedLM": batch["input_ids"],
        "MMBertForSequenceClassification": torch.arange(len(batch["input_ids"])) % 2,
        "MMBertForTokenClassification": batch["input_ids"] % 2,
    }.get(class_name)
    if labels is None:
        loss = model(**batch).last_hidden_state[batch["attention_mask"].bool()].square().mean()
    else:
        loss = model(**batch, labels=labels).loss
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    allowed = {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert changed == allowed
    head = HEADS[class_name][1]
    owners = {name.rsplit(".", 1)[0] for name in changed if "lora_" not in name}
    assert owners == ({f"base_model.model.{head}.modules_to_save.default"} if head else set())


@TASKS
def test_merged_equals_adapted_and_not_the_base(make_model, batch, class_name):
    model = adapted(make_model, class_name)
    with_adapter = outputs(model, batch)
    with model.disable_adapter():
        base = outputs(model, batch)
    assert (with_adapter - base).abs().max() > 1e-2
    merged = model.merge_and_unload()
    assert type(merged).__name__ == class_name
    torch.testing.assert_close(outputs(merged, batch), with_adapter, rtol=0, atol=1e-5)


@TASKS
def test_saved_adapters_load_onto_a_fresh_base(make_model, batch, class_name, tmp_path):
    model = adapted(make_model, class_name)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["Wqkv"]
    again = PeftModel.from_pretrained(make_model(class_name), tmp_path).eval()
    assert torch.equal(outputs(again, batch), outputs(model, batch))


@pytest.mark.parametrize("targets", ["all-linear", ["Wqkv", "Wo", "Wi"], ["decoder"]])
def test_no_linear_layer_is_passed_by(make_model, batch, targets):
    """Code that reads the weight of a layer instead of calling it would leave the adapter out."""
    model = adapted(make_model, "MMBertForMaskedLM", target_modules=targets)
    names = {"all-linear": 3 * 4 + 1, "decoder": 1}.get(targets if isinstance(targets, str) else targets[0], 3 * 4)
    assert len(model.targeted_module_names) == names
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        logits = model(**batch).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = model.train()(**batch, labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == ("lora_" in name), name


def test_adapters_work_with_gradient_checkpointing(make_model, batch):
    plain, checkpointed = (adapted(make_model, "MMBertForMaskedLM").train() for _ in range(2))
    if hasattr(
        checkpointed, "activation_checkpointing_enable"
    ):  # its name in newer transformers, where the other warns
        checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    else:
        checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, checkpointed):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-6, msg=name)


def test_adapters_load_onto_a_model_exported_as_modernbert(make_model, batch, tmp_path):
    from transformers import AutoModelForMaskedLM

    from mmbert_hf import export_modernbert

    model = adapted(make_model, "MMBertForMaskedLM")
    model.save_pretrained(tmp_path / "adapter")
    folder = export_modernbert(make_model("MMBertForMaskedLM"), tmp_path / "native")
    native = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(folder), tmp_path / "adapter").eval()
    assert native.config.model_type == "modernbert" != MMBertConfig.model_type
    torch.testing.assert_close(outputs(native, batch), outputs(model, batch), rtol=0, atol=1e-5)


@pytest.mark.skipif(Version(peft.__version__) < Version(MIN_PEFT_VERSION), reason="transformers refuses this peft")
def test_transformers_own_adapter_interface(make_model, batch):
    model = make_model("MMBertModel")
    base = outputs(model, batch)
    model.add_adapter(LoraConfig(init_lora_weights=False), adapter_name="mine")
    assert {name.rsplit(".lora_", 1)[0][-9:] for name, _ in model.named_parameters() if "lora_" in name} == {
        "attn.Wqkv"
    }
    assert (outputs(model, batch) - base).abs().max() > 1e-3
    model.disable_adapters()
    assert torch.equal(outputs(model, batch), base)
