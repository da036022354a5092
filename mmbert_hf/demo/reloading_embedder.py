"""Load a published embedder from the Hub in a process of its own. Run by its path, so that nothing else is imported.

Reads one JSON request from standard input: repo_id, texts, embeddings_file. Saves the embeddings there (float32
[texts, dimensions], NumPy) and writes one JSON line: the classes that were loaded, and whether mmbert_hf was imported.
"""

import json
import sys


def main() -> None:
    """Answer the request."""
    request = json.load(sys.stdin)
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(request["repo_id"], device="cpu")
    embeddings = model.encode(request["texts"], batch_size=32, show_progress_bar=False)
    np.save(request["embeddings_file"], embeddings.astype(np.float32))
    inside = model[0].auto_model
    answer = {
        "model_class": f"{type(model).__name__} around {type(inside).__module__}.{type(inside).__name__}",
        "modules": [f"{type(module).__module__}.{type(module).__name__}" for module in model],
        "package_imported": "mmbert_hf" in sys.modules,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
