"""Shared by the tests of SPO: a Llama of two layers, a tokenizer of characters, sums as prompts, and quick trainers.

The weights are drawn wide, so that log-probabilities differ and a few steps move them.
"""

import gc
import importlib.resources
import os
import string
import sys
from contextlib import contextmanager
from types import SimpleNamespace

if "pytest" not in sys.modules:  # read by a script, which is alone in its process
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """No test asks the Hub for anything."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>")
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SUMS = "sums"
TRAINER_ARGUMENTS = {
    *("eval_dataset", "processing_class", "reward_processing_classes", "callbacks", "peft_config", "tools"),
    *("rollout_func", "environment_factory"),
}


def make_tokenizer():
    """A token for each character, the special tokens of Qwen, and its template for chats and tools."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        padding_side="left",
        chat_template=importlib.resources.files("trl")
        .joinpath("chat_templates/qwen3_instruct_2507.jinja")
        .read_text(encoding="utf-8"),
    )


def make_model(seed=0, **options):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(SPECIAL) + len(CHARACTERS) + len(MARKS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "pad_token_id": SPECIAL.index("<pad>"),
        "eos_token_id": SPECIAL.index("<|im_end|>"),
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **options}))


def make_sums(number=10, *, first=0, conversational=False):
    """`number` prompts such as "1+2=", or as messages; with their answers and an id."""
    import datasets

    pairs = [(place // 10, place % 10) for place in range(first, first + number)]
    texts = [f"{a}+{b}=" for a, b in pairs]
    prompts = [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    return datasets.Dataset.from_dict(
        {"prompt": prompts, "answer": [str(a + b) for a, b in pairs], "name": [f"sum {a} {b}" for a, b in pairs]}
    )


def make_pictures(number=4):
    """A data set of questions about pictures, and a model with its processor that sees: CLIP and Llama, as LLaVA has them."""
    import datasets
    import numpy as np
    from PIL import Image
    from tokenizers import AddedToken
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=8, patch_size=4, projection_dim=16),
        text_config=make_model(vocab_size=len(tokenizer)).config,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    pixels = np.random.default_rng(0).integers(0, 255, (number, 8, 8, 3)).astype(np.uint8)
    prompts = [[{"role": "user", "content": f"what is {place}?"}] for place in range(number)]
    dataset = datasets.Dataset.from_dict({"prompt": prompts, "image": [Image.fromarray(each) for each in pixels]})
    return LlavaForConditionalGeneration(config), processor, dataset


def text_of(completion):
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def odd(completions, **_):
    """1 for about half of all responses: those whose codes have an odd sum."""
    return [float(sum(map(ord, text_of(completion))) % 2) for completion in completions]


class Recorder:
    """A reward function that remembers, call by call, what it was asked and what it gave."""

    def __init__(self, reward=odd):
        self.reward, self.calls, self.__name__ = reward, [], "recorder"

    def __call__(self, prompts, completions, completion_ids, **columns):
        rewards = self.reward(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        self.calls.append(
            SimpleNamespace(prompts=prompts, completions=completions, ids=completion_ids, rewards=rewards, **columns)
        )
        return rewards


def make_trainer(folder, reward=odd, *, model=None, dataset=SUMS, trainer_class=None, **options):
    """An SPOTrainer of two steps with four responses of three tokens each; options are the trainer's or the config's."""
    from mmbert_hf.trainers.spo import SPOConfig, SPOTrainer

    trainer_options = {name: options.pop(name) for name in TRAINER_ARGUMENTS & options.keys()}
    values = {
        "per_device_train_batch_size": 4,
        "max_completion_length": 3,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "divergence": "drift",  # which measures; "constant" has nothing that could go wrong
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return (trainer_class or SPOTrainer)(
        make_model() if model is None else model,
        reward,
        SPOConfig(str(folder), **{**values, **options}),
        dataset if dataset is not SUMS else make_sums(),
        **{"processing_class": make_tokenizer(), **trainer_options},
    )


@contextmanager
def imports_out_of_the_way():
    """Trainer collects garbage whenever it starts: a second each time, if it has to look through all of torch."""
    import mmbert_hf.trainers.spo.trainer

    assert mmbert_hf.trainers.spo.trainer
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def frozen_imports():
    with imports_out_of_the_way():
        yield


@pytest.fixture(scope="session")
def tiny(frozen_imports):
    """What makes things: models, tokenizers, data sets, reward functions."""
    return SimpleNamespace(
        model=make_model,
        tokenizer=make_tokenizer,
        sums=make_sums,
        pictures=make_pictures,
        odd=odd,
        Recorder=Recorder,
        text_of=text_of,
    )


@pytest.fixture
def spo(tmp_path, frozen_imports):
    """A function from a reward function and options to an SPOTrainer in a folder of its own."""

    def make(reward=odd, **options):
        return make_trainer(tmp_path / options.pop("folder", "run"), reward, **options)

    return make
