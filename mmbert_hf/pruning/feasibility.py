"""What can be said of options and a model before anything is scored."""

from typing import TYPE_CHECKING

from mmbert_hf.pruning import budgets
from mmbert_hf.pruning.config import GAPruneConfig
from mmbert_hf.pruning.footprint import width_for_size
from mmbert_hf.pruning.layers import last_layers
from mmbert_hf.pruning.targets import encoder_of, find_blocks, find_feed_forwards, find_targets
from mmbert_hf.vocabulary.plan import backend_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["check_fit"]


def check_fit(model: "SentenceTransformer", args: GAPruneConfig) -> None:
    """Refuse options that this model cannot have. Scoring may take hours, so what can be said before it is said here.

    Args:
        model: An embedder.
        args: What it is to be pruned with.

    Raises:
        ValueError: Layers of that kind, widths, numbers of layers or sizes that are not to be had.
        TypeError: The vocabulary of a tokenizer that cannot be trimmed.
    """
    encoder = encoder_of(model)
    if "vocabulary" in args.granularities:
        backend_of(model.tokenizer)
    num_dropped = args.drop_layers
    if "layer" in args.granularities and num_dropped is None and args.target_size is None:
        num_dropped = budgets.num_pruned(len(find_blocks(encoder)[1]), args.sparsity)
    last_layers(model, num_dropped or 0)
    if "ffn" in args.granularities:
        dense = find_feed_forwards(model)[0].width
        if args.ffn_width is not None and args.ffn_width > dense:
            raise ValueError(f"ffn_width={args.ffn_width} is more than the {dense} neurons that there are")
        if args.target_size is not None:  # how many tokens will stay is not known yet
            rows, multiple = 1 if "vocabulary" in args.granularities else None, args.width_multiple
            width_for_size(
                model, args.target_size, dropped_layers=num_dropped or 0, vocabulary_size=rows, multiple=multiple
            )
    if {"weight", "2:4"} & set(args.granularities):
        targets = find_targets(model, args.targets)  # type: ignore[arg-type]
        widths = {encoder.get_submodule(target.name).in_features for target in targets}
        if "2:4" in args.granularities and "ffn" not in args.granularities:
            budgets.check_fours(widths)
