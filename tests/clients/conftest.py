"""Tiny models on disk, as other libraries load them, and texts of very different lengths."""

import pytest

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "local_attention": 16,
    "initializer_range": 0.08,
}
LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}


@pytest.fixture(scope="session")
def texts(sentences) -> list[str]:
    """From one word to several windows of a local layer."""
    english, danish, russian = sentences["eng"], sentences["dan"], sentences["rus"]
    return [english[0], "Free", " ".join(russian + danish), sentences["tir"][0], danish[1], "生れながらにして"]


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """A function from a class name, and options, to a model in eval mode with fixed weights."""

    def make(class_name: str = "MMBertForMaskedLM", **options):
        import torch

        import mmbert_hf

        torch.manual_seed(0)
        config = mmbert_hf.MMBertConfig(**{**SIZES, "vocab_size": len(tokenizer), **options})
        return getattr(mmbert_hf, class_name)(config).eval()

    return make


@pytest.fixture(scope="session")
def saved(make_model, tokenizer, tmp_path_factory):
    """A function from a class name, and options, to a folder with that model and the tokenizer."""
    folders: dict[tuple, str] = {}

    def save(class_name: str = "MMBertForMaskedLM", **options) -> str:
        key = (class_name, *sorted(options.items()))
        if key not in folders:
            folder = tmp_path_factory.mktemp(class_name)
            model = make_model(class_name, **options)
            if model.config.num_labels == len(LABELS):
                model.config.id2label, model.config.label2id = LABELS, {name: key for key, name in LABELS.items()}
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            folders[key] = str(folder)
        return folders[key]

    return save


@pytest.fixture(scope="session")
def batch(tokenizer, texts):
    """The texts as one padded batch."""
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))
