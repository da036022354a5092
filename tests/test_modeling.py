"""The models by themselves: windows, masks, RoPE, heads, losses, initialisation, saving."""

import copy
import doctest
import math
from importlib import import_module

import pytest
import torch
from torch import nn

from mmbert_hf import initialization
from mmbert_hf.attention import MMBertAttention, attention_masks
from mmbert_hf.classification import pool
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.losses import classification_loss, mean_cross_entropy, span_loss
from mmbert_hf.modeling import (
    MMBertForMaskedLM,
    MMBertForMultipleChoice,
    MMBertForQuestionAnswering,
    MMBertForSequenceClassification,
    MMBertForTokenClassification,
    MMBertModel,
)

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 16,
    "initializer_range": 0.1,
}


def make(model_class=MMBertModel, seed=0, **options):
    torch.manual_seed(seed)
    return model_class(MMBertConfig(**{**SIZES, **options})).eval()


def make_ids(batch=2, length=40, seed=1):
    return torch.randint(5, 120, (batch, length), generator=torch.Generator().manual_seed(seed))


def make_labels(input_ids, share=0.3):
    chosen = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(2)) < share
    return input_ids.masked_fill(~chosen, -100)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# Attention


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("local_attention", [16, 9, 1])
def test_a_local_layer_reaches_half_a_window_to_either_side(implementation, local_attention):
    """Changing one token changes exactly the tokens within reach of it."""
    options = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "local_attention": local_attention}
    model = make(**options, attn_implementation=implementation)
    ids = make_ids(1)
    changed_ids = ids.clone()
    changed_ids[0, 20] = 5 + (ids[0, 20] - 4) % 115
    difference = (model(ids).last_hidden_state - model(changed_ids).last_hidden_state).abs().amax(-1)[0]
    reach = local_attention // 2
    assert difference.nonzero().flatten().tolist() == list(range(20 - reach, 20 + reach + 1))


def test_global_layers_reach_everything():
    model = make(num_hidden_layers=1)
    ids = make_ids(1)
    changed_ids = ids.clone()
    changed_ids[0, 0] = 5 + (ids[0, 0] - 4) % 115
    assert (model(ids).last_hidden_state != model(changed_ids).last_hidden_state).any(-1).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_does_not_change_real_tokens(implementation):
    model = make(attn_implementation=implementation)
    ids = make_ids(1, 30)
    alone = model(ids).last_hidden_state
    for left, right in ((0, 25), (25, 0)):
        padded = nn.functional.pad(ids, (left, right))
        positions = (torch.arange(padded.shape[1]) - left).clamp(min=0)[None]
        output = model(padded, attention_mask=padded.ne(0), position_ids=positions).last_hidden_state
        torch.testing.assert_close(output[:, left : left + 30], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_square_mask_keeps_the_window(implementation, dtype):
    """A [B, 1, L, L] mask that lets everything pass, or states the padding, equals no mask, or the 2-D mask."""
    model = make(attn_implementation=implementation)
    ids = make_ids()
    padding = torch.ones_like(ids)
    padding[1, 25:] = 0
    square = padding.bool()[:, None, None, :].expand(-1, 1, 40, 40)
    if dtype != torch.bool:
        square = torch.zeros(square.shape).masked_fill(~square, torch.finfo(dtype).min)
    expected = model(ids, attention_mask=padding).last_hidden_state
    got = model(ids, attention_mask=square).last_hidden_state
    torch.testing.assert_close(got[padding.bool()], expected[padding.bool()], rtol=1e-5, atol=1e-5)


def test_a_mapping_of_masks_is_taken_as_it_is():
    model = make()
    ids = make_ids()
    masks = attention_masks(model.config, torch.zeros(2, 40, 64), None)
    given, own = model(ids, attention_mask=masks).last_hidden_state, model(ids).last_hidden_state
    torch.testing.assert_close(given, own, rtol=0, atol=1e-5)
    everywhere = {"full_attention": None, "sliding_attention": None}
    assert not torch.equal(model(ids, attention_mask=everywhere).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize("shape", [(2, 39), (1, 40), (2, 40, 40), (2, 1, 40, 39)])
def test_masks_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"attention_mask is \("):
        make()(make_ids(), attention_mask=torch.ones(shape))


def test_flash_attention_refuses_a_square_mask():
    model = make()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2', which takes no mask of token pairs"):
        model(make_ids(), attention_mask=torch.ones(2, 1, 40, 40, dtype=torch.bool))


def test_exactly_one_input():
    with pytest.raises(ValueError, match="neither of input_ids and inputs_embeds"):
        make()()
    with pytest.raises(ValueError, match="both of input_ids and inputs_embeds"):
        make()(make_ids(), inputs_embeds=torch.zeros(2, 40, 64))


def test_attention_dropout_and_output_dropout():
    torch.manual_seed(0)
    both = MMBertAttention(MMBertConfig(**SIZES, attention_dropout=0.3), 0)
    assert (both.attention_dropout, both.out_drop.p) == (0.3, 0.3)  # as ModernBERT has it
    output_only = MMBertAttention(MMBertConfig(**SIZES, attention_output_dropout=0.1), 0)
    assert (output_only.attention_dropout, output_only.out_drop.p) == (0.0, 0.1)
    model = make(attention_output_dropout=0.5).train()
    ids = make_ids()
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)


