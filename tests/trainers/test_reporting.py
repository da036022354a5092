import doctest

import pytest
import torch
from accelerate import Accelerator
from mmbert_hf.trainers import reporting
from mmbert_hf.trainers.reporting import Throughput, ThroughputCallback, device_peak
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_docstring_examples():
    results = doctest.testmod(reporting)
    assert results.failed == 0
    assert results.attempted > 4


def test_a_window_reaches_from_read_to_read(clock):
    throughput = Throughput(clock=clock)
    throughput.add(90, 100)
    throughput.add(80, 100)
    clock.now += 2
    assert throughput.read() == {"tokens_seen": 170, "tokens_per_second": 85.0, "packing_fill": 0.85}
    throughput.add(100, 100)
    clock.now += 10
    assert throughput.read() == {"tokens_seen": 270, "tokens_per_second": 10.0, "packing_fill": 1.0}


def test_time_without_training_does_not_count(clock):
    throughput = Throughput(clock=clock)
    throughput.add(60)
    clock.now += 1
    throughput.pause()
    clock.now += 50
    throughput.pause()  # saving after evaluation
    clock.now += 50
    throughput.resume()
    throughput.resume()
    clock.now += 2
    assert throughput.read()["tokens_per_second"] == 20.0


def test_a_log_between_evaluation_and_saving_leaves_the_clock_standing(clock):
    throughput = Throughput(clock=clock)
    throughput.add(10)
    clock.now += 1
    throughput.pause()
    clock.now += 50
    assert throughput.read()["tokens_per_second"] == 10.0
    clock.now += 50
    throughput.resume()
    throughput.add(30)
    clock.now += 2
    assert throughput.read()["tokens_per_second"] == 15.0


def test_nothing_is_made_up(clock):
    throughput = Throughput(clock=clock)
    assert throughput.read() == {"tokens_seen": 0}
    throughput.add(10)
    assert throughput.read() == {"tokens_seen": 10}  # no time has passed
    throughput.add(10, flops=1e6)
    clock.now += 1
    assert throughput.read() == {"tokens_seen": 20, "tokens_per_second": 10.0}  # no peak, no capacity


def test_the_share_of_the_peak_needs_all_operations(clock):
    throughput = Throughput(peak_flops=1e9, clock=clock)
    throughput.add(10, flops=3e8)
    throughput.add(10, flops=1e8)
    clock.now += 2
    assert throughput.read()["flops_utilization"] == pytest.approx(0.2)
    throughput.add(10, flops=3e8)
    throughput.add(10, 12)
    clock.now += 2
    assert {"flops_utilization", "packing_fill"}.isdisjoint(throughput.read())


class TwoEqualRanks:
    """Stands for accelerate's Accelerator, whose other rank counts the same."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self):
        self.reduced = []

    def reduce(self, counts, reduction):
        assert reduction == "sum"
        self.reduced.append(counts[:2].tolist())
        return 2 * counts


def test_ranks_are_summed_once(clock):
    throughput, ranks = Throughput(clock=clock), TwoEqualRanks()
    throughput.add(45, 50)
    throughput.sync(ranks)
    assert throughput.state_dict() == {"tokens_seen": 90}
    throughput.add(5, 50)
    clock.now += 1
    assert throughput.read(ranks) == {"tokens_seen": 100, "tokens_per_second": 100.0, "packing_fill": 0.5}
    assert ranks.reduced == [[45, 50], [5, 50]]


def test_one_rank_of_accelerate_sums_nothing(clock):
    throughput = Throughput(clock=clock)
    throughput.add(2**53 + 1)
    clock.now += 1
    values = throughput.read(Accelerator(cpu=True))
    assert values["tokens_seen"] == 2**53 + 1  # a float would round it
    assert "flops_utilization" not in values


def test_pauses_nest(clock):
    throughput = Throughput(clock=clock)
    throughput.add(10)
    with throughput.paused():
        with throughput.paused():
            clock.now += 9
        clock.now += 9
    clock.now += 1
    assert throughput.read()["tokens_per_second"] == 10.0


def test_tokens_seen_survive_a_restart(clock):
    throughput = Throughput(clock=clock)
    throughput.add(2**40 + 1)
    throughput.sync()
    resumed = Throughput(clock=clock)
    resumed.load_state_dict(throughput.state_dict())
    clock.now += 1e6
    resumed.restart()
    resumed.add(1)
    clock.now += 1
    assert resumed.read() == {"tokens_seen": 2**40 + 2, "tokens_per_second": 1.0}


@pytest.mark.parametrize(("tokens", "capacity"), [(-1, None), (11, 10)])
def test_impossible_counts_are_refused(tokens, capacity):
    with pytest.raises(ValueError, match="num_tokens must be in"):
        Throughput().add(tokens, capacity)


def test_the_cpu_has_no_peak():
    assert device_peak("cpu") is None
    assert device_peak(torch.device("meta"), 4) is None


class SlowSaving(TrainerCallback):
    """Runs before the other: what it takes is the time of evaluation and saving."""

    def __init__(self, clock):
        self.clock = clock

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock.now += 1

    def on_prediction_step(self, args, state, control, **kwargs):
        self.clock.now += 1000

    def on_save(self, args, state, control, **kwargs):
        self.clock.now += 1000


class Later(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def train(folder, model, tokenizer, clock, *, resume=False, **options):
    rows = [
        {"input_ids": [2, *range(20, 20 + size), 1], "attention_mask": [1] * (size + 2), "labels": 0}
        for size in (3, 8, 5, 2, 9, 4, 4, 7)
    ]
    options = {"include_num_input_tokens_seen": "non_padding", **options}
    args = TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        logging_steps=2,
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        train_sampling_strategy="sequential",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **options,
    )
    later = Later()
    callbacks = [SlowSaving(clock), ThroughputCallback(clock=clock), later]
    collator = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(
        model, args, train_dataset=rows, eval_dataset=rows[:2], data_collator=collator, callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    return trainer, [logs for logs in later.logs if "loss" in logs]


@pytest.fixture
def classifier(tiny_config):
    from mmbert_hf import MMBertForSequenceClassification

    torch.manual_seed(0)
    return MMBertForSequenceClassification(tiny_config)


def test_the_stock_trainer_logs_it(tmp_path, classifier, tokenizer, clock):
    trainer, logs = train(tmp_path, classifier, tokenizer, clock)
    # Tokens without padding, and seconds of the steps alone: one each.
    assert [log["tokens_seen"] for log in logs] == [26, 58]
    assert [log["tokens_per_second"] for log in logs] == [13.0, 16.0]
    assert all("flops_utilization" not in log for log in logs)
    history = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["tokens_seen"] for record in history] == [26, 58]

    _, resumed = train(tmp_path, classifier, tokenizer, clock, resume=True)
    assert [log["tokens_seen"] for log in resumed] == [58]
    assert [log["tokens_per_second"] for log in resumed] == [16.0]


def test_without_a_count_it_refuses(tmp_path, classifier, tokenizer, clock):
    with pytest.raises(ValueError, match="non_padding"):
        train(tmp_path, classifier, tokenizer, clock, include_num_input_tokens_seen="no")
