"""Arguments: what is refused and why, the published method, files and flags, and a life as TRL's own."""

import copy
import dataclasses
import json
import logging
import pickle

import pytest
import torch
from mmbert_hf.trainers.spo.config import PAPER, SPOConfig
from mmbert_hf.trainers.spo.sampling import SAMPLING
from trl import GRPOConfig, TrlParser

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)
OWN = {field.name for field in dataclasses.fields(SPOConfig)} - {field.name for field in dataclasses.fields(GRPOConfig)}


@pytest.fixture
def make(tmp_path):
    def make(make_config=SPOConfig, **options):
        quiet = {"report_to": "none", "use_cpu": True, "bf16": False}
        return make_config(str(tmp_path), **{**quiet, **options})

    return make


# One answer for each prompt


def test_one_generation(make):
    args = make()
    assert (args.num_generations, args.num_generations_eval) == (1, 1)
    assert type(args.num_generations) is int
    assert args.generation_batch_size == args.per_device_train_batch_size == 8
    assert make(num_generations_eval=4).num_generations_eval == 4


@pytest.mark.parametrize("number", [8, 2, 0, None])
def test_groups_are_refused(make, number):
    with pytest.raises(
        ValueError, match=f"num_generations must be 1, got {number}: .* set num_generations_eval; .* use GRPOTrainer"
    ):
        make(num_generations=number)


def test_grpo_is_as_strict_as_before(make):
    """What GRPOConfig is told for its checks is told to nobody else."""
    make()
    with pytest.raises(ValueError, match="at least 2 generations"):
        make(GRPOConfig, num_generations=1)


def test_other_checks_of_grpo_still_hold(make):
    for options, message in [
        ({"generation_batch_size": 12}, r"generation_batch_size \(12\) must be divisible"),
        ({"generation_batch_size": 16, "steps_per_generation": 2}, "can not be both configured"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"num_generations_eval": 3, "eval_strategy": "steps", "eval_steps": 1}, "must be divisible by the number of"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**options)


@pytest.mark.parametrize(
    ("options", "batch", "steps"),
    [
        ({"per_device_train_batch_size": 3}, 3, 1),
        ({"per_device_train_batch_size": 7, "gradient_accumulation_steps": 3}, 21, 3),
        ({"per_device_train_batch_size": 5, "steps_per_generation": 3}, 15, 3),
        ({"per_device_train_batch_size": 5, "generation_batch_size": 35}, 35, 7),
        ({"per_device_train_batch_size": 1, "steps_per_generation": 2}, 2, 2),
        ({"per_device_train_batch_size": 1, "generation_batch_size": 3}, 3, 3),
    ],
)
def test_batches_of_any_size(make, options, batch, steps):
    args = make(**options)
    assert (args.generation_batch_size, args.steps_per_generation) == (batch, steps)


def test_a_batch_of_one_is_refused(make):
    with pytest.raises(
        ValueError, match=r"at least 2 responses, .* per_device_train_batch_size 1 x steps_per_generation 1"
    ):
        make(per_device_train_batch_size=1)
    with pytest.raises(ValueError, match="at least 2 responses"):
        make(per_device_train_batch_size=1, gradient_accumulation_steps=4, steps_per_generation=1)


