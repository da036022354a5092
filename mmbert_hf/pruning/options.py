"""What can be chosen, by name. Free of torch, so that the command line's help answers at once."""

__all__ = ["CHOICES", "GRANULARITIES", "KINDS", "METHODS", "SCALE", "check_sparsity"]

METHODS = (
    *("dai", "dai-normalized", "fisher-domain", "fisher-general"),
    *("obd", "magnitude", "wanda", "random"),
)
# In the order in which they are done.
GRANULARITIES = ("vocabulary", "layer", "ffn", "2:4", "weight")
KINDS = ("mlp", "attention", "all")
# What fields of GAPruneConfig may be.
CHOICES = {
    "method": METHODS,
    "targets": KINDS,
    "budget": ("global", "tensor", "row"),
    "layer_choice": ("loss", "score", "last"),
    "vocabulary_from": ("both", "domain"),
}
SCALE = 20.0  # of the cosines in the loss


def check_sparsity(sparsity: float) -> None:
    """Refuse a share that nothing can be pruned by.

    Raises:
        ValueError: It is outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is the share of weights that go, in [0, 1); got {sparsity}")