# Rotary positions


@pytest.mark.parametrize("model_class", [MMBertModel, MMBertForMaskedLM])
def test_set_rope_theta_equals_a_model_made_with_it(model_class):
    model, ids = make(model_class), make_ids()
    before = model(ids)[0]
    buffers = list(model.base_model.rotary_emb.buffers())
    model.set_rope_theta(300.0, 50.0)
    expected = make(model_class, global_rope_theta=300.0, local_rope_theta=50.0)
    expected.load_state_dict(model.state_dict())
    assert torch.equal(model(ids)[0], expected(ids)[0])
    assert not torch.allclose(model(ids)[0], before, atol=1e-3)
    assert model.config.rope_parameters == expected.config.rope_parameters
    # The same tensors: a captured graph or a compiled model sees the change.
    assert all(a is b for a, b in zip(buffers, model.base_model.rotary_emb.buffers(), strict=True))


def test_set_rope_theta_survives_saving(tmp_path):
    model, ids = make(MMBertForMaskedLM), make_ids()
    model.set_rope_theta(300.0)
    model.save_pretrained(tmp_path)
    loaded = MMBertForMaskedLM.from_pretrained(tmp_path)
    assert loaded.config.local_rope_theta == 300.0
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_set_rope_theta_refuses_nonsense_and_changes_nothing():
    model, ids = make(), make_ids()
    before = model(ids).last_hidden_state
    with pytest.raises(ValueError, match="local_theta is 0"):
        model.set_rope_theta(10_000, 0)
    assert torch.equal(model(ids).last_hidden_state, before)


def test_a_cast_model_rotates_as_one_loaded_in_that_dtype(tmp_path):
    model, ids = make(), make_ids()
    model.save_pretrained(tmp_path)
    loaded = MMBertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = model.to(torch.bfloat16)
    positions = torch.arange(8000, 8040)[None]
    assert torch.equal(
        cast(ids, position_ids=positions).last_hidden_state, loaded(ids, position_ids=positions).last_hidden_state
    )
    assert {buffer.dtype for buffer in cast.rotary_emb.buffers()} == {torch.float32}


def test_rotation_is_relative():
    """Moving all positions by the same amount changes nothing but rounding."""
    model, ids = make(), make_ids()
    moved = model(ids, position_ids=torch.arange(100, 140)[None]).last_hidden_state
    torch.testing.assert_close(moved, model(ids).last_hidden_state, rtol=1e-3, atol=1e-3)


# Masked language model


@pytest.mark.parametrize("count", [None, 17, torch.tensor(17)], ids=["own count", "int", "tensor"])
def test_training_decodes_labelled_tokens_only_and_gives_the_same_loss(count):
    model, ids = make(MMBertForMaskedLM), make_ids()
    labels = make_labels(ids)
    rows = []
    model.head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    dense = model(ids, labels=labels, num_items_in_batch=count)
    dense.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    sparse = model.train()(ids, labels=labels, num_items_in_batch=count)
    sparse.loss.backward()
    assert rows == [ids.numel(), (labels != -100).sum().item()]
    assert dense.logits.shape == (2, 40, 120)
    assert sparse.logits is None
    torch.testing.assert_close(sparse.loss, dense.loss)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


