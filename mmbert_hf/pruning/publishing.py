"""What surrounds a pruned model in public: the card, and the report without local paths.

Paths of this computer are not published: the report names a parent that is on the Hub, or none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmbert_hf.hub.names import public_name
from mmbert_hf.pruning.report import PruningReport

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from sentence_transformers import SentenceTransformer

__all__ = ["published_report", "render_card"]


def published_report(report: PruningReport) -> PruningReport:
    """The report as it may be published: a parent that is no name on the Hub and the folder of statistics are left out.

    Args:
        report: Not changed.

    Example:
        >>> report = PruningReport({"statistics_dir": "/home/me/statistics"}, base_model="/home/me/model")
        >>> published_report(report).base_model, published_report(report).args
        (None, {'statistics_dir': None})
    """
    return replace(report, base_model=public_name(report.base_model), args={**report.args, "statistics_dir": None})


def render_card(
    repo_id: str, report: PruningReport, parent: "SentenceTransformer", given: Mapping[str, Any]
) -> "ModelCard":
    """The card of a pruned model: what is given, else what the card of its parent says, else left open.

    Args:
        repo_id: What the card loads.
        report: From `published_report`.
        parent: The dense model; or the pruned one itself if it was loaded again, whose card has it from there.
        given: Arguments of `mmbert_hf.model_cards.pruned.pruned_embedder_card`; None is "not given".
    """
    from mmbert_hf.model_cards.pruned import inherited_metadata, pruned_embedder_card

    # sentence-transformers keeps the card that it found beside a model in this attribute, and nowhere else.
    known = inherited_metadata(getattr(parent, "_model_card_text", None) or "")
    if report.base_model is not None:
        known["base_model"] = report.base_model
    chosen = {name: value for name, value in given.items() if value is not None}
    if "license" in chosen:
        known = {name: value for name, value in known.items() if not name.startswith("license")}
    return pruned_embedder_card(repo_id, report, **{**known, **chosen})
