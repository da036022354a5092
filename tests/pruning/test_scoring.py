"""The pass over the triplets: batches, blocks, interruption. See tests/invariants for two processes."""

import pytest

from mmbert_hf.pruning import scoring
from mmbert_hf.pruning.scoring import blocks_of_layers
from mmbert_hf.pruning.targets import find_targets


def test_blocks_are_whole_layers_that_fit(bert_embedder):
    targets = find_targets(bert_embedder)
    layer_gb = 8 * (4 * 32 * 32 + 2 * 32 * 48) / 1e9
    assert [len(group) for group in blocks_of_layers(bert_embedder, targets, None)] == [18]
    assert [len(group) for group in blocks_of_layers(bert_embedder, targets, 2.5 * layer_gb)] == [12, 6]
    assert [len(group) for group in blocks_of_layers(bert_embedder, targets, layer_gb)] == [6, 6, 6]
    with pytest.raises(ValueError, match=r"too little for one transformer block, whose sums take 5\.73e-05 GB"):
        blocks_of_layers(bert_embedder, targets, 0.9 * layer_gb)


@pytest.mark.parametrize("family", ["bert", "modernbert", "mmbert", "qwen3"])
def test_blocks_and_batches_do_not_change_the_result(family, request, collect, assert_same, tmp_path):
    model = request.getfixturevalue(f"{family}_embedder")
    straight = collect(model)
    assert_same(collect(model, batch_size=5), straight, rtol=1e-5)
    per_layer = 1.01 * 8 * max(4 * 32 * 32 + 3 * 32 * 48, 6 * 32 * 48) / 1e9
    in_blocks = collect(model, tmp_path / "blocks", max_memory_gb=per_layer)
    assert len(list((tmp_path / "blocks").glob("domain-*"))) > 1
    assert_same(in_blocks, straight, rtol=1e-5)


@pytest.mark.parametrize("stop_at", [1, 2, 4, 5])
def test_interrupted_scoring_goes_on_and_gives_the_same_bits(
    bert_embedder, collect, assert_same, tmp_path, monkeypatch, stop_at
):
    straight = collect(bert_embedder, tmp_path / "straight")
    add_batch, calls = scoring.add_batch, []

    def stopping(*args, **options):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(args[2])
        return add_batch(*args, **options)

    monkeypatch.setattr(scoring, "add_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        collect(bert_embedder, tmp_path / "stopped", save_seconds=0)
    before = len(calls)
    monkeypatch.setattr(scoring, "add_batch", lambda *args, **options: calls.append(1) or add_batch(*args, **options))
    resumed = collect(bert_embedder, tmp_path / "stopped", save_seconds=0)
    assert len(calls) == 6, "no batch is done twice, none is left out"
    assert before < 6
    assert_same(resumed, straight)
    assert not list((tmp_path / "stopped").glob("*rank*")), "what was kept for resuming is gone"


def test_another_grouping_never_takes_the_files_of_the_first(
    bert_embedder, collect, assert_same, tmp_path, monkeypatch
):
    straight = collect(bert_embedder)
    layer_gb = 1.01 * 8 * (4 * 32 * 32 + 2 * 32 * 48) / 1e9

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collect(bert_embedder, tmp_path, max_memory_gb=layer_gb)
    assert_same(collect(bert_embedder, tmp_path, max_memory_gb=2 * layer_gb), straight, rtol=1e-5)


def interrupted(collect, model, folder, monkeypatch, **options):
    """Score until one batch is done and kept."""
    add_batch, calls = scoring.add_batch, []

    def stopping(*args, **given):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return add_batch(*args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "add_batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            collect(model, folder, save_seconds=0, **options)
    (kept,) = folder.glob("*rank*")
    return kept


def test_another_batch_size_with_as_many_batches_starts_anew(
    bert_embedder, collect, assert_same, tmp_path, monkeypatch, caplog
):
    """Five triplets are two batches of at most three and of at most four, and the first batches differ."""
    interrupted(collect, bert_embedder, tmp_path, monkeypatch, batch_size=3)
    resumed = collect(bert_embedder, tmp_path, batch_size=4)
    assert "is of another batch size" in caplog.text
    assert_same(resumed, collect(bert_embedder), rtol=1e-5)


def test_damaged_sums_are_computed_anew(bert_embedder, collect, assert_same, tmp_path, monkeypatch, caplog):
    kept = interrupted(collect, bert_embedder, tmp_path, monkeypatch)
    kept.write_bytes(kept.read_bytes()[:100])
    assert_same(collect(bert_embedder, tmp_path), collect(bert_embedder), rtol=1e-5)
    assert "is damaged" in caplog.text


def test_a_full_disk_while_it_says_what_it_scores(bert_embedder, collect, tmp_path, monkeypatch):
    from pathlib import Path

    def fails(path, text, **_):
        path.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fails)
        with pytest.raises(OSError, match="No space left"):
            collect(bert_embedder, tmp_path)
    collect(bert_embedder, tmp_path)


def test_batch_size_is_checked(bert_embedder, collect):
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        collect(bert_embedder, batch_size=0)
