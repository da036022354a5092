"""What is published says nothing of this computer, and is the same file each time."""

import doctest

import torch

from mmbert_hf.hub.fetching import fetch_file
from mmbert_hf.pruning import PruningReport, publishing, result
from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.publishing import published_report


def test_docstring_examples():
    assert doctest.testmod(publishing).failed == 0
    assert doctest.testmod(result).failed == 0


def test_a_parent_on_the_hub_is_named_and_a_folder_is_not(tmp_path, monkeypatch):
    assert published_report(PruningReport({}, base_model="owner/name")).base_model == "owner/name"
    for local in ("/home/me/model", "./owner/name", "name", "", None):
        assert published_report(PruningReport({}, base_model=local)).base_model is None
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert published_report(PruningReport({}, base_model="owner/name")).base_model is None, "a folder of that name"


def test_the_same_mask_is_the_same_file(tmp_path):
    mask = PruningMask({f"layers.{number}.Wo": torch.rand(3, 5) > 0.5 for number in range(3)})
    written = set()
    for number in range(12):
        path = tmp_path / str(number)
        mask.save(path)
        written.add(path.read_bytes())
        assert PruningMask.load(path) == mask
    assert len(written) == 1


def test_a_file_that_is_not_there(tmp_path):
    assert fetch_file(str(tmp_path), "pruning.json") is None
    (tmp_path / "pruning.json").write_text("{}")
    assert fetch_file(str(tmp_path), "pruning.json") == tmp_path / "pruning.json"
