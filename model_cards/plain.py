"""Cards of policies, adapters, embedders and other models that are published as they are.

Design decisions:

- ``library_name`` is what loads the model: transformers, peft or sentence-transformers. This package is named in the tags.
- A licence is the parent's or given, never guessed. What is not known is said to be not known.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData

__all__ = ["plain_card"]

PACKAGE = "mmbert-hf"
LIBRARIES = {"adapter": "peft", "embedder": "sentence-transformers"}
KINDS = {"policy": "text-generation", "adapter": "text-generation", "embedder": "sentence-similarity"}
PIPELINES = {
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "feature-extraction",
}


def plain_card(
    repo_id: str,
    facts: Mapping[str, Any],
    *,
    kind: Literal["policy", "adapter", "embedder", "model"] = "policy",
    architecture: str | None = None,
    base_model: str | None = None,
    license: str | Sequence[str] | None = None,
    languages: Sequence[str] = (),
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    prompt: str = "Once",
) -> ModelCard:
    """Return the card of a causal language model, of an adapter, of an embedder, or of any model of transformers.

    Args:
        repo_id: What loads it: ``owner/name``.
        facts: What is known; every key may be missing. ``training``: name -> value, with ``method`` first; ``tracker``:
            the data set of its values; ``results``: rows of a table, the header first; ``results_note``, ``limits``:
            sentences; ``versions``: package -> version.
        kind: What it is.
        architecture: The class of transformers that loads a "model".
        base_model: The parent's name on the Hub.
        license: An identifier of the Hub, or several.
        languages: Hub codes.
        datasets: Data sets on the Hub that it was trained on.
        tags: More tags.
        prompt: Text of the example.

    Returns:
        A card; ``card.save(path)``.

    Example:
        >>> card = plain_card("me/adder", {"training": {"method": "SPO", "steps": 300}}, base_model="you/base")
        >>> card.data.pipeline_tag, card.data.base_model_relation, "Not measured." in card.text
        ('text-generation', 'finetune', True)
    """
    by_class = next((tag for suffix, tag in PIPELINES.items() if (architecture or "").endswith(suffix)), None)
    data = ModelCardData(
        language=list(languages) or None,
        license=license,
        library_name=LIBRARIES.get(kind, "transformers"),
        pipeline_tag=KINDS.get(kind, by_class),
        tags=list(dict.fromkeys((PACKAGE, *tags))),
        base_model=base_model,
        base_model_relation=("adapter" if kind == "adapter" else "finetune") if base_model else None,
        datasets=list(datasets) or None,
    )
    with as_file(files("mmbert_hf.model_cards") / "templates" / "plain.md") as template:
        return ModelCard.from_template(
            data,
            template_path=str(template),
            repo_id=repo_id,
            facts=dict(facts),
            kind=kind,
            prompt=prompt,
            architecture=architecture,
            base_model=base_model,
            licence=license,
        )
