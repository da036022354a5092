import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from mmbert_hf import MMBertConfig, MMBertForMaskedLM, export_modernbert
from mmbert_hf.merging import MERGE_FILE, merge_checkpoints
from mmbert_hf.merging import merge as merging
from mmbert_hf.testing import LoopbackHub
from mmbert_hf.weight_files import INDEX, PIECE_ELEMENTS, WEIGHTS

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
CONFIG = MMBertConfig(**SIZES, vocab_size=90, initializer_range=0.08)
NORM = "model.final_norm.weight"


def test_docstring_examples():
    import doctest

    result = doctest.testmod(merging)
    assert result.attempted >= 3
    assert result.failed == 0


def make_model(seed, config=CONFIG, dtype=torch.float32):
    torch.manual_seed(seed)
    return MMBertForMaskedLM(config).to(dtype)


@pytest.fixture
def folders(tmp_path):
    """A base and two checkpoints of the tiny model."""
    paths = [tmp_path / name for name in ("base", "one", "two")]
    for seed, path in enumerate(paths):
        make_model(seed).save_pretrained(path)
    return paths


def write_tensors(folder, tensors, **config):
    """A folder with these weights and a configuration; nothing checks that they make a network."""
    MMBertConfig(**{**SIZES, "vocab_size": 90, **config}).save_pretrained(folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# --- what is computed ---


def test_ties_against_a_case_worked_out_by_hand(tmp_path):
    base = write_tensors(tmp_path / "base", {"w": torch.tensor([[1.0, 1.0], [1.0, 1.0]])})
    # Task vectors (a) [4, -1, 2, 0.5], (b) [-1, -3, 4, 0.25], (c) [3, 2, -5, -0.125]
    a = write_tensors(tmp_path / "a", {"w": torch.tensor([[5.0, 0.0], [3.0, 1.5]])})
    b = write_tensors(tmp_path / "b", {"w": torch.tensor([[0.0, -2.0], [5.0, 1.25]])})
    c = write_tensors(tmp_path / "c", {"w": torch.tensor([[4.0, 3.0], [-4.0, 0.875]])})
    # Density 0.5 keeps two of four: (a) [4, 0, 2, 0], (b) [0, -3, 4, 0], (c) [3, 0, -5, 0]
    # Sums 7, -3, 1, 0 elect +, -, +, +; those that agree: {4, 3}, {-3}, {2, 4}, none
    # Means 3.5, -3, 3, 0 on top of the base
    out = merge_checkpoints([a, b, c], tmp_path / "out", base=base, density=0.5)
    assert load_file(out / WEIGHTS)["w"].tolist() == [[4.5, -2.0], [4.0, 1.0]]
    report = json.loads((out / MERGE_FILE).read_text())
    # Of (c), squared norm 9 + 4 + 25 + 1/64, the trim keeps 34, and the election 3 of 3 and -5
    assert report["checkpoints"][2]["kept"] == pytest.approx(34 / (38 + 1 / 64))
    assert report["checkpoints"][2]["agreed"] == 0.5
    assert report["checkpoints"][2]["norm"] == pytest.approx((38 + 1 / 64) ** 0.5)
    # By frequency the third is +, -, + as well: 2 against 1. With weights 2, 1, 1: (8 + 3) / 2, -3, (4 + 4) / 2
    weighted = merge_checkpoints(
        [a, b, c], tmp_path / "weighted", base=base, density=0.5, weights=[2, 1, 1], majority_sign="frequency"
    )
    assert load_file(weighted / WEIGHTS)["w"].tolist() == [[6.5, -2.0], [5.0, 1.0]]


def test_total_and_frequency_differ_where_one_outweighs_two(tmp_path):
    base = write_tensors(tmp_path / "base", {"w": torch.zeros(1)})
    deltas = [-5.0, 1.0, 2.0]  # sum -2 elects minus; two of three elect plus
    tensors = [write_tensors(tmp_path / str(delta), {"w": torch.tensor([delta])}) for delta in deltas]
    found = [
        load_file(merge_checkpoints(tensors, tmp_path / sign, base=base, density=1.0, majority_sign=sign) / WEIGHTS)[
            "w"
        ].item()
        for sign in ("total", "frequency")
    ]
    assert found == [-5.0, 1.5]


def test_linear_is_the_weighted_mean(tmp_path, folders):
    _, one, two = folders
    merged = load_file(merge_checkpoints([one, two], tmp_path / "out", method="linear", weights=[3, 1]) / WEIGHTS)
    first, second = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
    assert merged.keys() == first.keys()
    for name, value in merged.items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name], rtol=1e-6, atol=1e-8)
    assert not torch.equal(merged["model.layers.1.mlp.Wi.weight"], first["model.layers.1.mlp.Wi.weight"])


