"""Load a published policy and the table of its tracker from the Hub in a process of its own. Run by its path.

Importing mmbert_hf is an error here. Reads one JSON request from standard input: repo_id, tracker_repo_id, prompts,
arrays_file. Saves there (.npz) the policy's logits of all tokens of the prompts (float32 [tokens, vocabulary]) and the
tracker's columns, and writes one JSON line: the classes that were loaded, and the names of the columns.
"""

import json
import sys


def main() -> None:
    """Answer the request."""
    sys.modules["mmbert_hf"] = None  # type: ignore[assignment]
    request = json.load(sys.stdin)
    import numpy as np
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["repo_id"])
    model = AutoModelForCausalLM.from_pretrained(request["repo_id"]).eval()
    batch = tokenizer(request["prompts"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[batch["attention_mask"].bool()].float().numpy()
    table = load_dataset(request["tracker_repo_id"], split="train")
    columns = {name: np.asarray(table[name][:]) for name in table.column_names}
    np.savez(request["arrays_file"], logits=logits, **{f"column_{name}": column for name, column in columns.items()})
    answer = {
        "model_class": f"{type(model).__module__}.{type(model).__name__}",
        "tokenizer_class": type(tokenizer).__name__,
        "columns": list(columns),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
