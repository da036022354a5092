"""Where documents lie, against plain loops over the places of the batch."""

from itertools import groupby, pairwise

import pytest
import torch

from mmbert_hf.attention.documents import (
    check_cu_seq_lens,
    document_ids,
    find_documents,
    has_several,
    positions_within,
)

SEEDS = range(4)
BOUNDS = [0, 5, 5, 7, 7, 7, 19, 20, 31, 31]  # lengths unsorted, some documents empty, also the last


def random_mask(kind, seed, batch=6, length=13):
    """A mask [B, L], nonzero at real tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, length + 1, (batch, 1), generator=generator)
    places = torch.arange(length)
    if kind == "right":
        return (places < lengths).long()
    if kind == "left":
        return (places >= length - lengths).long()
    if kind == "interior":
        mask = (torch.rand(batch, length, generator=generator) < 0.7).long()
        mask[1:2] = 0
        return mask
    return torch.full((batch, length), int(kind == "none"))


KINDS = ["right", "left", "interior", "none", "everything"]


def plain_documents(shape, mask=None, positions=None, bounds=None):
    """The flat places of each document's tokens, in the order of the batch."""
    batch, length = shape
    documents = []
    for row in range(batch):
        opened, last = 0, None
        for place in range(length):
            if mask is not None and mask[row, place] == 0:
                continue
            if bounds is not None:
                number = sum(bound <= place for bound in bounds)
            else:
                opened += positions is not None and int(positions[row, place]) == 0
                number = opened
            if number != last:
                documents.append([])
                last = number
            documents[-1].append(row * length + place)
    return documents


def assert_found(found, shape, expected, positions, sort=True):
    """`found` are the documents `expected`, and all that is said of them is so."""
    length = shape[1]
    expected = sorted(expected, key=len) if sort else expected
    tokens = [place for document in expected for place in document]
    indices = torch.arange(shape[0] * length) if found.indices is None else found.indices
    assert indices.tolist() == tokens
    assert len(set(tokens)) == len(tokens) == found.num_tokens
    lengths = [len(document) for document in expected]
    assert [length for length in found.lengths if length > 0] == lengths
    assert found.cu_seqlens.dtype == torch.int32
    assert found.cu_seqlens.tolist() == [sum(found.lengths[:number]) for number in range(len(found.lengths) + 1)]
    assert found.max_length == max(lengths, default=0)
    assert found.groups == [(len(list(run)), size) for size, run in groupby(lengths)]
    assert found.places.tolist() == [token % length for token in tokens]
    assert found.positions.tolist() == [int(positions.flatten()[token]) for token in tokens]
    assert_distances(found, expected)


def assert_distances(found, expected):
    """Keys tell places apart within documents, and documents from each other; gaps are told of."""
    length = found.shape[1]
    number = [index for index, document in enumerate(expected) for _ in document]
    keys, places = found.keys.tolist(), found.places.tolist()
    farthest = 0
    for i, key in enumerate(keys):
        for j, other in enumerate(keys):
            distance = abs(places[i] - places[j])
            if number[i] == number[j]:
                assert abs(key - other) == distance
                farthest = max(farthest, distance)
            else:
                assert abs(key - other) > length + 2**20
    gaps = any(later - earlier != 1 for one in expected for earlier, later in pairwise(one))
    assert found.has_gaps == gaps
    for reach in (0, farthest - 1, farthest, length):
        if reach >= 0:
            assert found.fit_into(reach) == (farthest <= reach and not gaps)


def arange_BL(shape):
    return torch.arange(shape[1]).expand(shape)


# Padded rows


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_padded_rows(kind, seed, sort):
    mask = random_mask(kind, seed)
    found = find_documents(tuple(mask.shape), attention_mask=mask, sort=sort)
    assert_found(found, mask.shape, plain_documents(mask.shape, mask), arange_BL(mask.shape), sort)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_masks_of_any_dtype(dtype):
    mask = random_mask("interior", 0)
    found = find_documents(tuple(mask.shape), attention_mask=mask.to(dtype))
    assert_found(found, mask.shape, plain_documents(mask.shape, mask), arange_BL(mask.shape))


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (3, 0), (0, 4)])
def test_without_a_mask_nothing_is_moved(shape):
    found = find_documents(shape)
    assert found.indices is None
    assert_found(found, shape, plain_documents(shape), arange_BL(shape))


@pytest.mark.parametrize("sort", [True, False])
def test_a_mask_of_ones_moves_nothing(sort):
    assert find_documents((3, 4), attention_mask=torch.ones(3, 4), sort=sort).indices is None


