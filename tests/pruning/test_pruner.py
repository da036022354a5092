"""The whole of scoring and pruning on tiny models of every family."""

import copy
import logging

import pytest
import torch

from mmbert_hf.pruning import GAPruneConfig, GAPruner
from mmbert_hf.pruning.scores import METHODS, Scorer
from mmbert_hf.pruning.targets import encoder_of, find_blocks, find_targets


@pytest.fixture
def make_pruner(make_triplets):
    def make(model, num_rows=6, **options):
        args = GAPruneConfig(**{"batch_size": 4, "width_multiple": 4, **options})
        return GAPruner(model, make_triplets(num_rows, seed=1), make_triplets(num_rows, seed=2), args)

    return make


def embeddings(model, texts=("free equal dignity", "law")):
    return model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)


def zeros(model, kind="all"):
    encoder = encoder_of(model)
    weights = [encoder.get_submodule(target.name).weight for target in find_targets(model, kind)]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_as_much_as_asked(bert_embedder, make_pruner, method):
    pruned = make_pruner(bert_embedder, method=method, sparsity=0.3).prune(progress=False)
    gone, total = zeros(pruned.model, "mlp")
    assert gone == round(0.3 * total) == round(pruned.report.sparsity * total)
    assert zeros(pruned.model, "attention")[0] == 0
    assert zeros(bert_embedder)[0] == 0, "the model that was given is not changed"


def test_every_family(embedder, make_pruner):
    pruner = make_pruner(embedder, sparsity=0.5, targets="all")
    pruned = pruner.prune(progress=False)
    gone, total = zeros(pruned.model)
    assert gone == pytest.approx(total / 2, abs=1)
    assert not torch.equal(embeddings(pruned.model), embeddings(embedder))
    assert set(pruned.report.sparsity_per_layer) == {target.name for target in pruner.targets}
    smaller = pruner.prune(GAPruneConfig(granularity="ffn", sparsity=0.5, width_multiple=4), progress=False)
    dense, width = smaller.report.width
    assert width == 4 * round(dense / 8)
    assert smaller.report.num_parameters[1] < smaller.report.num_parameters[0]
    assert torch.isfinite(embeddings(smaller.model)).all()


def test_sparsity_zero_is_the_dense_model(bert_embedder, make_pruner):
    pruned = make_pruner(bert_embedder, sparsity=0.0).prune(progress=False)
    assert torch.equal(embeddings(pruned.model), embeddings(bert_embedder))
    assert pruned.report.overlap_with_magnitude is None


def test_scored_once_for_everything(bert_embedder, make_pruner, monkeypatch):
    from mmbert_hf.pruning import scoring

    calls = []
    add_batch = scoring.add_batch
    monkeypatch.setattr(scoring, "add_batch", lambda *args, **options: calls.append(1) or add_batch(*args, **options))
    pruner = make_pruner(bert_embedder)
    pruner.prune(progress=False)
    once = len(calls)
    assert once == 4  # two sets of six triplets in batches of four
    for method in ("dai", "wanda", "fisher-domain"):
        for granularity in ("weight", "2:4", "ffn", "layer"):
            args = GAPruneConfig(method=method, granularity=granularity, layer_choice="score", width_multiple=4)
            pruner.prune(args, progress=False)
    assert len(calls) == once


def test_statistics_of_a_model_that_changed_are_refused(bert_embedder, make_pruner):
    pruner = make_pruner(bert_embedder)
    pruner.score(progress=False)
    pruner.prune(progress=False)
    with torch.no_grad():
        encoder_of(bert_embedder).encoder.layer[0].output.dense.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"the statistics are of another model"):
        pruner.prune(progress=False)
    pruner.prune(GAPruneConfig(method="magnitude"), progress=False)


def test_magnitude_needs_no_scoring(bert_embedder, make_pruner):
    pruner = make_pruner(bert_embedder, method="magnitude")
    pruner.prune(progress=False)
    assert pruner.statistics is None


def test_two_of_four(bert_embedder, make_pruner):
    pruned = make_pruner(bert_embedder, granularity="2:4").prune(progress=False)
    for kept in pruned.mask.kept.values():
        assert kept.view(kept.shape[0], -1, 4).sum(-1).eq(2).all()


@pytest.mark.parametrize("budget", ["tensor", "row"])
def test_local_budgets(bert_embedder, make_pruner, budget):
    pruned = make_pruner(bert_embedder, budget=budget, sparsity=0.25).prune(progress=False)
    assert set(pruned.report.sparsity_per_layer.values()) == {0.25}