def test_training_without_labels_gives_all_logits():
    assert make(MMBertForMaskedLM).train()(make_ids()).logits.shape == (2, 40, 120)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [None, 0])
def test_a_batch_without_labels_has_loss_zero_and_zero_gradients(training, count):
    model, ids = make(MMBertForMaskedLM).train(training), make_ids()
    loss = model(ids, labels=torch.full_like(ids, -100), num_items_in_batch=count).loss
    loss.backward()
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_gradient_accumulation_equals_one_batch():
    model, ids = make(MMBertForMaskedLM).train(), make_ids(4)
    labels = make_labels(ids)
    labels[0, 2:] = -100  # unequal shares, so that a mean of means would be wrong
    model(ids, labels=labels).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    count = (labels != -100).sum()
    for part in range(4):
        row = slice(part, part + 1)
        model(ids[row], labels=labels[row], num_items_in_batch=count).loss.backward()
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


def test_the_decoder_is_tied_through_saving_and_resizing(tmp_path):
    model, ids = make(MMBertForMaskedLM), make_ids()
    nn.init.normal_(model.decoder.bias)
    assert model.decoder.weight is model.model.embeddings.tok_embeddings.weight
    model.save_pretrained(tmp_path)
    loaded = MMBertForMaskedLM.from_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.model.embeddings.tok_embeddings.weight
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.resize_token_embeddings(130)
    assert loaded.decoder.weight is loaded.model.embeddings.tok_embeddings.weight
    assert loaded.config.vocab_size == 130
    assert loaded(ids).logits.shape[-1] == 130
    torch.testing.assert_close(loaded(ids).logits[..., :120], model(ids).logits)


def test_an_encoder_loads_from_a_masked_language_model_and_back(tmp_path):
    model, ids = make(MMBertForMaskedLM), make_ids()
    model.save_pretrained(tmp_path)
    bare = MMBertModel.from_pretrained(tmp_path)
    expected = model(ids, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(bare(ids).last_hidden_state, expected)


def test_another_ignored_label_is_refused():
    with pytest.raises(ValueError, match="sparse_pred_ignore_index is -1"):
        make(MMBertForMaskedLM, sparse_pred_ignore_index=-1)


def test_bfloat16_loss_is_computed_in_float32():
    model, ids = make(MMBertForMaskedLM).to(torch.bfloat16), make_ids()
    output = model(ids, labels=make_labels(ids))
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32


# The other heads


def test_mean_pooling_counts_real_tokens_only():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[100.0], [5.0], [7.0]], [[1.0], [1.0], [1.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    assert pool(hidden, mask, "mean").flatten().tolist() == [2.0, 6.0, 0.0]
    assert pool(hidden, mask.float(), "mean").flatten().tolist() == [2.0, 6.0, 0.0]
    assert pool(hidden, None, "mean")[0].item() == pytest.approx(104 / 3)


def test_cls_pooling_takes_the_first_real_token():
    hidden = torch.arange(9.0).view(3, 3, 1)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    assert pool(hidden, mask, "cls").flatten().tolist() == [0.0, 4.0, 6.0]
    assert pool(hidden, None, "cls").flatten().tolist() == [0.0, 3.0, 6.0]


def test_pooling_refuses_what_does_not_say_which_tokens_are_real():
    hidden = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"needs an attention_mask of shape \(2, 3\).*got \(2, 1, 3, 3\)"):
        pool(hidden, torch.ones(2, 1, 3, 3), "mean")
    with pytest.raises(ValueError, match="got <class 'dict'>"):
        pool(hidden, {}, "mean")
    with pytest.raises(ValueError, match="pooling is 'max'"):
        pool(hidden, None, "max")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classification_does_not_depend_on_the_padding_side(pooling):
    model = make(MMBertForSequenceClassification, classifier_pooling=pooling)
    ids = make_ids(1, 20)
    right, left = nn.functional.pad(ids, (0, 15)), nn.functional.pad(ids, (15, 0))
    logits = [model(padded, attention_mask=padded.ne(0)).logits for padded in (right, left)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[0], model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_multiple_choice_works_without_a_mask(pooling):
    model = make(MMBertForMultipleChoice, classifier_pooling=pooling)
    ids = make_ids(6).view(2, 3, 40)
    logits = model(ids).logits
    assert torch.equal(logits, model(ids, attention_mask=torch.ones_like(ids)).logits)
    assert logits.shape == (2, 3)
    with pytest.raises(ValueError, match="neither of input_ids"):
        model()


def test_question_answering_has_two_labels():
    with pytest.raises(ValueError, match="num_labels is 3"):
        make(MMBertForQuestionAnswering, num_labels=3)


def test_span_loss_ignores_answers_that_were_cut_off():
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    inside = span_loss(logits[:1], logits[:1], torch.tensor([2]), torch.tensor([3]))
    for outside in (-1, 7, 99):
        positions = torch.tensor([[2], [outside]]), torch.tensor([[3], [outside]])
        torch.testing.assert_close(span_loss(logits, logits, *positions), inside)
    nothing = span_loss(logits, logits, torch.tensor([9, 9]), torch.tensor([9, 9]))
    assert nothing.item() == 0


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", torch.tensor([0, 2, 1, 1])),
        ("multi_label_classification", torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])),
        ("regression", torch.linspace(-1, 1, 12).view(4, 3)),
    ],
)
def test_classification_loss_over_parts_equals_the_whole(problem, labels):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    whole = classification_loss(logits, labels, problem)
    parts = sum(classification_loss(logits[i : i + 1], labels[i : i + 1], problem, labels.numel()) for i in range(4))
    torch.testing.assert_close(parts, whole)


