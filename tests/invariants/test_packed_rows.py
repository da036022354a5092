"""Documents packed into one row give what they give on their own, and nothing passes from one to another.

Documents are told apart by the bounds that transformers' flattening collator gives, or by positions that restart.
"""

import pytest
import torch
from transformers import AttentionInterface, DataCollatorWithFlattening

LENGTHS = [1, 5, 64, 65, 130, 300, 2]
OPTIONS = {"local_attention": 128}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}


@pytest.fixture(params=["bounds", "positions", "both"])
def told_by(request):
    return request.param


def make_documents(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 120, (length,), generator=generator) for length in lengths]


def make_labels(documents, num_labels=120):
    """Labels for a share of the tokens; never for the first, where the collator puts -100."""
    generator = torch.Generator().manual_seed(2)
    labels = []
    for document in documents:
        chosen = torch.rand(document.shape, generator=generator) < 0.4
        chosen[0] = False
        labels.append(torch.where(chosen, document % num_labels, -100))
    return labels


def pack(documents, told_by, labels=None):
    """One row of all documents, as transformers' collator makes it."""
    collate = DataCollatorWithFlattening(
        return_position_ids=told_by != "bounds", return_flash_attn_kwargs=told_by != "positions"
    )
    features = [{"input_ids": document} for document in documents]
    if labels is not None:
        features = [{**feature, "labels": row} for feature, row in zip(features, labels, strict=True)]
    batch = collate(features)
    if labels is None:
        del batch["labels"]
    return batch


def pack_rows(rows, width):
    """Several packed rows with padding at the right, told apart by positions; and where each document is."""
    shape = len(rows), width
    batch = {name: torch.zeros(shape, dtype=torch.int64) for name in ("input_ids", "attention_mask", "position_ids")}
    places = []
    for row, documents in enumerate(rows):
        start = 0
        for document in documents:
            place = row, slice(start, start + len(document))
            batch["input_ids"][place] = document
            batch["attention_mask"][place] = 1
            batch["position_ids"][place] = torch.arange(len(document))
            places.append(place)
            start += len(document)
    return batch, places


def separately(model, documents):
    return [model(document[None])[0][0] for document in documents]


def change(document):
    """Another token at every place."""
    return 5 + (document - 4) % 115


@pytest.mark.parametrize("task", ["Model", "ForMaskedLM", "ForTokenClassification"])
def test_packed_documents_equal_separate_ones(parity, task, implementation, told_by):
    model = parity.model(task, implementation, **OPTIONS)
    documents = make_documents()
    packed = model(**pack(documents, told_by))[0]
    assert packed.shape[:2] == (1, sum(LENGTHS))
    for got, expected in zip(packed[0].split(LENGTHS), separately(model, documents), strict=True):
        parity.assert_same(got, expected, f"length {len(expected)}")


def test_several_packed_rows_with_padding(parity, implementation):
    model = parity.model("Model", implementation, **OPTIONS)
    rows = [make_documents([1, 5, 64]), make_documents([65, 130], 2), make_documents([300, 2], 3), make_documents([7])]
    batch, places = pack_rows(rows, 303)
    output = model(**batch).last_hidden_state
    documents = [document for row in rows for document in row]
    for place, expected in zip(places, separately(model, documents), strict=True):
        parity.assert_same(output[place], expected, str(place))
    if implementation == "sdpa":
        assert (output[~batch["attention_mask"].bool()] == 0).all()


def test_a_packed_row_may_start_with_padding(parity, implementation):
    model = parity.model("Model", implementation, **OPTIONS)
    documents = make_documents([70, 3, 90])
    batch, places = pack_rows([documents], 170)
    batch = {name: value.roll(7, dims=1) for name, value in batch.items()}
    output = model(**batch).last_hidden_state
    for (row, place), expected in zip(places, separately(model, documents), strict=True):
        got = output[row, place.start + 7 : place.stop + 7]
        parity.assert_same(got, expected, str(place))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(("task", "num_labels"), [("ForMaskedLM", 120), ("ForTokenClassification", 5)])
