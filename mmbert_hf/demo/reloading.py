"""Load a published encoder from the Hub in a process of its own. Run by its path, so that nothing else is imported.

Reads one JSON request from standard input: repo_id, texts, with_package, logits_file. Saves the logits of the real tokens
there (float32 [tokens, vocabulary], NumPy) and writes one JSON line: the classes that transformers gave, and whether
mmbert_hf was imported.
"""

import json
import sys


def main() -> None:
    """Answer the request."""
    request = json.load(sys.stdin)
    if request["with_package"]:
        import mmbert_hf

        mmbert_hf.register(modernbert=True)
    import numpy as np
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["repo_id"])
    model = AutoModelForMaskedLM.from_pretrained(request["repo_id"]).eval()
    batch = tokenizer(request["texts"], padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[batch["attention_mask"].bool()]  # at padding they mean nothing
        np.save(request["logits_file"], logits.float().numpy())
    ours = [base.__name__ for base in type(model).__mro__ if base.__name__.startswith("MMBertFor")]
    answer = {
        "model_class": f"{type(model).__module__}.{type(model).__name__}" + "".join(f", an {name}" for name in ours),
        "tokenizer_class": type(tokenizer).__name__,
        "package_imported": "mmbert_hf" in sys.modules,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