# Ranges


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_model": "gamma"}, "value_model must be one of auto, beta, average, got 'gamma'"),
        ({"divergence": "kl"}, "divergence must be one of drift, trajectory, constant, got 'kl'"),
        ({"sampling": "hard"}, "sampling must be one of unsolved, bernoulli, thompson, uniform, got 'hard'"),
        ({"advantage_scale": "group"}, "advantage_scale must be one of batch, prompt, got 'group'"),
        ({"advantage_normalization": "none"}, "advantage_normalization must be one of sequence, token, got 'none'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "there are no groups: use 'sum_then_normalize'"),
        ({"rho_min": 0.0}, "0 < rho_min <= rho_max <= 1 must hold, got 0.0 and 0.9"),
        ({"rho_min": 0.97}, "must hold, got 0.97 and 0.96"),
        ({"rho_max": 1.1}, "must hold, got 0.8 and 1.1"),
        ({"exploration_floor": -0.1}, r"exploration_floor must be in \[0, 1\], got -0.1"),
        ({"exploration_floor": 1.1}, r"exploration_floor must be in \[0, 1\], got 1.1"),
        ({"d_half": 0.0}, "d_half must be above 0, got 0.0"),
        ({"prior_weight": -1.0}, "prior_weight must be above 0, got -1.0"),
        ({"weight_offset": -0.1}, "weight_offset must be at least 0, got -0.1"),
        ({"n_eff_power": -0.1}, "n_eff_power must be at least 0, got -0.1"),
        ({"min_advantage_std": float("nan")}, "min_advantage_std must be at least 0, got nan"),
        ({"num_initial_samples": 0}, "num_initial_samples must be at least 1, got 0"),
        ({"max_trajectory_tokens": 0}, "max_trajectory_tokens must be at least 1, got 0"),
        ({"starvation_rounds": 0}, "starvation_rounds must be at least 1, got 0"),
    ],
)
def test_ranges(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_ends_of_ranges_are_inside(make):
    make(rho_min=1.0, rho_max=1.0, exploration_floor=1.0, weight_offset=0.0, n_eff_power=0.0, min_advantage_std=0.0)
    make(rho_min=0.5, rho_max=0.5, exploration_floor=0.0, num_initial_samples=1, max_trajectory_tokens=1)
    for sampling in SAMPLING:
        make(sampling=sampling)


@pytest.mark.parametrize(("scale", "is_told"), [("group", False), (True, False), ("batch", True), (False, True)])
def test_a_setting_without_effect_is_told(make, caplog, scale, is_told):
    with caplog.at_level(logging.WARNING, logger="mmbert_hf"):
        make(scale_rewards=scale)
    assert ("is about groups and has no effect here" in caplog.text) is is_told


# The published method


def test_paper(make):
    """arXiv 2509.13232 and its recipe."""
    args = make(SPOConfig.paper)
    assert (args.divergence, args.d_half, args.rho_min, args.rho_max) == ("trajectory", 0.06, 0.875, 0.96)
    assert (args.sampling, args.weight_offset, args.n_eff_power, args.exploration_floor) == (
        "bernoulli",
        0.05,
        0.0,
        0.0,
    )
    assert (args.initial_values, args.num_initial_samples) == ("offline", 8)
    assert 1 / (1 - args.rho_min) == 8, "N0"
    assert (args.advantage_scale, args.advantage_normalization) == ("batch", "sequence")
    assert (args.epsilon, args.epsilon_high, args.beta, args.learning_rate) == (0.2, 0.28, 0.0, 1e-6)
    assert PAPER.keys() <= {field.name for field in dataclasses.fields(SPOConfig)}


def test_paper_with_changes(make):
    args = make(SPOConfig.paper, initial_values="prior", per_device_train_batch_size=2)
    assert (args.initial_values, args.per_device_train_batch_size, args.sampling) == ("prior", 2, "bernoulli")
    with pytest.raises(ValueError, match=r"rho_max <= 1 must hold, got 0.875 and 0.5"):
        make(SPOConfig.paper, rho_max=0.5)


# As TRL's own


def test_every_field_has_a_help_text():
    assert len(OWN) >= 17
    for field in dataclasses.fields(SPOConfig):
        if field.name in OWN | {"num_generations", "num_generations_eval"}:
            assert len(field.metadata.get("help", "")) > 20, field.name
            assert "%" not in field.metadata["help"].replace("%%", ""), "argparse would read it as a format"


def test_from_a_file_and_flags(tmp_path):
    file = tmp_path / "spo.yaml"
    file.write_text(
        "use_cpu: true\nbf16: false\nreport_to: none\nsampling: thompson\nrho_max: 0.95\nprompt_id_column: id\n"
        "d_half: 5.0e-2\nnum_generations_eval: 2\nper_device_train_batch_size: 3\n"
    )
    flags = ["--config", str(file), "--output_dir", str(tmp_path / "out"), "--rho_max", "0.85", "--prior_value", "0.25"]
    (args,) = TrlParser(SPOConfig).parse_args_and_config(flags)
    assert isinstance(args, SPOConfig)
    assert (args.sampling, args.rho_max, args.prior_value, args.d_half) == ("thompson", 0.85, 0.25, 0.05)
    assert (args.prompt_id_column, args.num_generations, args.num_generations_eval) == ("id", 1, 2)
    assert args.per_device_train_batch_size == 3


def test_help_of_the_command_line(capsys):
    with pytest.raises(SystemExit):
        TrlParser(SPOConfig).parse_args_and_config(["--help"])
    shown = capsys.readouterr().out
    for name in OWN:
        assert f"--{name}" in shown


def test_mistakes_in_a_file_are_refused(tmp_path):
    file = tmp_path / "spo.yaml"
    file.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nnum_generations: 8\n")
    with pytest.raises(ValueError, match="num_generations must be 1, got 8"):
        TrlParser(SPOConfig).parse_args_and_config(["--config", str(file)])


def test_saved_as_trainer_saves_it(make, tmp_path):
    args = make(sampling="thompson", num_generations_eval=2)
    for other in (pickle.loads(pickle.dumps(args)), copy.deepcopy(args)):
        assert other.to_dict() == args.to_dict()
        assert type(other.num_generations) is int
    torch.save(args, tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).to_dict() == args.to_dict()
    plain = json.loads(args.to_json_string())
    assert (plain["sampling"], plain["num_generations"], plain["num_generations_eval"]) == ("thompson", 1, 2)
    assert plain.keys() >= OWN
    assert "sampling=thompson" in str(args)
    assert args.to_sanitized_dict()["num_generations"] == 1
