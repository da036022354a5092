"""The fine-tuning scripts: one for XLM-R and mmBERT each, with nothing changed but the name of the model; both learn."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "finetuning"
WORDS = ["free", "born", "equal", "dignity", "rights", "slavery"]
TAGS = ["ADJ", "VERB", "ADJ", "NOUN", "NOUN", "NOUN"]
TASKS = {
    "classification": ("accuracy", 0.9),
    "tagging": ("accuracy", 0.9),
    "question_answering": ("exact_match", 0.9),
    "retrieval": ("ndcg_at_10", 0.5),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning", "ignore:`is_gradient_checkpointing`")


def rows(task, number, seed):
    """Tasks that a tiny model learns in seconds: one word decides."""
    rng = random.Random(seed)
    for _ in range(number):
        words = [rng.choice(WORDS) for _ in range(4)]
        if task == "classification":
            yield {"text": " ".join(words), "label": "free" if "free" in words else "not"}
        elif task == "tagging":
            yield {"tokens": words, "tags": [TAGS[WORDS.index(word)] for word in words]}
        elif task == "question_answering":
            words = rng.sample(WORDS[2:], 3)
            words.insert(rng.randrange(4), rng.choice(WORDS[:2]))
            context, answer = " ".join(words), next(word for word in words if word in WORDS[:2])
            answers = {"text": [answer], "answer_start": [context.index(answer)]}
            yield {"question": "what", "context": context, "answers": answers}
        else:
            yield {"anchor": words[0], "positive": " ".join([words[0]] * 3 + words[1:2])}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """A tiny XLM-R with a tokenizer of its own, and a tiny mmBERT, in folders."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    from mmbert_hf import MMBertConfig, MMBertModel

    folder = tmp_path_factory.mktemp("models")
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *(f"\u2581{word}" for word in WORDS),
        *"abcdefghijklmnopqrstuvwxyz\u2581",
        "<mask>",
    ]
    backend = Tokenizer(Unigram([(piece, -float(place) / 10) for place, piece in enumerate(pieces)], unk_id=3))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
             "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder / "xlm-r")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    XLMRobertaModel(
        XLMRobertaConfig(vocab_size=len(pieces), **sizes, max_position_embeddings=70, type_vocab_size=1, pad_token_id=1)
    ).save_pretrained(folder / "xlm-r")
    MMBertModel(MMBertConfig(vocab_size=len(tokenizer), **sizes, initializer_range=0.05)).save_pretrained(
        folder / "mmbert"
    )
    tokenizer.save_pretrained(folder / "mmbert")
    return folder


@pytest.mark.parametrize("model", ["xlm-r", "mmbert"])
@pytest.mark.parametrize("task", TASKS)
def test_the_same_script_for_both(models, tmp_path, task, model, capsys):
    for name, number, seed in (("train", 256, 0), ("test", 40, 1)):
        lines = [json.dumps(row) for row in rows(task, number, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    spec = importlib.util.spec_from_file_location(task, FOLDER / f"{task}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = {
        "model": models / model, "train": tmp_path / "train.jsonl", "test": tmp_path / "test.jsonl", "max_length": 48,
        "output_dir": tmp_path / "run", "max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 3e-3,
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no",
        "dataloader_pin_memory": False, "seed": 1,
    }  # fmt: skip
    metrics = script.main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])
    name, least = TASKS[task]
    found = metrics.get(name, metrics.get(f"eval_{name}"))
    assert found >= least, metrics
    assert f"{found:.3f}" in capsys.readouterr().out
    assert list((tmp_path / "run").glob("**/*.safetensors"))
