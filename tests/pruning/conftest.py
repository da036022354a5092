"""Statistics of tiny models, collected and compared. The embedders are in tests/conftest.py."""

import pytest


@pytest.fixture
def collect(make_triplets):
    """A function from a model, and a folder, to statistics of two small sets."""
    from mmbert_hf.pruning.scoring import collect_statistics
    from mmbert_hf.pruning.targets import find_targets
    from mmbert_hf.pruning.triplets import read_triplets

    def run(model, folder=None, num_rows=5, seed=1, **options):
        triplets = {
            "domain": read_triplets(make_triplets(num_rows, seed=seed), "domain"),
            "general": read_triplets(make_triplets(num_rows, seed=7), "general"),
        }
        options = {"batch_size": 2, "progress": False, **options}
        return collect_statistics(model, triplets, find_targets(model), folder=folder, **options)

    return run


@pytest.fixture(scope="session")
def assert_same():
    """A function that compares all tensors of two statistics."""
    import torch

    def check(one, other, rtol=0.0):
        for layer in one.origin.layers:
            for set_name in ("domain", "general"):
                for field in ("fisher", "gradient", "input_square"):
                    a, b = (getattr(each, field)(set_name, layer) for each in (one, other))
                    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))

    return check