def test_classification_loss_refuses_an_unknown_problem():
    with pytest.raises(ValueError, match="problem_type is 'ranking'"):
        classification_loss(torch.zeros(1, 2), torch.zeros(1, 2), "ranking")


def test_mean_cross_entropy_is_the_mean_over_labels():
    logits = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12).view(3, 4) % 9
    labels[1] = -100
    expected = nn.functional.cross_entropy(logits.view(-1, 9), labels.view(-1))
    torch.testing.assert_close(mean_cross_entropy(logits, labels), expected)
    torch.testing.assert_close(mean_cross_entropy(logits, labels, 16), expected / 2)
    assert mean_cross_entropy(logits.double(), labels).dtype == torch.float64


@pytest.mark.parametrize(
    ("num_labels", "labels", "expected"),
    [
        (1, torch.tensor([0.5, 1.0]), "regression"),
        (3, torch.tensor([0, 2]), "single_label_classification"),
        (3, torch.tensor([[1.0, 0, 1], [0, 0, 1]]), "multi_label_classification"),
    ],
)
def test_the_problem_type_is_set_from_the_labels(num_labels, labels, expected):
    model = make(MMBertForSequenceClassification, num_labels=num_labels)
    assert model(make_ids(), labels=labels).loss.isfinite()
    assert model.config.problem_type == expected


# Behaviour that all models share


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model, ids = make(MMBertForMaskedLM).train(), make_ids()
    labels, mask = make_labels(ids), torch.ones_like(ids)
    mask[1, 30:] = 0
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    calls = []
    model.model.layers[1].attn.register_forward_hook(lambda *_: calls.append(1))
    if hasattr(model, "activation_checkpointing_enable"):  # its name in newer transformers, where the other warns
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    assert len(calls) == 2  # once more in the backward pass
    torch.testing.assert_close(gradients(model), expected)


def test_tuples_instead_of_outputs():
    model, ids = make(MMBertForTokenClassification), make_ids()
    as_tuple = model(ids, return_dict=False, output_hidden_states=True)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], model(ids).logits)
    assert len(as_tuple[1]) == 5
    model.config.return_dict = False
    assert isinstance(model(ids), tuple)
    assert isinstance(make()(ids, return_dict=False), tuple)


