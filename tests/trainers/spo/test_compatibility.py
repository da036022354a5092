"""The private parts of TRL that SPOTrainer stands on: as they were when it was written, and all of them watched."""

import ast
import inspect
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
from mmbert_hf.trainers.spo import trainer as module
from mmbert_hf.trainers.spo.compatibility import PRIVATE_PARTS, TESTED_TRL, changed_parts, check_trl
from mmbert_hf.trainers.spo.trainer import SPOTrainer
from packaging.requirements import Requirement
from trl import GRPOTrainer


def test_the_installed_trl_is_as_it_was_tested():
    assert changed_parts() == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            lambda self, inputs, prompts, completions: None,
            "takes self, inputs, prompts, completions, not self, inputs,",
        ),
        (lambda self, prompts, inputs, completions, completion_ids_list: None, "takes self, prompts, inputs, "),
        (lambda self: None, "takes self, not self, inputs, prompts, completions, completion_ids_list"),
    ],
)
def test_a_changed_signature_is_named(monkeypatch, changed, message):
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", changed)
    (found,) = changed_parts()
    assert found.startswith("GRPOTrainer._calculate_rewards ")
    assert message in found


def test_more_parameters_at_the_end_are_no_change(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_get_train_sampler", lambda self, dataset=None, more=None: None)
    assert changed_parts() == []


def test_what_is_gone_is_named(monkeypatch):
    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    assert changed_parts() == ["GRPOTrainer._calculate_rewards is gone"]


def private_methods(names):
    return {name for name in names if name.startswith("_") and not name.startswith("__")} & {
        name for name, value in inspect.getmembers(GRPOTrainer) if inspect.isroutine(value)
    }


def test_everything_that_is_overridden_or_called_is_watched():
    tree = ast.parse(inspect.getsource(module))
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used = private_methods(vars(SPOTrainer)) | private_methods(called)
    assert used == set(PRIVATE_PARTS)


def test_overrides_take_what_is_passed():
    for name in private_methods(vars(SPOTrainer)):
        own = tuple(inspect.signature(getattr(SPOTrainer, name)).parameters)
        assert own[: len(PRIVATE_PARTS[name])] == PRIVATE_PARTS[name], name


@pytest.mark.parametrize("other", ["1.9.3", "1.17.0", "2.0", "0.29.1", "1.10.0rc1", "1.17.0.dev0"])
def test_untested_versions_are_refused(other):
    with pytest.raises(ValueError, match=rf"tested with trl <1.17,>=1.10 .* trl {other} is installed. .*pip install"):
        check_trl(other)


def test_tested_versions_pass():
    for tested in ("1.10.0", "1.16.0", "1.16.3", "1.16.0.dev0", version("trl")):
        check_trl(tested)
    check_trl()


def test_what_is_installed_is_asked(monkeypatch):
    monkeypatch.setattr("mmbert_hf.trainers.spo.compatibility.version", lambda name: {"trl": "9.9"}[name])
    with pytest.raises(ValueError, match=r"trl 9\.9 is installed"):
        check_trl()
    with pytest.raises(ValueError, match=r"trl 9\.9 is installed"):
        SPOTrainer(None)


def test_the_range_is_that_of_the_package():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[3] / "setup.cfg", encoding="utf-8")
    required = [Requirement(line) for line in setup["options"]["install_requires"].split("\n") if line]
    assert [each.specifier for each in required if each.name == "trl"] == [TESTED_TRL]
