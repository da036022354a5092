"""The fine-tuning scripts: one for XLM-R and mmBERT each, with nothing changed but the name of the model; both learn."""

import importlib.util
import json
import random
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("model", ["xlm-r", "mmbert"])
@pytest.mark.parametrize("task", TASKS)
def test_the_same_script_for_both(encoders, tmp_path, task, model, capsys):
    for name, number, seed in (("train", 256, 0), ("test", 40, 1)):
        lines = [json.dumps(row) for row in rows(task, number, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    spec = importlib.util.spec_from_file_location(task, FOLDER / f"{task}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = {
        "model": encoders / model, "train": tmp_path / "train.jsonl", "test": tmp_path / "test.jsonl", "max_length": 48,
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
