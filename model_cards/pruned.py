"""The card of a pruned embedder: what was done, what was measured before and after, and how to use it.

Design decisions:

- ``library_name`` is sentence-transformers, which loads the model and gives the Hub its snippet. This package is named
  in the tags.
- The Hub knows the relations adapter, merge, quantized and finetune, and guesses where none is given: an ONNX file beside
  the weights makes it guess quantized. A pruned model is none of the four; finetune, a model with changed weights of its
  own, is nearest.
- The licence is the parent's. It is copied from the parent's card or given; where it is unknown the card says so.
- What was not measured is called "not measured". The card compares with the dense model and, where there is one, with the
  dense model after the same training, and claims nothing more.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from mmbert_hf.model_cards.cards import TAGS as ENCODER_TAGS

if TYPE_CHECKING:
    from mmbert_hf.pruning.report import PruningReport

__all__ = ["comparison_rows", "inherited_metadata", "pruned_embedder_card"]

TAGS = ("sentence-transformers", "sentence-similarity", "feature-extraction", "pruning", "gaprune", ENCODER_TAGS[1])
RELATION = "finetune"
NOT_MEASURED = "not measured"
METHODS = {
    "dai": "Domain Alignment Importance, the formula of arXiv 2509.10844",
    "dai-normalized": "Domain Alignment Importance with Fisher information and magnitude each divided by their mean",
    "fisher-domain": "Fisher information of the domain triplets",
    "fisher-general": "Fisher information of the general triplets",
    "obd": "Fisher information of both sets times the squared weight (Optimal Brain Damage)",
    "magnitude": "absolute value of the weight",
    "wanda": "absolute value of the weight times the norm of its input (Wanda)",
    "random": "chance",
}
GRANULARITIES = {
    "vocabulary": "tokens that the texts given do not use are removed",
    "layer": "whole transformer blocks are removed",
    "ffn": "neurons of the feed-forwards are removed, the same number in every block",
    "2:4": "two of every four neighbouring weights are zero",
    "weight": "single weights are zero",
}


def pruned_embedder_card(
    repo_id: str,
    report: "PruningReport",
    *,
    base_model: str | None = None,
    license: str | Sequence[str] | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    languages: Sequence[str] = (),
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> ModelCard:
    """Return the card of a pruned embedder.

    Args:
        repo_id: What ``SentenceTransformer(...)`` is to load: ``namespace/name``, or a folder.
        report: What was done and measured.
        base_model: The parent's name on the Hub.
        license: The parent's licence, an identifier of the Hub; never guessed.
        license_name: Name of a licence whose identifier is ``other``.
        license_link: Where that one is written.
        languages: Hub codes.
        datasets: Data sets on the Hub that it was pruned or trained with.
        tags: More tags.

    Returns:
        A card; ``card.save(path)``.

    Example:
        >>> from mmbert_hf.pruning import GAPruneConfig, PruningReport
        >>> card = pruned_embedder_card("me/small", PruningReport(GAPruneConfig().to_dict()), base_model="you/large")
        >>> card.data.library_name, card.data.base_model_relation, "licence is not known" in card.text
        ('sentence-transformers', 'finetune', True)
    """
    results = _eval_results(report.measured)
    data = ModelCardData(
        language=list(languages) or None,
        license=license,
        license_name=license_name,
        license_link=license_link,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=list(dict.fromkeys((*TAGS, *tags))),
        base_model=base_model,
        base_model_relation=RELATION if base_model else None,
        datasets=list(datasets) or None,
        # model-index needs a name as soon as there are results
        **({"model_name": repo_id.rpartition("/")[2], "eval_results": results} if results else {}),
    )
    with as_file(files("mmbert_hf.model_cards") / "templates" / "pruned_embedder.md") as template:
        return ModelCard.from_template(
            data,
            template_path=str(template),
            repo_id=repo_id,
            parent=base_model,
            licence=license_name or license,
            report=report,
            **_facts(report),
        )


def inherited_metadata(card_text: str) -> dict[str, Any]:
    """What a pruned model takes from the metadata of its parent's card.

    Args:
        card_text: The parent's README.md, with or without metadata.

    Returns:
        Those of ``license``, ``license_name``, ``license_link`` and ``base_model`` that there are. The last is what the
        parent itself was made from: the nearest ancestor on the Hub of a parent that is not there.

    Example:
        >>> inherited_metadata("---\\nlicense: mit\\nbase_model: you/large\\n---\\n# Mine")
        {'license': 'mit', 'base_model': 'you/large'}
        >>> inherited_metadata("no metadata")
        {}
    """
    if not card_text.lstrip().startswith("---"):
        return {}
    metadata = ModelCard(card_text, ignore_metadata_errors=True).data.to_dict()
    found = {name: metadata[name] for name in ("license", "license_name", "license_link") if metadata.get(name)}
    base_model = metadata.get("base_model")
    if isinstance(base_model, list):
        base_model = base_model[0] if len(base_model) == 1 else None
    return found | ({"base_model": base_model} if base_model else {})


def comparison_rows(report: "PruningReport") -> list[list[str]]:
    """The table of what was measured, as text: a header, then a row for each quantity with a cell for each model.

    Args:
        report: With what `mmbert_hf.pruning.PrunedEmbedder.measure` put into it.

    Returns:
        Rows of the same length. The header is an empty cell and the models' names.

    Example:
        >>> from mmbert_hf.pruning import GAPruneConfig, PruningReport
        >>> rows = comparison_rows(PruningReport(GAPruneConfig().to_dict(), num_parameters=(2000, 1000)))
        >>> rows[0], rows[-2]
        (['', 'dense', 'pruned'], ['parameters', '2,000', '1,000'])
    """
    measured = report.measured
    models = measured.get("models", ["dense", "pruned"])
    rows = [["", *models]]
    for name in ("domain", "general"):
        rows += _quality_rows(name, measured.get("quality", {}).get(name), models)
        tokens = measured.get("tokens_per_text", {}).get(name)
        if tokens is not None:
            rows.append([f"tokens per text, {name}", *[f"{tokens[model]:.1f}" for model in models]])
    rows += _size_rows(report, models)
    latency = measured.get("latency")
    if latency is None:
        return [*rows, ["latency", *[NOT_MEASURED] * len(models)]]
    seconds = [latency["seconds"][name] for name in models]
    return [
        *rows,
        ["latency, relative to dense", *[f"{each['ratio']:.2f}" for each in seconds]],
        [
            f"seconds for {latency['num_texts']} texts: median (fastest to slowest)",
            *[f"{s['median_seconds']:.3g} ({s['low_seconds']:.3g} to {s['high_seconds']:.3g})" for s in seconds],
        ],
    ]


def _quality_rows(name: str, quality: Mapping[str, Any] | None, models: Sequence[str]) -> list[list[str]]:
    if quality is None:
        return [[f"nDCG@10, {name}", *[NOT_MEASURED] * len(models)]]
    size = f"{quality['num_queries']:,} queries, {quality['num_documents']:,} documents"
    differences = []
    for model in models:
        each = quality["difference"].get(model)
        differences.append(f"{each['mean']:+.4f} [{each['low']:+.4f}, {each['high']:+.4f}]" if each else "")
    return [
        [f"nDCG@10, {name} ({size})", *[f"{quality['ndcg_at_10'][model]:.4f}" for model in models]],
        [f"pruned less this model, {name} [95 % interval]", *differences],
    ]


def _size_rows(report: "PruningReport", models: Sequence[str]) -> list[list[str]]:
    footprint = report.measured.get("footprint")
    if footprint is not None:
        dense = footprint[models[0]]["bytes_on_disk"]
        rows = [
            [
                "bytes on disk",
                *[f"{footprint[m]['bytes_on_disk']:,} ({footprint[m]['bytes_on_disk'] / dense:.1%})" for m in models],
            ]
        ]
        for key, label in (("weight_bytes", "weights"), ("tokenizer_bytes", "tokenizer")):
            rows.append([f"of these {label}", *[f"{footprint[model][key]:,}" for model in models]])
        return [*rows, ["parameters", *[f"{footprint[model]['num_parameters']:,}" for model in models]]]
    rows = [["bytes on disk", *[NOT_MEASURED] * len(models)]]
    for pair, label in ((report.weight_bytes, "bytes of the weights"), (report.num_parameters, "parameters")):
        if pair is not None:
            rows.append([label, *[f"{value:,}" for value in pair]])
    return rows


def _facts(report: "PruningReport") -> dict[str, Any]:
    """What the template says, in its words."""
    from mmbert_hf.pruning.pruner import SAME_AS_MAGNITUDE

    granularities = report.args["granularity"].split(",")
    overlap = report.overlap_with_magnitude
    return {
        "table": comparison_rows(report),
        "embeddings": report.measured.get("embeddings", {}),
        "latency": report.measured.get("latency"),
        "retrainings": report.measured.get("retraining", []),
        "has_control": "control" in report.measured.get("models", ()),
        "method_in_words": METHODS[report.args["method"]],
        "granularities": {name: GRANULARITIES[name] for name in granularities},
        "is_smaller": bool({"vocabulary", "layer", "ffn"} & set(granularities)),
        "uses_scores": bool({"ffn", "2:4", "weight"} & set(granularities)) or report.args["layer_choice"] == "score",
        "is_magnitude": overlap is not None and overlap > SAME_AS_MAGNITUDE and report.args["method"] != "magnitude",
    }


def _eval_results(measured: Mapping[str, Any]) -> list[EvalResult]:
    """The metrics of ``model-index``: our own numbers of the pruned model."""
    return [
        EvalResult(
            task_type="sentence-similarity",
            dataset_name=f"{name} queries ({quality['num_queries']}) and documents ({quality['num_documents']})",
            dataset_type="custom",
            dataset_config=name,  # results whose type and configuration agree become one, whatever their names
            metric_type="ndcg_at_10",
            metric_name="nDCG@10",
            metric_value=round(quality["ndcg_at_10"]["pruned"], 4),
        )
        for name, quality in measured.get("quality", {}).items()
    ]
