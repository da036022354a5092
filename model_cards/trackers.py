"""The card of a tracker: what a run of SPO knew of its prompts, as a data set."""

from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from huggingface_hub import DatasetCard, DatasetCardData

if TYPE_CHECKING:
    from mmbert_hf.trainers.spo.tracker import ValueTracker

__all__ = ["tracker_card"]


def tracker_card(
    repo_id: str,
    tracker: "ValueTracker",
    *,
    base_model: str | None = None,
    license: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
) -> DatasetCard:
    """Return the card of a tracker's data set.

    Args:
        repo_id: ``owner/name``.
        tracker: What is in it.
        base_model: The policy of the run, on the Hub.
        license: An identifier of the Hub, or several.
        tags: More tags.

    Returns:
        A card; ``card.save(path)``.

    Example:
        >>> from mmbert_hf import ValueTracker
        >>> card = tracker_card("me/values", ValueTracker(3))
        >>> "3 rows" in card.text, card.data.tags
        (True, ['spo', 'mmbert-hf'])
    """
    from mmbert_hf.trainers.spo.summaries import calibration_error, calibration_table

    table = calibration_table(tracker)
    data = DatasetCardData(
        license=license,
        tags=list(dict.fromkeys(("spo", "mmbert-hf", *tags))),
        pretty_name="Value tracker of a run of SPO",
    )
    number = len(tracker)
    with as_file(files("mmbert_hf.model_cards") / "templates" / "tracker.md") as template:
        return DatasetCard.from_template(
            data,
            template_path=str(template),
            repo_id=repo_id,
            num_prompts=number,
            num_rounds=tracker.round,
            num_seen=int((tracker.visits > 0).sum()),
            has_ids=tracker.keys is not None,
            value_kind=tracker.kind,
            mean_value=f"{tracker.values_at(range(number)).mean():.3f}" if number else "not known",
            mean_visits=f"{tracker.visits.mean():.1f}" if number else "0",
            calibration_error=calibration_error(table) if sum(table["count"]) else None,
            base_model=base_model,
            licence=license,
        )
