"""Render model cards with huggingface_hub's `ModelCard` from the templates beside this file.

Design decisions:

- `library_name` is transformers, not this package: the Hub shows its loading snippet and widget for that. This package
  is named in the tags.
- A card says what was measured and how, and says of everything else that it was not measured. No number is invented.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

TAGS = ("mmbert", "mmbert-hf", "modernbert", "multilingual")


def encoder_card(
    repo_id: str,
    facts: Mapping[str, Any],
    *,
    languages: Sequence[str] = (),
    license: str | None = "apache-2.0",
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> ModelCard:
    """Return the card of a masked language model.

    Args:
        repo_id: Where it is published, ``namespace/name``.
        facts: What is known of the model; every key may be missing: ``corpus``, ``phases``, ``heldout_mean``,
            ``heldout_languages``, ``bitext``, ``parameters``, ``seed``, ``versions``, as in the demo's metrics.json and in
            `mmbert_hf.trainers.cards.encoder_facts`.
        languages: Hub codes (ISO 639-1 where there is one, else ISO 639-3).
        license: Licence identifier of the Hub; None leaves it open.
        base_model: The model this one continues from.
        datasets: Data sets on the Hub that it was trained on.
        tags: More tags.

    Returns:
        A card; ``card.save(path)`` or ``card.push_to_hub(repo_id)``.

    Example:
        >>> card = encoder_card("me/tiny", {"parameters": 1_000_000}, languages=["fo", "ti"])
        >>> card.data.library_name, card.data.language
        ('transformers', ['fo', 'ti'])
        >>> "not measured" in card.text
        True
    """
    results = _eval_results(facts)
    data = ModelCardData(
        language=list(languages) or None,
        license=license,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=list(dict.fromkeys((*(tag for tag in TAGS if tag != "multilingual" or len(languages) != 1), *tags))),
        base_model=base_model,
        datasets=list(datasets) or None,
        # model-index needs a name as soon as there are results
        **({"model_name": repo_id.rpartition("/")[2], "eval_results": results} if results else {}),
    )
    with as_file(files("mmbert_hf.model_cards") / "templates" / "encoder.md") as template:
        card = ModelCard.from_template(
            data,
            template_path=str(template),
            repo_id=repo_id,
            facts=dict(facts),
            licence=license,
            is_multilingual=len(languages) != 1,
        )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    return card


def _eval_results(facts: Mapping[str, Any]) -> list[EvalResult]:
    """Return the metrics of ``model-index``: our own numbers, each with its data set named."""
    results = []
    corpus = dict(facts.get("corpus", {}))
    dataset = {
        "dataset_name": corpus.get("name", "held-out text"),
        "dataset_type": "udhr" if "Declaration" in str(corpus.get("name")) else "custom",
    }
    for tier, mean in dict(facts.get("heldout_mean", {})).items():
        results.append(
            EvalResult(
                task_type="fill-mask",
                metric_type="loss",
                metric_name=f"held-out masked loss, mean over the {tier} languages (nats per masked token)",
                metric_value=round(mean["loss_after_decay"], 4),
                **dataset,
            )
        )
    if "bitext" in facts:
        results.append(
            EvalResult(
                task_type="sentence-similarity",
                metric_type="accuracy",
                metric_name="bitext retrieval accuracy, mean over language pairs",
                metric_value=round(facts["bitext"]["accuracy"], 4),
                **dataset,
            )
        )
    return results