def test_a_warning_when_the_score_is_magnitude(bert_embedder, make_pruner, caplog):
    with torch.no_grad():  # small gradients, as at the scale of real models
        for parameter in encoder_of(bert_embedder).encoder.layer[-1].output.LayerNorm.parameters():
            parameter.mul_(1.0)
    pruner = make_pruner(bert_embedder, method="dai", gamma=1e6)
    with caplog.at_level(logging.WARNING, "mmbert_hf"):
        pruned = pruner.prune(progress=False)
    assert pruned.report.overlap_with_magnitude > 0.95
    assert "what magnitude alone would prune" in caplog.text
    caplog.clear()
    other = pruner.prune(GAPruneConfig(method="fisher-domain"), progress=False)
    assert other.report.overlap_with_magnitude < 0.95
    assert "magnitude alone" not in caplog.text


@pytest.mark.parametrize("weak", [0, 1, 2])
def test_statistics_follow_the_weights_through_everything(bert_embedder, make_pruner, weak):
    """A layer dropped and neurons gone, what is kept of the rest are the weights with the highest scores before."""
    with torch.no_grad():
        for parameter in encoder_of(bert_embedder).encoder.layer[weak].parameters():
            parameter.mul_(0.01)  # so that this layer is dropped
        for layer in encoder_of(bert_embedder).encoder.layer:
            layer.intermediate.dense.bias.normal_()  # so that neurons can be told apart
    pruner = make_pruner(bert_embedder, method="obd")
    pruner.score(progress=False)
    before = Scorer("obd", _weights(bert_embedder), pruner.statistics)
    args = GAPruneConfig(
        method="obd",
        granularity="layer,ffn,weight",
        drop_layers=1,
        layer_choice="score",
        ffn_width=20,
        refit=False,
        sparsity=0.5,
    )
    pruned = pruner.prune(args, progress=False)
    assert pruned.report.dropped_layers == [weak]
    left = [number for number in range(3) if number != weak]
    kept_scores, gone_scores = [], []
    for name, kept in pruned.mask.kept.items():
        number, _, rest = name.removeprefix("encoder.layer.").partition(".")
        dense_name = f"encoder.layer.{left[int(number)]}.{rest}"
        dense, scores = _weights(bert_embedder)[dense_name], before.score(dense_name)
        neurons = pruned_neurons(bert_embedder, pruned.model, left[int(number)], int(number))
        cut = scores[neurons] if dense.shape[0] == 48 else scores[:, neurons]
        kept_scores.append(cut[kept])
        gone_scores.append(cut[~kept])
    assert torch.cat(kept_scores).min() >= torch.cat(gone_scores).max() > 0
    encoder = encoder_of(pruned.model)
    assert len(find_blocks(encoder)[1]) == 2
    assert encoder.config.intermediate_size == 20


def pruned_neurons(dense, pruned, dense_layer, pruned_layer) -> list[int]:
    """Which neurons of the dense model are left, found by their biases, which pruning zeros never changes."""
    before = encoder_of(dense).encoder.layer[dense_layer].intermediate.dense.bias
    after = encoder_of(pruned).encoder.layer[pruned_layer].intermediate.dense.bias
    return [int((before == value).nonzero()[0, 0]) for value in after]


def _weights(model):
    encoder = encoder_of(model)
    return {target.name: encoder.get_submodule(target.name).weight.detach() for target in find_targets(model, "mlp")}


@pytest.mark.parametrize("choice", ["loss", "score", "last"])
def test_layers(bert_embedder, make_pruner, choice):
    pruned = make_pruner(bert_embedder, granularity="layer", drop_layers=1, layer_choice=choice).prune(progress=False)
    assert pruned.report.num_layers == (3, 2)
    if choice == "last":
        assert pruned.report.dropped_layers == [2]
    expected = copy.deepcopy(bert_embedder)
    del encoder_of(expected).encoder.layer[pruned.report.dropped_layers[0]]
    torch.testing.assert_close(embeddings(pruned.model), embeddings(expected))


def test_target_size_is_reached_and_not_by_more_than_a_step(bert_embedder, make_pruner):
    pruned = make_pruner(bert_embedder, granularity="ffn", target_size=0.8).prune(progress=False)
    dense, after = pruned.report.weight_bytes
    step = 4 * 3 * (2 * 32 + 1) * 4  # four neurons in three blocks
    assert 0.8 * dense - step < after <= 0.8 * dense