def test_rows_sorted_by_length_already_keep_their_order():
    mask = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1]])
    assert find_documents((4, 3), attention_mask=mask).indices.tolist() == [1, 3, 4, 7, 8, 9, 10, 11]


def test_given_positions_that_open_nothing():
    positions = torch.arange(13)[None] * 3 + 7
    mask = random_mask("left", 1)
    found = find_documents(tuple(mask.shape), attention_mask=mask, position_ids=positions)
    assert_found(found, mask.shape, plain_documents(mask.shape, mask), positions.expand(mask.shape))


# Packed rows


def random_positions(seed, batch=4, length=17):
    """Rows of documents of random lengths, positions [B, L] that restart."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch):
        lengths = torch.randint(1, 8, (length,), generator=generator).tolist()
        rows.append(torch.cat([torch.arange(size) for size in lengths])[:length])
    return torch.stack(rows)


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_positions_that_restart(seed, sort):
    positions = random_positions(seed)
    found = find_documents(tuple(positions.shape), position_ids=positions, sort=sort)
    assert_found(found, positions.shape, plain_documents(positions.shape, positions=positions), positions, sort)


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_positions_that_restart_under_a_mask(kind, seed, sort):
    positions = random_positions(seed)
    mask = random_mask(kind, seed, *positions.shape)
    positions = positions * mask  # padding is often numbered 0: it must open nothing
    found = find_documents(tuple(mask.shape), attention_mask=mask, position_ids=positions, sort=sort)
    assert_found(found, mask.shape, plain_documents(mask.shape, mask, positions), positions, sort)


def test_one_row_of_positions_serves_all_rows():
    positions = random_positions(0, batch=1)
    found = find_documents((3, 17), position_ids=positions)
    expanded = positions.expand(3, 17)
    assert_found(found, (3, 17), plain_documents((3, 17), positions=expanded), expanded)


def within(bounds):
    return torch.cat([torch.arange(end - start) for start, end in pairwise(bounds)])[None]


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bounds(sort, dtype):
    shape = (1, BOUNDS[-1])
    bounds = torch.tensor(BOUNDS, dtype=dtype)
    found = find_documents(shape, cu_seq_lens=bounds, sort=sort)
    assert_found(found, shape, plain_documents(shape, bounds=BOUNDS), within(BOUNDS), sort)
    if not sort:
        assert found.indices is None
        assert found.cu_seqlens.tolist() == BOUNDS  # empty documents too: nothing is read to find them


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_under_a_mask(kind, sort):
    shape = (1, BOUNDS[-1])
    mask = random_mask(kind, 5, *shape)
    found = find_documents(shape, attention_mask=mask, cu_seq_lens=torch.tensor(BOUNDS), sort=sort)
    assert_found(found, shape, plain_documents(shape, mask, bounds=BOUNDS), within(BOUNDS), sort)


def test_bounds_tell_the_documents_and_positions_the_rotation():
    shape = (1, BOUNDS[-1])
    positions = torch.arange(31)[None] % 4  # restart elsewhere
    found = find_documents(shape, position_ids=positions, cu_seq_lens=torch.tensor(BOUNDS))
    assert_found(found, shape, plain_documents(shape, bounds=BOUNDS), positions)


def test_a_given_length_is_taken_without_reading_the_bounds():
    bounds = torch.tensor(BOUNDS)
    found = find_documents((1, 31), cu_seq_lens=bounds, max_length=12, sort=False)
    assert found.max_length == 12
    assert "lengths" not in vars(found)
    assert find_documents((1, 31), cu_seq_lens=bounds, sort=False).max_length == 12


def test_bounds_without_values_are_not_read():
    """On an accelerator that would wait for the device; a tensor without values cannot be read at all."""
    bounds = torch.empty(4, dtype=torch.int32, device="meta")
    check_cu_seq_lens(bounds, (1, 9))
    found = find_documents((1, 9), device="meta", cu_seq_lens=bounds, max_length=5, sort=False)
    assert (found.max_length, found.num_tokens, found.has_gaps) == (5, 9, False)


def test_a_wrong_longest_length_does_not_lift_the_window():
    found = find_documents((1, 9), cu_seq_lens=torch.tensor([0, 9]), max_length=2, sort=False)
    assert found.max_length == 2  # what the caller said, for kernels that take it
    assert found.fit_into(8)
    assert not found.fit_into(7)


@pytest.mark.parametrize(
    ("bounds", "shape", "message"),
    [
        ([0, 4], (2, 2), r"is \(2,\) and the batch \(2, 2\); packed input is one row"),
        ([0], (1, 4), r"is \(1,\) and the batch \(1, 4\).*cu_seq_lens_q \[documents \+ 1\]"),
        ([[0, 4]], (1, 4), r"is \(1, 2\) and the batch"),
        ([1, 4], (1, 4), "runs from 1 to 4; it must grow from 0 to the length of the row, 4"),
        ([0, 3], (1, 4), "runs from 0 to 3; it must grow from 0 to the length of the row, 4"),
        ([0, 5], (1, 4), "runs from 0 to 5; it must grow from 0"),
        ([0, 3, 2, 4], (1, 4), "runs from 0 to 4 and falls after entry 1; it must grow from 0"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(bounds, shape, message):
    with pytest.raises(ValueError, match=message):
        find_documents(shape, cu_seq_lens=torch.tensor(bounds))


def test_bounds_that_are_no_tensor_are_refused():
    with pytest.raises(TypeError, match="cu_seq_lens_q is a list; pass an integer tensor"):
        find_documents((1, 4), cu_seq_lens=[0, 4])


# The map between padded and packed


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    mask = random_mask(kind, 2)
    found = find_documents(tuple(mask.shape), attention_mask=mask)
    values = torch.randn(*mask.shape, 2, 3, requires_grad=True)
    packed = found.unpad(values)
    expected = [token for one in sorted(plain_documents(mask.shape, mask), key=len) for token in one]
    assert torch.equal(packed, values.flatten(0, 1)[expected])
    returned = found.pad(packed)
    wide_mask = mask[..., None, None].expand_as(values)
    assert torch.equal(returned, values * wide_mask)
    returned.sum().backward()
    assert torch.equal(values.grad, wide_mask.to(values.dtype))


def test_tokens_and_vectors_are_picked_alike():
    mask = random_mask("interior", 3)
    found = find_documents(tuple(mask.shape), attention_mask=mask)
    ids = torch.arange(mask.numel()).view(mask.shape)
    assert torch.equal(found.unpad(ids), found.indices)
    assert torch.equal(found.pad(found.unpad(ids)), ids * mask)


def test_moving_to_a_device():
    mask = random_mask("interior", 0)
    found = find_documents(tuple(mask.shape), attention_mask=mask)
    assert found.to("cpu") is found
    moved = found.to("meta", non_blocking=True)
    for name in ("indices", "cu_seqlens", "positions", "places"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(found, name).shape
    assert moved.shape == found.shape
    whole = find_documents((1, 31), cu_seq_lens=torch.tensor(BOUNDS), max_length=12, sort=False).to("meta")
    assert whole.indices is None
    assert whole.max_length == 12


# Numbers of documents


@pytest.mark.parametrize("seed", SEEDS)
def test_document_ids_tell_documents_apart(seed):
    positions = random_positions(seed)
    mask = random_mask("interior", seed, *positions.shape)
    ids = document_ids(tuple(mask.shape), positions * mask, attention_mask=mask)
    assert (ids.diff(dim=1) >= 0).all()
    found = {}
    for row, place in mask.nonzero().tolist():
        found.setdefault((row, int(ids[row, place])), []).append(row * mask.shape[1] + place)
    assert list(found.values()) == plain_documents(mask.shape, mask, positions * mask)


def test_nothing_said_gives_no_ids():
    assert document_ids((2, 3)) is None
    assert document_ids((2, 3), attention_mask=torch.ones(2, 3)) is None


@pytest.mark.parametrize(
    ("ids", "mask", "expected"),
    [
        ([[1, 1, 1], [2, 2, 2]], None, False),
        ([[1, 1, 1], [1, 1, 2]], None, True),
        ([[0, 0, 1], [0, 0, 0]], [[1, 1, 0], [1, 1, 1]], False),
        ([[0, 1, 2], [0, 0, 0]], [[0, 1, 1], [1, 1, 1]], True),
        ([[0, 1, 2], [3, 3, 4]], [[0, 0, 0], [1, 1, 0]], False),
        ([[0, 1, 2]], [[0, 0, 0]], False),
    ],
)
def test_has_several(ids, mask, expected):
    assert has_several(torch.tensor(ids), None if mask is None else torch.tensor(mask)) is expected


def test_positions_within_documents():
    assert torch.equal(positions_within(torch.tensor(BOUNDS, dtype=torch.int32), 31), within(BOUNDS))