def test_linear_does_not_depend_on_the_order(tmp_path, folders):
    weights = [0.2, 0.3, 0.5]
    forth = merge_checkpoints(folders, tmp_path / "forth", method="linear", weights=weights)
    back = merge_checkpoints(folders[::-1], tmp_path / "back", method="linear", weights=weights[::-1])
    for name, value in load_file(forth / WEIGHTS).items():
        torch.testing.assert_close(value, load_file(back / WEIGHTS)[name], rtol=1e-6, atol=1e-8)


def test_ema_counts_the_newest_most(tmp_path):
    steps = [write_tensors(tmp_path / str(step), {"w": torch.full((3,), float(step))}) for step in (1, 2, 4)]
    merged = load_file(merge_checkpoints(steps, tmp_path / "out", method="ema", ema_decay=0.5) / WEIGHTS)["w"]
    # weights 1/4, 1/2, 1 over their sum 7/4: (1/4 + 1 + 4) / (7/4) = 3
    torch.testing.assert_close(merged, torch.full((3,), 3.0))


@pytest.mark.parametrize("options", [{"method": "linear"}, {"method": "ema", "ema_decay": 0.3}])
def test_one_checkpoint_is_itself(tmp_path, folders, options):
    out = merge_checkpoints(folders[:1], tmp_path / "out", **options)
    for name, value in load_file(folders[0] / WEIGHTS).items():
        assert torch.equal(load_file(out / WEIGHTS)[name], value)


def test_one_checkpoint_with_full_density_is_itself_up_to_rounding(tmp_path, folders):
    base, one, _ = folders
    out = load_file(merge_checkpoints([one], tmp_path / "out", base=base, density=1.0) / WEIGHTS)
    for name, value in load_file(one / WEIGHTS).items():
        assert (out[name] - value).abs().max() <= 2**-24  # half a unit in the last place of numbers below 1


def test_a_tensor_in_many_pieces_is_merged_as_in_one(tmp_path, monkeypatch, folders):
    base, *checkpoints = folders
    whole = load_file(merge_checkpoints(checkpoints, tmp_path / "whole", base=base, density=0.3) / WEIGHTS)
    monkeypatch.setattr("mmbert_hf.weight_files.PIECE_ELEMENTS", 200)
    pieces = load_file(merge_checkpoints(checkpoints, tmp_path / "pieces", base=base, density=0.3) / WEIGHTS)
    assert PIECE_ELEMENTS > 48 * 64 > 200
    for name, value in whole.items():
        assert torch.equal(pieces[name], value), name


# --- folders ---


def test_the_model_comes_back_and_computes_the_same(tmp_path, folders):
    _, one, two = folders
    out = merge_checkpoints([one, two], tmp_path / "out", method="linear", weights=[1, 0])
    input_ids = torch.tensor([[2, 17, 4, 18, 1]])
    expected = MMBertForMaskedLM.from_pretrained(one).eval()(input_ids).logits
    model, report = MMBertForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(model.eval()(input_ids).logits, expected)
    assert not torch.equal(MMBertForMaskedLM.from_pretrained(two).eval()(input_ids).logits, expected)


def test_modernbert_folders_and_mixtures_of_both_load_with_auto_classes(tmp_path, folders):
    base, one, two = folders
    native = export_modernbert(one, tmp_path / "native")
    out = merge_checkpoints([native, two], tmp_path / "out", base=export_modernbert(base, tmp_path / "nb"), density=0.5)
    ours = merge_checkpoints([one, two], tmp_path / "ours", base=base, density=0.5)
    models = [AutoModelForMaskedLM.from_pretrained(folder) for folder in (out, ours)]
    assert [model.config.model_type for model in models] == ["modernbert", "mmbert"]
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name])