def test_losses_and_gradients_equal_those_of_separate_documents(
    parity, task, num_labels, implementation, told_by, training
):
    model, other = (parity.model(task, implementation, **OPTIONS, **SMALL).train(training) for _ in range(2))
    documents = make_documents()
    labels = make_labels(documents, num_labels)
    count = sum((row != -100).sum() for row in labels)
    loss = model(**pack(documents, told_by, labels)).loss
    loss.backward()
    total = torch.zeros(())
    for document, row in zip(documents, labels, strict=True):
        part = other(document[None], labels=row[None], num_items_in_batch=count).loss
        part.backward()
        total += part.detach()
    parity.assert_same(loss, total, "loss")
    parity.assert_same_gradients(model, other, tolerance=1e-5)


def test_gradients_of_given_embeddings_equal_those_of_separate_documents(parity, implementation, told_by):
    model = parity.model("Model", implementation, **OPTIONS)
    documents = make_documents()
    inputs = parity.embedded(model, pack(documents, told_by))
    separate = [parity.embedded(model, {"input_ids": document[None]}) for document in documents]
    weights = torch.randn(1, sum(LENGTHS), model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    (model(**inputs).last_hidden_state * weights).sum().backward()
    for one, weight in zip(separate, weights.split(LENGTHS, dim=1), strict=True):
        (model(**one).last_hidden_state * weight).sum().backward()
    expected = torch.cat([one["inputs_embeds"].grad for one in separate], dim=1)
    parity.assert_same(inputs["inputs_embeds"].grad, expected, tolerance=1e-5)


def test_changing_one_document_changes_no_other(parity, implementation, told_by):
    """Not by a single bit."""
    model = parity.model("Model", implementation, **OPTIONS)
    documents = make_documents()
    before = model(**pack(documents, told_by)).last_hidden_state[0].split(LENGTHS)
    for index, document in enumerate(documents):
        changed = [*documents[:index], change(document), *documents[index + 1 :]]
        after = model(**pack(changed, told_by)).last_hidden_state[0].split(LENGTHS)
        for other, (old, new) in enumerate(zip(before, after, strict=True)):
            if other == index:
                assert (old != new).any(dim=-1).all()
            else:
                assert torch.equal(old, new), f"document {other} changed with {index}"


def test_changing_one_document_of_padded_packed_rows_changes_no_other(parity, implementation):
    model = parity.model("Model", implementation, **OPTIONS)
    rows = [make_documents([1, 5, 64]), make_documents([65, 130], 2), make_documents([7])]
    batch, places = pack_rows(rows, 200)
    before = model(**batch).last_hidden_state
    for changed in places:
        ids = batch["input_ids"].clone()
        ids[changed] = change(ids[changed])
        after = model(**{**batch, "input_ids": ids}).last_hidden_state
        for place in places:
            assert torch.equal(before[place], after[place]) == (place != changed)


def test_changing_one_row_of_a_padded_batch_changes_no_other(parity, implementation):
    model = parity.model("Model", implementation, **OPTIONS)
    batch, places = pack_rows([[document] for document in make_documents()], 300)
    del batch["position_ids"]
    before = model(**batch).last_hidden_state
    for changed in places:
        ids = batch["input_ids"].clone()
        ids[changed] = change(ids[changed])
        after = model(**{**batch, "input_ids": ids}).last_hidden_state
        for place in places:
            assert torch.equal(before[place], after[place]) == (place != changed)


def test_no_gradient_crosses_a_document(parity, implementation, told_by):
    model = parity.model("Model", implementation, **OPTIONS)
    inputs = parity.embedded(model, pack(make_documents(), told_by))
    outputs = model(**inputs).last_hidden_state.split(LENGTHS, dim=1)
    for index, output in enumerate(outputs):
        (gradient,) = torch.autograd.grad((output**3).sum(), inputs["inputs_embeds"], retain_graph=True)
        for other, part in enumerate(gradient.split(LENGTHS, dim=1)):
            assert (part == 0).all() if other != index else (part != 0).any(dim=-1).all()


def test_permuting_documents_permutes_outputs(parity, implementation, told_by):
    model = parity.model("Model", implementation, **OPTIONS)
    documents = make_documents()
    expected = model(**pack(documents, told_by)).last_hidden_state[0].split(LENGTHS)
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(4)).tolist()
    permuted = [documents[index] for index in order]
    got = model(**pack(permuted, told_by)).last_hidden_state[0].split([len(document) for document in permuted])
    for index, output in zip(order, got, strict=True):
        parity.assert_same(output, expected[index], f"document {index}")