def test_attention_weights_sum_to_one_within_the_window():
    model = make(attn_implementation="eager")
    attentions = model(make_ids(), output_attentions=True).attentions
    assert len(attentions) == 4
    for weights, kind in zip(attentions, model.config.layer_types, strict=True):
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 40))
        far = (torch.arange(40)[:, None] - torch.arange(40)).abs() > 8
        assert (weights[..., far] == 0).all() == (kind == "sliding_attention")


@pytest.mark.parametrize("model_class", [MMBertModel, MMBertForMaskedLM, MMBertForSequenceClassification])
def test_saved_models_load_bit_for_bit(model_class, tmp_path):
    model, ids = make(model_class), make_ids()
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded(ids)[0], model(ids)[0])


def test_models_can_be_copied():
    model, ids = make(MMBertForMaskedLM), make_ids()
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_flags():
    model = make(MMBertForMaskedLM)
    assert model.supports_gradient_checkpointing
    assert model.base_model is model.model
    assert model.get_input_embeddings() is model.model.embeddings.tok_embeddings
    assert model.get_output_embeddings() is model.decoder
    classes = {type(module).__name__ for module in model.modules()}
    assert classes >= set(model._no_split_modules)


# Initialisation


def test_fresh_weights_have_the_deviations_of_the_scheme():
    torch.manual_seed(0)
    options = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 2000}
    config = MMBertConfig(**options, num_attention_heads=4, decoder_bias=True, tie_word_embeddings=False)
    model = MMBertForMaskedLM(config)
    root = math.sqrt(2 * 4)
    # A normal distribution cut off at two deviations has 0.8796 of its deviation left.
    expected = {
        "model.embeddings.tok_embeddings.weight": 0.02,
        "model.layers.2.attn.Wqkv.weight": 0.02,
        "model.layers.2.mlp.Wi.weight": 0.02,
        "model.layers.2.attn.Wo.weight": 0.02 / root,
        "model.layers.2.mlp.Wo.weight": 0.02 / root,
        "head.dense.weight": 0.02 / root,
        "decoder.weight": 0.02 / root,
    }
    parameters = dict(model.named_parameters())
    for name, deviation in expected.items():
        assert parameters[name].std().item() == pytest.approx(0.8796 * deviation, rel=0.03), name
        assert parameters[name].abs().max().item() <= 2 * deviation + 1e-6
        assert parameters[name].abs().max().item() > 1.9 * deviation
    assert (model.decoder.bias == 0).all()
    assert (model.head.norm.weight == 1).all()
    classifier = MMBertForSequenceClassification(config).classifier
    assert classifier.weight.std().item() == pytest.approx(0.8796 / 16, rel=0.1)


def test_a_tied_decoder_has_the_deviation_of_the_embeddings():
    model = make(MMBertForMaskedLM, initializer_range=0.02, vocab_size=2000)
    assert model.decoder.weight.std().item() == pytest.approx(0.8796 * 0.02, rel=0.03)


def test_new_heads_on_a_loaded_encoder_are_initialised(tmp_path):
    model = make(MMBertForMaskedLM)
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    classifier = MMBertForSequenceClassification.from_pretrained(tmp_path, num_labels=50)
    assert classifier.classifier.weight.std().item() == pytest.approx(0.8796 / 8, rel=0.1)
    assert (classifier.classifier.bias == 0).all()
    for name, parameter in classifier.model.named_parameters():
        assert torch.equal(parameter, model.model.get_parameter(name)), name


def test_unknown_roles_are_refused():
    with pytest.raises(ValueError, match="role is 'side'"):
        initialization.weight_deviation(MMBertConfig(), "side")


# Documentation


MODULES = """attention.block_local attention.documents attention.masks attention.packed classification encoder feed_forward
heads initialization losses onednn rotary shortcuts""".split()
# Parts of a model, which nobody calls alone.
PARTS = set(
    """Documents MMBertMLP MMBertTaskModel PackedRows block_local_attention can_fuse check_cu_seq_lens empty_buffer
mix_blocks""".split()
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = import_module(f"mmbert_hf.{name}")
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
    documented = [getattr(module, name) for name in module.__all__ if hasattr(getattr(module, name), "__module__")]
    without = {item.__name__ for item in documented if item.__module__ == module.__name__ and ">>>" not in item.__doc__}
    assert without <= PARTS
    assert results.attempted > 0