def test_vocabulary_and_width_together(bert_embedder, make_pruner):
    pruned = make_pruner(bert_embedder, granularity="ffn,vocabulary").prune(progress=False)
    dense, after = pruned.report.vocabulary
    assert after < dense
    texts = make_pruner(bert_embedder).triplets["domain"].anchors
    assert [pruned.model.tokenizer.tokenize(text) for text in texts] == [
        bert_embedder.tokenizer.tokenize(text) for text in texts
    ]


def test_the_vocabulary_can_be_that_of_a_corpus(bert_embedder, make_pruner):
    pruner = make_pruner(bert_embedder, granularity="vocabulary")
    of_triplets = pruner.prune(progress=False).model.tokenizer
    of_corpus = pruner.prune(vocabulary_texts=["law", "court"], progress=False).model.tokenizer
    assert len(of_corpus) < len(of_triplets)
    assert of_corpus.tokenize("law court") == bert_embedder.tokenizer.tokenize("law court")
    with pytest.raises(ValueError, match="vocabulary_texts are for granularity vocabulary"):
        pruner.prune(GAPruneConfig(granularity="ffn"), vocabulary_texts=["law"])


def test_the_vocabulary_can_be_that_of_the_domain_alone(bert_embedder, make_pruner):
    pruner = make_pruner(bert_embedder, granularity="vocabulary")
    of_both = pruner.prune(progress=False).model.tokenizer
    of_domain = pruner.prune(
        GAPruneConfig(granularity="vocabulary", vocabulary_from="domain"), progress=False
    ).model.tokenizer
    anchors = {name: triplets.anchors for name, triplets in pruner.texts.items()}
    before = bert_embedder.tokenizer
    assert set(of_domain.get_vocab()) < set(of_both.get_vocab())
    assert all(of_domain.tokenize(text) == before.tokenize(text) for text in anchors["domain"])
    assert any(of_domain.tokenize(text) != before.tokenize(text) for text in anchors["general"])


def test_bad_input(bert_embedder, make_triplets, make_pruner):
    triplets = make_triplets(4)
    with pytest.raises(ValueError, match="same"):
        GAPruner(bert_embedder, triplets, triplets)
    with pytest.raises(ValueError, match="negative"):
        GAPruner(bert_embedder, triplets.remove_columns("negative"), make_triplets(4, seed=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "ffn", "ffn_width": 49}, "ffn_width=49 is more than the 48"),
        ({"granularity": "ffn", "target_size": 0.05}, "no width brings the weights down"),
        ({"granularity": "ffn,vocabulary", "target_size": 0.05}, "no width brings the weights down"),
        ({"granularity": "layer", "drop_layers": 3, "layer_choice": "score"}, "the model has 3 blocks"),
        ({"granularity": "layer", "sparsity": 0.9, "layer_choice": "score"}, "the model has 3 blocks"),
    ],
)
def test_what_the_model_cannot_have_is_told_before_it_is_scored(options, message, bert_embedder, make_pruner):
    with pytest.raises(ValueError, match=message):
        make_pruner(bert_embedder, **options)
    pruner = make_pruner(bert_embedder)
    with pytest.raises(ValueError, match=message):
        pruner.prune(GAPruneConfig(**options), progress=False)
    assert pruner.statistics is None


def test_a_vocabulary_that_cannot_be_trimmed_is_told_before_it_is_scored(bert_embedder, make_pruner, tmp_path):
    from transformers import BertTokenizerLegacy

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "law"]))
    bert_embedder[0].processor = BertTokenizerLegacy(vocabulary)
    with pytest.raises(TypeError, match="is not a fast tokenizer"):
        make_pruner(bert_embedder, granularity="vocabulary")


def test_attention_where_no_feed_forward_is_known(bert_embedder, make_pruner):
    """As in mixtures of experts, whose feed-forwards are made otherwise."""

    class Squared(torch.nn.Module):
        """No neuron of its own: each is made of two."""

        def forward(self, hidden):
            return hidden * hidden.flip(-1)

    for block in encoder_of(bert_embedder).encoder.layer:
        block.intermediate.intermediate_act_fn = Squared()
    pruned = make_pruner(bert_embedder, targets="attention").prune(progress=False)
    assert pruned.report.sparsity == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no linear layer of kind 'mlp'"):
        make_pruner(bert_embedder, targets="mlp")


def test_num_triplets_takes_representatives(bert_embedder, make_triplets):
    args = GAPruneConfig(num_triplets=5)
    pruner = GAPruner(bert_embedder, make_triplets(12, seed=1), make_triplets(5, seed=2), args)
    assert {name: len(triplets) for name, triplets in pruner.triplets.items()} == {"domain": 5, "general": 5}
    assert set(pruner.triplets["domain"].anchors) <= set(make_triplets(12, seed=1)["anchor"])
