"""MMBertConfig: released values, RoPE bases, refusals, and reading ModernBERT files."""

import doctest
import json
import logging

import pytest
import torch
from transformers import AutoConfig, ModernBertConfig

from mmbert_hf import configuration, modeling
from mmbert_hf.configuration import MMBertConfig, check_architecture, check_vocabulary, set_rope_theta

# What the files of jhu-clsp/mmBERT-small state, in transformers 4's spelling.
PUBLISHED = {
    "architectures": ["ModernBertForMaskedLM"],
    "model_type": "modernbert",
    "vocab_size": 256000,
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 6,
    "max_position_embeddings": 8192,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000,
    "local_rope_theta": 160000,
    "local_attention": 128,
    "classifier_pooling": "mean",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 1,
    "mask_token_id": 4,
    "torch_dtype": "float32",
}


@pytest.fixture
def transformers_log():
    """Messages that transformers logs during the test."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield messages
    logging.getLogger("transformers").removeHandler(handler)


def parameters_on_meta(config):
    with torch.device("meta"):
        model = modeling.MMBertModel(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, total - model.get_input_embeddings().weight.numel()


@pytest.mark.parametrize(("preset", "total", "non_embedding"), [("small", 140e6, 42e6), ("base", 307e6, 110e6)])
def test_presets_have_the_published_number_of_parameters(preset, total, non_embedding):
    got_total, got_non_embedding = parameters_on_meta(getattr(MMBertConfig, preset)())
    assert got_total == pytest.approx(total, rel=0.005)
    assert got_non_embedding == pytest.approx(non_embedding, rel=0.005)


def test_defaults_are_the_released_base_model():
    assert MMBertConfig().to_dict() == MMBertConfig.base().to_dict()
    config = MMBertConfig()
    assert config.layer_types.count("full_attention") == 8
    assert config.layer_types.count("sliding_attention") == 14
    assert (config.global_rope_theta, config.local_rope_theta) == (160_000, 160_000)
    assert config.sliding_window == 64
    ids = (config.pad_token_id, config.eos_token_id, config.bos_token_id, config.mask_token_id)
    assert ids == (0, 1, 2, 4)
    assert (config.cls_token_id, config.sep_token_id) == (2, 1)
    assert config.tie_word_embeddings
    assert config.attention_dropout == 0.0


def test_presets_take_overrides():
    config = MMBertConfig.small(num_hidden_layers=3, num_labels=7)
    assert (config.hidden_size, config.num_hidden_layers, config.num_labels) == (384, 3, 7)
    assert len(config.layer_types) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 12}, "hidden_size 100 is not a multiple"),
        ({"hidden_size": 36, "num_attention_heads": 12}, "head size must be even"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"local_attention": 0}, "local_attention is 0"),
        ({"pad_token_id": 300_000}, "pad_token_id 300000 is outside the vocabulary"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types names 3 layers and num_hidden_layers is 22"),
        ({"num_hidden_layers": 1, "layer_types": ["linear_attention"]}, r"layer_types holds \['linear_attention'\]"),
        ({"global_rope_theta": -1.0}, "global_rope_theta is -1.0"),
        ({"local_rope_theta": float("nan")}, "local_rope_theta is nan"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 0}}}, "rope_theta of full_attention is 0"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}},
            "rope_type 'dynamic' of full_attention",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}, "local_rope_theta": 2e4},
            "sliding_attention is given twice: 10000.0 in rope_parameters and 20000.0 by name",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_refuses_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        MMBertConfig(**options)


def test_native_configurations_are_checked_too():
    config = ModernBertConfig(num_hidden_layers=2)
    check_architecture(config)
    config.hidden_size = 770
    with pytest.raises(ValueError, match="hidden_size 770"):
        modeling.MMBertModel(config)


def test_rope_theta_by_name(tmp_path):
    config = MMBertConfig(global_rope_theta=20_000, local_rope_theta=30_000)
    assert config.rope_parameters["full_attention"]["rope_theta"] == 20_000
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 30_000
    config.local_rope_theta = 40_000
    config.save_pretrained(tmp_path)
    loaded = MMBertConfig.from_pretrained(tmp_path)
    assert (loaded.global_rope_theta, loaded.local_rope_theta) == (20_000, 40_000)
    assert MMBertConfig.from_pretrained(tmp_path, local_rope_theta=5).local_rope_theta == 5
    with pytest.raises(ValueError, match="local_rope_theta is 0"):
        config.local_rope_theta = 0


def test_with_rope_theta_is_a_copy():
    config = MMBertConfig()
    both = config.with_rope_theta(10_000)
    assert (both.global_rope_theta, both.local_rope_theta) == (10_000, 10_000)
    apart = config.with_rope_theta(10_000, 20_000)
    assert (apart.global_rope_theta, apart.local_rope_theta) == (10_000, 20_000)
    assert (config.global_rope_theta, config.local_rope_theta) == (160_000, 160_000)


def test_a_refused_theta_changes_nothing():
    config = MMBertConfig()
    with pytest.raises(ValueError, match="local_theta is -1"):
        set_rope_theta(config, 10_000, -1)
    assert config.global_rope_theta == 160_000


def test_rope_parameters_are_not_shared_with_the_caller():
    given = {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}
    first, second = MMBertConfig(rope_parameters=given), MMBertConfig(rope_parameters=given)
    first.local_rope_theta = 7.0
    assert second.local_rope_theta == 1e4
    assert given == {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}


def test_survives_saving(tmp_path):
    config = MMBertConfig.small(attention_output_dropout=0.1, mask_token_id=9, global_rope_theta=7.0, num_labels=4)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mmbert"
    assert MMBertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_reads_the_published_file_without_a_warning(tmp_path, transformers_log):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = MMBertConfig.from_pretrained(tmp_path)
    assert transformers_log == []
    assert config.model_type == "mmbert"
    assert config.cls_token_id == 1  # as published
    released = MMBertConfig.small(cls_token_id=1, dtype="float32").to_dict()
    stated = {name: value for name, value in config.to_dict().items() if name in released}
    assert stated == released | {"architectures": ["ModernBertForMaskedLM"]}


def test_a_modernbert_file_keeps_modernbert_defaults(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    for config in (
        MMBertConfig.from_pretrained(tmp_path),
        MMBertConfig.from_dict({"model_type": "modernbert"}),
        MMBertConfig.from_modernbert(AutoConfig.from_pretrained(tmp_path)),
    ):
        native = ModernBertConfig()
        for name in ("vocab_size", "pad_token_id", "classifier_pooling", "rope_parameters", "cls_token_id"):
            assert getattr(config, name) == getattr(native, name), name
        assert config.mask_token_id is None


def test_from_modernbert_keeps_the_attention_implementation():
    config = ModernBertConfig(attn_implementation="eager", id2label={0: "a", 1: "b", 2: "c"})
    converted = MMBertConfig.from_modernbert(config)
    assert converted._attn_implementation == "eager"
    assert converted.num_labels == 3


class Tokenizer:
    def __init__(self, size, mask_token_id):
        self.size, self.mask_token_id = size, mask_token_id

    def __len__(self):
        return self.size


def test_check_vocabulary_names_both_sizes_and_the_fix():
    config = MMBertConfig(vocab_size=100)
    check_vocabulary(config, Tokenizer(100, 4))
    check_vocabulary(config, Tokenizer(90, 4))
    with pytest.raises(ValueError, match=r"101 tokens and the model 100 embeddings.*resize_token_embeddings\(101\)"):
        check_vocabulary(config, Tokenizer(101, 4))
    with pytest.raises(ValueError, match=r"\(100 tokens\) has no mask token.*100 embeddings"):
        check_vocabulary(config, Tokenizer(100, None))
    with pytest.raises(ValueError, match="mask token has id 105"):
        check_vocabulary(config, Tokenizer(100, 105))


def test_check_vocabulary_takes_a_model():
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 48}
    model = modeling.MMBertModel(MMBertConfig(**sizes, vocab_size=100))
    with pytest.raises(ValueError, match="101 tokens"):
        check_vocabulary(model, Tokenizer(101, 4))


def test_docstring_examples():
    results = doctest.testmod(configuration, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
    assert results.attempted > 10
    for name in ("MMBertConfig", "check_architecture", "check_vocabulary"):
        assert ">>>" in getattr(configuration, name).__doc__