def test_one_document_is_a_plain_row(parity, implementation, told_by):
    model = parity.model("Model", implementation, **OPTIONS)
    (document,) = make_documents([150])
    packed = model(**pack([document], told_by)).last_hidden_state
    assert torch.equal(packed, model(document[None]).last_hidden_state)


def test_hidden_states_of_packed_rows(parity, implementation, told_by):
    model = parity.model("Model", implementation, **OPTIONS)
    documents = make_documents()
    packed = model(**pack(documents, told_by), output_hidden_states=True).hidden_states
    separate = [model(document[None], output_hidden_states=True).hidden_states for document in documents]
    assert len(packed) == model.config.num_hidden_layers + 1
    for layer, hidden in enumerate(packed):
        expected = torch.cat([one[layer] for one in separate], dim=1)
        parity.assert_same(hidden, expected, f"layer {layer}")


def test_attentions_of_packed_rows(parity, told_by):
    model = parity.model("Model", "eager", **OPTIONS)
    documents = make_documents()
    packed = model(**pack(documents, told_by), output_attentions=True).attentions
    separate = [model(document[None], output_attentions=True).attentions for document in documents]
    assert len(packed) == model.config.num_hidden_layers
    for layer, weights in enumerate(packed):
        for head in range(model.config.num_attention_heads):
            expected = torch.block_diag(*(one[layer][0, head] for one in separate))
            parity.assert_same(weights[0, head], expected, f"layer {layer}")


def flash_reference(module, query, key, value, attention_mask, *, sliding_window, scaling, **kwargs):
    """What flash attention does, by its keywords: documents from bounds, a window that counts the token itself."""
    assert attention_mask is None
    assert query.shape[0] == 1
    bounds = kwargs["cu_seq_lens_q"]
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds, kwargs["cu_seq_lens_k"])
    assert kwargs["max_length_q"] == kwargs["max_length_k"] == bounds.diff().max()
    places = torch.arange(query.shape[2])
    document = torch.bucketize(places, bounds, right=True)
    seen = document[:, None] == document
    if sliding_window is not None:
        seen &= (places[:, None] - places).abs() < sliding_window
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=scaling)
    return mixed.transpose(1, 2), None


def test_flash_attention_gets_bounds_of_real_tokens(parity, told_by):
    AttentionInterface.register("flash_reference", flash_reference)
    model = parity.model("Model", **OPTIONS)
    documents = make_documents()
    batch, _ = pack_rows([documents[:3], documents[3:5], documents[5:]], 303)
    calls = [pack(documents, told_by), batch]
    expected = [model(**call).last_hidden_state for call in calls]
    model.config._attn_implementation = "flash_reference"
    for call, output in zip(calls, expected, strict=True):
        parity.assert_same(model(**call).last_hidden_state, output)


def test_gradient_checkpointing_of_packed_rows(parity, implementation, told_by):
    model, other = (parity.model("ForMaskedLM", implementation, **OPTIONS, **SMALL).train() for _ in range(2))
    # The second is the name in older transformers; in newer ones it warns.
    getattr(other, "activation_checkpointing_enable", other.gradient_checkpointing_enable)()
    documents = make_documents()
    batch = pack(documents, told_by, make_labels(documents))
    for one in (model, other):
        one(**batch).loss.backward()
    parity.assert_same_gradients(model, other)
