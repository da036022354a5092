"""How the masked language model decodes, and what the classification heads refuse."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmbert_hf import losses
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.linear_cross_entropy import linear_cross_entropy
from mmbert_hf.modeling import (
    MMBertForMaskedLM,
    MMBertForMultipleChoice,
    MMBertForQuestionAnswering,
    MMBertForSequenceClassification,
)

VOCABULARY = 1009  # of no other size in the model, so that logits can be told by it
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "local_attention": 8,
    "initializer_range": 0.1,
}
CLASSIFIERS = [MMBertForSequenceClassification, MMBertForQuestionAnswering, MMBertForMultipleChoice]


def make(model_class=MMBertForMaskedLM, **options):
    torch.manual_seed(0)
    return model_class(MMBertConfig(**SIZES, **options)).eval()


def make_batch(batch=3, length=20):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, VOCABULARY, (batch, length), generator=generator)
    chosen = torch.rand(input_ids.shape, generator=generator) < 0.5
    return input_ids, torch.where(chosen, input_ids, -100)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


class Logits(TorchDispatchMode):
    """Notes the most rows over the vocabulary that an operator returns, the transposed weight's apart."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        returned = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if torch.is_tensor(leaf) and leaf.shape[-1:] == (VOCABULARY,) and operator.name().split("::")[1] != "t":
                self.most = max(self.most, leaf.numel() // VOCABULARY)
        return returned


# Decoding in training


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_training_holds_the_logits_of_a_few_rows(monkeypatch, bias, tied):
    """The loss decodes in chunks: with room for four rows of logits, none holds more."""
    model = make(decoder_bias=bias, tie_word_embeddings=tied)
    input_ids, labels = make_batch()
    assert (labels != -100).sum() > 20
    expected_loss = model(input_ids, labels=labels).loss  # in eval mode, from all logits
    expected = gradients(model, expected_loss)
    monkeypatch.setattr(losses, "linear_cross_entropy", partial(linear_cross_entropy, max_logits=4 * VOCABULARY))
    with Logits() as logits:
        output = model.train()(input_ids, labels=labels)
        got = gradients(model, output.loss)
    assert logits.most == 4
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected_loss)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_the_record_sees_all_logits_in_eval_mode():
    input_ids, labels = make_batch()
    with Logits() as logits:
        make()(input_ids, labels=labels)
    assert logits.most == input_ids.numel()


def test_sparse_prediction_decodes_labelled_rows_in_eval_mode():
    input_ids, labels = make_batch()
    model = make(sparse_prediction=True)
    with Logits() as logits:
        output = model(input_ids, labels=labels)
    count = int((labels != -100).sum())
    assert logits.most == count
    assert output.logits.shape == (count, VOCABULARY)
    torch.testing.assert_close(output.loss, make()(input_ids, labels=labels).loss)
    torch.testing.assert_close(output.logits, model(input_ids).logits[labels != -100], rtol=1e-4, atol=1e-5)