def test_sharded_checkpoints_and_results_equal_whole_ones(tmp_path, folders):
    base, one, two = folders
    whole = load_file(merge_checkpoints([one, two], tmp_path / "whole", base=base, density=0.4) / WEIGHTS)
    sharded = tmp_path / "sharded"
    MMBertForMaskedLM.from_pretrained(one).save_pretrained(sharded, max_shard_size="20KB")
    assert (sharded / INDEX).is_file()
    out = merge_checkpoints([sharded, two], tmp_path / "out", base=base, density=0.4, max_shard_size="20KB")
    index = json.loads((out / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(path.name for path in out.glob("*.safetensors")) == files
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    found = {name: value for file in files for name, value in load_file(out / file).items()}
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    loaded = MMBertForMaskedLM.from_pretrained(out).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in whole.items())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_another_dtype_is_written_and_said(tmp_path, folders, dtype):
    out = merge_checkpoints(folders, tmp_path / "out", method="linear", dtype=dtype)
    expected = getattr(torch, str(dtype).removeprefix("torch."))
    assert {value.dtype for value in load_file(out / WEIGHTS).values()} == {expected}
    assert MMBertForMaskedLM.from_pretrained(out).dtype == expected


def test_arithmetic_is_in_float32(tmp_path):
    # In bfloat16, 256 + 1 is 256; the mean of 256, 1, 1, 1, 1 would come out as 51.25, not 52.
    values = [256.0, 1.0, 1.0, 1.0, 1.0]
    made = [
        write_tensors(tmp_path / str(index), {"w": torch.tensor([value], dtype=torch.bfloat16)})
        for index, value in enumerate(values)
    ]
    out = merge_checkpoints(made, tmp_path / "out", method="linear", dtype="float32")
    assert load_file(out / WEIGHTS)["w"].item() == pytest.approx(52.0, rel=1e-6)


def test_tokenizer_and_configuration_come_along(tmp_path, folders, tokenizer):
    base, one, two = folders
    tokenizer.save_pretrained(two)
    out = merge_checkpoints([one, two], tmp_path / "out", base=base, density=0.5)
    assert (out / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()
    assert MMBertConfig.from_pretrained(out).rope_parameters == CONFIG.rope_parameters


def test_padding_and_truncation_are_no_part_of_a_tokenizer(tmp_path, folders, tokenizer):
    for folder in folders[:2]:
        tokenizer.save_pretrained(folder)
    truncation = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    edit_json(folders[0] / "tokenizer.json", truncation=truncation)
    merge_checkpoints(folders[:2], tmp_path / "out", method="linear")


def test_a_tied_decoder_may_be_there_or_not(tmp_path, folders):
    base, one, two = folders
    embeddings = "model.embeddings.tok_embeddings.weight"
    expected = load_file(merge_checkpoints([one, two], tmp_path / "plain", base=base, density=0.5) / WEIGHTS)
    edit_tensors(one, lambda tensors: tensors.update({"decoder.weight": tensors[embeddings].clone()}))
    edit_tensors(two, lambda tensors: tensors.update({"decoder.weight": tensors.pop(embeddings)}))
    found = load_file(merge_checkpoints([one, two], tmp_path / "tied", base=base, density=0.5) / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    edit_tensors(one, lambda tensors: tensors["decoder.weight"][0].add_(1))
    with pytest.raises(ValueError, match=r"one: config.json says that decoder.weight is tied"):
        merge_checkpoints([one, two], tmp_path / "untied", base=base, density=0.5)


def test_integers_are_copied_when_equal_and_refused_otherwise(tmp_path):
    made = [
        write_tensors(tmp_path / str(index), {"w": torch.full((2,), float(index)), "count": torch.tensor(7)})
        for index in range(2)
    ]
    out = load_file(merge_checkpoints(made, tmp_path / "out", method="linear") / WEIGHTS)
    assert out["count"].item() == 7
    assert out["count"].dtype == torch.int64
    edit_tensors(made[1], lambda tensors: tensors["count"].add_(1))
    with pytest.raises(ValueError, match=r"count is I64 and differs between .*0 and .*1"):
        merge_checkpoints(made, tmp_path / "again", method="linear")


def test_checkpoints_of_the_hub(tmp_path, folders):
    _, one, two = folders
    with LoopbackHub() as hub:
        script = """
            import sys
            from huggingface_hub import HfApi
            from mmbert_hf.merging import merge_checkpoints
            one, two, out = sys.argv[1:]
            api = HfApi()
            api.create_repo("loopback/decays")
            api.create_branch("loopback/decays", branch="eng")
            api.upload_folder(repo_id="loopback/decays", folder_path=one)
            api.upload_folder(repo_id="loopback/decays", folder_path=two, revision="eng")
            merge_checkpoints(["loopback/decays", "loopback/decays@eng"], out, method="linear", weights=[1, 3])
            try:
                merge_checkpoints(["loopback/nothing"], out + "2", method="linear")
            except OSError as error:
                print(type(error).__name__)
        """
        environment = {**os.environ, **hub.environment(), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", textwrap.dedent(script), one, two, tmp_path / "out"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "RepositoryNotFoundError"
    merged = load_file(tmp_path / "out" / WEIGHTS)[NORM]
    expected = 0.25 * load_file(one / WEIGHTS)[NORM] + 0.75 * load_file(two / WEIGHTS)[NORM]
    torch.testing.assert_close(merged, expected)


# --- memory ---

MEASURED = """
import json, sys, threading
from pathlib import Path
import torch
import mmbert_hf.weight_files
from mmbert_hf.merging import merge_checkpoints

def anonymous():  # bytes; pages that are mapped from files are the kernel's to drop
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

torch.set_num_threads(1)
mmbert_hf.weight_files.PIECE_ELEMENTS = 2**16
small, large, out = map(Path, sys.argv[1:])
def merge(folder, name, size):
    names = [folder / part for part in ("0", "1", "2")]
    merge_checkpoints(names, out / f"merged-{name}", base=folder / "base", density=0.5, max_shard_size=size)
merge(small, "small", "1MB")  # code pages and buffers are there
before, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous() - before)
watcher = threading.Thread(target=watch)
watcher.start()
merge(large, "large", "9MB")
done.set()
watcher.join()
print(json.dumps(peak))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc/self/status")
def test_memory_is_one_shard_and_a_few_pieces(tmp_path):
    tensor_bytes, num_tensors = 8 * 2**20, 3
    for folder, rows, tensors in (("small", 16, 1), ("large", 2048, num_tensors)):
        for name in ("base", "0", "1", "2"):
            weights = {f"w{index}": torch.rand(rows, 1024) for index in range(tensors)}
            write_tensors(tmp_path / folder / name, weights)
    command = [sys.executable, "-c", MEASURED, tmp_path / "small", tmp_path / "large", tmp_path]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    peak_bytes = json.loads(done.stdout.splitlines()[-1])
    # The output tensor and its copy in the writer. One checkpoint is 3 tensors, all that is read 12.
    assert tensor_bytes < peak_bytes < 2.75 * tensor_bytes, peak_bytes / tensor_bytes


# --- what is refused ---


def test_another_network_is_refused_with_the_difference(tmp_path, folders):
    other = tmp_path / "short"
    make_model(3, CONFIG.with_rope_theta(160_000, 10_000)).save_pretrained(other)
    with pytest.raises(ValueError, match=r"different networks: rope_parameters is .*160000.* and .*10000\.0"):
        merge_checkpoints([folders[0], other], tmp_path / "out", method="linear")
    assert not (tmp_path / "out").exists()


def test_dropout_is_no_difference(tmp_path, folders):
    edit_json(folders[1] / "config.json", attention_output_dropout=0.1, mlp_dropout=0.1)
    merge_checkpoints(folders[:2], tmp_path / "out", method="linear")


def test_another_tokenizer_is_refused(tmp_path, folders, tokenizer):
    for folder in folders[:2]:
        tokenizer.save_pretrained(folder)
    path = folders[1] / "tokenizer.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "model": {**values["model"], "merges": values["model"]["merges"][:-1]}}))
    with pytest.raises(ValueError, match=r"tokenizers of .*base and .*one differ in model of tokenizer.json"):
        merge_checkpoints(folders[:2], tmp_path / "out", method="linear")


def test_tensors_that_do_not_fit_are_refused(tmp_path, folders):
    base, one, two = folders
    edit_tensors(one, lambda tensors: tensors.pop(NORM))
    with pytest.raises(ValueError, match=rf"base has {NORM}, which .*one has not"):
        merge_checkpoints([base, one], tmp_path / "out", method="linear")
    edit_tensors(two, lambda tensors: tensors.update({NORM: torch.ones(16)}))
    with pytest.raises(ValueError, match=rf"{NORM} is \[32\] F32 in .*base and \[16\] F32 in .*two"):
        merge_checkpoints([base, two], tmp_path / "out", method="linear")


def test_mixed_types_need_a_dtype(tmp_path, folders):
    base, one, two = folders
    edit_tensors(two, lambda tensors: tensors.update({NORM: tensors[NORM].bfloat16()}))
    with pytest.raises(ValueError, match=rf"{NORM} is BF16 in some and F32 in other .* pass dtype"):
        merge_checkpoints([one, two], tmp_path / "out", base=base, density=0.5)
    merge_checkpoints([one, two], tmp_path / "out", base=base, density=0.5, dtype="float32")


def test_a_broken_run_is_refused_and_nothing_is_left(tmp_path, folders):
    edit_tensors(folders[2], lambda tensors: tensors[NORM][3].fill_(float("nan")))
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=rf"two: {NORM} holds NaN"):
        merge_checkpoints(folders[1:], tmp_path / "out", base=folders[0], density=0.5)
    assert listing(tmp_path) == before


def test_a_result_too_large_for_its_type_is_refused(tmp_path):
    made = write_tensors(tmp_path / "made", {"w": torch.tensor([1e6])})
    with pytest.raises(ValueError, match=r"the merged w does not fit into torch.float16; pass dtype"):
        merge_checkpoints([made], tmp_path / "out", method="linear", dtype="float16")


def test_damaged_and_missing_files(tmp_path, folders):
    base, one, two = folders
    content = (one / WEIGHTS).read_bytes()
    (one / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"one: model.safetensors is missing or damaged"):
        merge_checkpoints([base, one], tmp_path / "out", method="linear")
    (two / WEIGHTS).rename(two / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"two has no model.safetensors; load it .* save_pretrained"):
        merge_checkpoints([base, two], tmp_path / "out", method="linear")
    with pytest.raises(FileNotFoundError, match=r"is not a folder; give a folder or a Hub name"):
        merge_checkpoints([tmp_path / "nowhere"], tmp_path / "out", method="linear")
    (two / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"two has no config.json"):
        merge_checkpoints([base, two], tmp_path / "out", method="linear")
    edit_json(base / "config.json", model_type="bert")
    with pytest.raises(ValueError, match=r"base has model_type 'bert'; it must be one of mmbert, modernbert"):
        merge_checkpoints([base], tmp_path / "out", method="linear")


def test_an_index_that_disagrees_with_its_files(tmp_path):
    sharded = tmp_path / "sharded"
    make_model(0).save_pretrained(sharded, max_shard_size="20KB")
    index = json.loads((sharded / INDEX).read_text())
    file = index["weight_map"].pop(NORM)
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{INDEX} and {file} disagree about \['{NORM}'\]"):
        merge_checkpoints([sharded], tmp_path / "out", method="linear")
    (sharded / file).unlink()
    with pytest.raises(OSError, match=rf"{file} is missing or damaged"):
        merge_checkpoints([sharded], tmp_path / "out", method="linear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.5}, "method 'ties' needs base"),
        ({"base": "b"}, "method 'ties' needs density"),
        ({"base": "b", "density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"base": "b", "density": 0.5, "majority_sign": "x"}, "majority_sign is 'x'"),
        ({"method": "linear", "density": 0.5}, "method 'linear' takes no density, got 0.5"),
        ({"method": "linear", "weights": [1.0]}, r"2 checkpoints need as many finite weights, got \[1.0\]"),
        ({"method": "linear", "weights": [1, float("nan")]}, "finite weights"),
        ({"method": "linear", "weights": [2, -1]}, "must not be negative"),
        ({"method": "linear", "weights": [0, 0]}, "not all 0"),
        ({"method": "ema"}, "method 'ema' needs ema_decay"),
        ({"method": "ema", "ema_decay": 1.0}, r"ema_decay must be in \(0, 1\), got 1.0"),
        ({"method": "ema", "ema_decay": 0.5, "weights": [1, 1]}, "takes no weights"),
        ({"method": "slerp"}, "it must be one of 'ties', 'linear', 'ema'"),
        ({"method": "linear", "dtype": "int8"}, "dtype is 'int8'; it must be one of float32, bfloat16, float16"),
        ({"method": "linear", "max_shard_size": "5 apples"}, "not supported"),
    ],
)
def test_options_that_do_not_fit(tmp_path, folders, options, message):
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(folders[1:], tmp_path / "out", **options)
    assert listing(tmp_path) == before


def test_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="name at least one"):
        merge_checkpoints([], tmp_path / "out", method="linear")


def test_what_is_there_is_kept_unless_replaced(tmp_path, folders):
    out = tmp_path / "out"
    MMBertForMaskedLM.from_pretrained(folders[0]).save_pretrained(out, max_shard_size="20KB")
    (out / "README.md").write_text("mine")
    before = listing(out)
    with pytest.raises(FileExistsError, match="is not empty"):
        merge_checkpoints(folders, out, method="linear")
    assert listing(out) == before
    merge_checkpoints(folders, out, method="linear", overwrite=True)
    assert listing(out) == ["README.md", "config.json", MERGE_FILE, WEIGHTS]
    with pytest.raises(ValueError, match="is one of the checkpoints"):
        merge_checkpoints([out], out, method="linear", overwrite=True)