class Wrapped(nn.Module):
    """A decoder in the hands of somebody else."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.rows = []

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, vectors):
        self.rows.append(len(vectors))
        return self.base(vectors)


@pytest.mark.parametrize("way", ["hook", "wrapped"])
@pytest.mark.parametrize("count", [None, 50])
def test_a_decoder_that_is_more_than_its_weight_is_called(monkeypatch, way, count):
    input_ids, labels = make_batch()
    plain = make().train()
    expected_loss = plain(input_ids, labels=labels, num_items_in_batch=count).loss
    expected = gradients(plain, expected_loss)
    model = make().train()
    rows = []
    if way == "hook":
        model.decoder.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    else:
        model.decoder = Wrapped(model.decoder)
        rows = model.decoder.rows
    monkeypatch.setattr(losses, "linear_cross_entropy", lambda *_, **__: pytest.fail("the decoder was gone around"))
    output = model(input_ids, labels=labels, num_items_in_batch=count)
    got = {name.replace(".base.", "."): value for name, value in gradients(model, output.loss).items()}
    assert rows == [int((labels != -100).sum())]
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected_loss)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_what_a_decoder_adds_reaches_the_loss():
    input_ids, labels = make_batch()
    model = make().train()
    nn.init.normal_(model.decoder.weight)
    before = model(input_ids, labels=labels).loss
    model.decoder.register_forward_hook(lambda _, __, output: output * 0)
    after = model(input_ids, labels=labels).loss
    assert after.item() == pytest.approx(torch.tensor(VOCABULARY).log().item(), rel=1e-5)
    assert before.item() != pytest.approx(after.item(), rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_losses_of_single_rows_under_vmap(training):
    """Where values cannot be looked at, all logits are formed, and the loss is the same."""
    model = make(attn_implementation="eager").train(training)  # vmap warns that sdpa is slow under it
    input_ids, labels = make_batch()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters, row, row_labels):
        inputs = {"input_ids": row[None], "labels": row_labels[None]}
        output = torch.func.functional_call(model, parameters, (), inputs)
        assert (output.logits is None) == training
        return output.loss

    each = torch.func.grad_and_value(loss)
    got, values = torch.func.vmap(each, in_dims=(None, 0, 0))(parameters, input_ids, labels)
    for row in range(len(input_ids)):
        expected = model(input_ids[row : row + 1], labels=labels[row : row + 1]).loss
        torch.testing.assert_close(values[row], expected, rtol=1e-4, atol=1e-5)
        for name, gradient in gradients(model, expected).items():
            torch.testing.assert_close(got[name][row], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_meta_tensors_have_shapes():
    """Without values nothing can be counted: the shapes of all logits, and a loss."""
    model = make().to("meta").train()
    input_ids, labels = (values.to("meta") for values in make_batch())
    assert model(input_ids, labels=labels).loss.shape == ()
    assert model(input_ids).logits.shape == (3, 20, VOCABULARY)


# Whole rows


def inputs_for(model_class, batch=4, length=12):
    """Input ids of the shape that the task takes, and how to bring [B, L] into it."""
    input_ids, _ = make_batch(batch, length)
    choices = model_class is MMBertForMultipleChoice

    def shaped(values):
        return values.view(-1, 2, length) if choices else values

    return input_ids, shaped


def logits_of(output):
    return output.logits if "logits" in output else torch.stack((output.start_logits, output.end_logits))


@pytest.mark.parametrize("model_class", CLASSIFIERS)
def test_restarting_positions_are_refused(model_class):
    model = make(model_class)
    input_ids, shaped = inputs_for(model_class)
    positions = torch.arange(12).repeat(4, 1)
    model(shaped(input_ids), position_ids=shaped(positions))
    positions[2] = torch.tensor([*range(5), *range(7)])
    with pytest.raises(ValueError, match=r"position_ids that restart at 0.*pass one document a row, padded") as refused:
        model(shaped(input_ids), position_ids=shaped(positions))
    assert str(refused.value).startswith(f"{model_class.__name__} got packed rows")


@pytest.mark.parametrize("model_class", CLASSIFIERS[:2])
def test_bounds_are_refused(model_class):
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
    packed = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 7, "max_length_k": 7}
    with pytest.raises(ValueError, match="got packed rows, by cu_seq_lens_q"):
        make(model_class)(make_batch(1, 12)[0], **packed)


@pytest.mark.parametrize("model_class", CLASSIFIERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_that_are_0_at_padding_are_one_document(model_class, side):
    """As generation code counts them from a mask that is padded left, and collators at the right."""
    model = make(model_class)
    input_ids, shaped = inputs_for(model_class)
    lengths = torch.tensor([12, 5, 1, 8])[:, None]
    places = torch.arange(12)
    mask = (places >= 12 - lengths if side == "left" else places < lengths).long()
    positions = ((mask.cumsum(dim=1) - 1).clamp(min=0)) * mask
    given = {"attention_mask": shaped(mask), "position_ids": shaped(positions)}
    got = logits_of(model(shaped(input_ids), **given))
    expected = logits_of(model(shaped(input_ids), attention_mask=shaped(mask)))
    if model_class is MMBertForQuestionAnswering:
        got, expected = got[:, mask.bool()], expected[:, mask.bool()]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_positions_for_all_rows_at_once():
    model = make(MMBertForSequenceClassification)
    input_ids, _ = make_batch()
    got = model(input_ids, position_ids=torch.arange(20)[None]).logits
    torch.testing.assert_close(got, model(input_ids).logits)
    with pytest.raises(ValueError, match="got packed rows"):
        model(input_ids, position_ids=torch.arange(20)[None] % 10)


@pytest.mark.parametrize("form", ["square", "mapping"])
def test_masks_of_token_pairs_with_positions(form):
    """Question answering takes every mask that the encoder takes, with positions as without."""
    model = make(MMBertForQuestionAnswering)
    input_ids, _ = make_batch(2, 12)
    square = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    mask = square if form == "square" else {"full_attention": square, "sliding_attention": square}
    expected = logits_of(model(input_ids, attention_mask=mask))
    got = logits_of(model(input_ids, attention_mask=mask, position_ids=torch.arange(12).repeat(2, 1)))
    torch.testing.assert_close(got, expected)
