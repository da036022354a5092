"""What a prompt is known by, and which data sets are the same."""

import doctest
import hashlib
import logging

import datasets
import numpy as np
import pytest
from mmbert_hf.trainers.spo import prompts as module
from mmbert_hf.trainers.spo.prompts import (
    DatasetPrompts,
    EnvironmentPrompts,
    StreamPrompts,
    content_key,
    open_prompts,
)
from mmbert_hf.trainers.spo.tracker import ValueTracker


def of(**columns):
    return datasets.Dataset.from_dict(columns)


def chat(text):
    """Two messages, of which the first is the same in all prompts."""
    return [{"role": "system", "content": "Solve it."}, {"role": "user", "content": text}]


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert result.failed == 0


# By content


def test_content_is_all_of_a_prompt():
    different = [
        "2+2=",
        "2+2",
        "2+2= ",
        "２+2=",
        chat("2+2="),
        chat("2+3="),
        chat("2+2=")[1:],
        chat("2+2=")[::-1],
        [],
        "",
    ]
    assert len({content_key(prompt) for prompt in different}) == len(different)
    assert content_key(chat("ä")) == content_key(
        [{"content": text["content"], "role": text["role"]} for text in chat("ä")]
    )
    assert content_key("2+2=") == hashlib.sha256(b'"2+2="').hexdigest()[:32], "files keep it: it must stay what it is"


def test_a_stream_is_known_by_content():
    prompts = StreamPrompts()
    examples = [{"prompt": chat("1")}, {"prompt": chat("2")}, {"prompt": chat("1"), "id": 9}]
    keys = prompts.keys_of(examples)
    assert keys[0] == keys[2] == content_key(chat("1"))
    assert keys[0] != keys[1]
    assert ValueTracker(0).rows_of(keys).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="needs a column 'prompt', it has text, id"):
        prompts.keys_of([{"text": "?", "id": 3}])


def test_a_stream_is_known_by_id():
    prompts = StreamPrompts("id")
    assert prompts.keys_of([{"prompt": "a", "id": 3}, {"prompt": "a", "id": "x"}]) == ["3", "x"]
    for broken in ({"prompt": "a"}, {"prompt": "a", "id": None}):
        with pytest.raises(ValueError, match=r"has no id in 'id' .*; it has prompt"):
            prompts.keys_of([broken])


def test_an_environment_has_one_value():
    assert EnvironmentPrompts().keys_of([{}, {"prompt": "a"}]) == ["environment"] * 2


# By row, or by an id


def test_rows():
    prompts = DatasetPrompts(of(prompt=["a", "b", "c"], answer=[1, 2, 3]))
    assert len(prompts) == 3
    assert prompts.keys is None
    assert prompts.take(np.array([2, 0, 2])) == [
        {"prompt": "c", "answer": 3},
        {"prompt": "a", "answer": 1},
        {"prompt": "c", "answer": 3},
    ]


def test_ids():
    prompts = DatasetPrompts(of(prompt=["a", "b"], number=[7, 3]), "number")
    assert prompts.keys == ["7", "3"]
    assert prompts.fingerprint == DatasetPrompts(of(prompt=["other", "words"], number=[7, 3]), "number").fingerprint
    assert prompts.fingerprint != DatasetPrompts(of(prompt=["a", "b"], number=[3, 7]), "number").fingerprint


def test_ids_that_are_not_different_are_refused():
    with pytest.raises(ValueError, match="ids of prompts must differ, got '7' more than once"):
        DatasetPrompts(of(prompt=["a", "b", "c"], number=[7, 3, 7]), "number")


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"prompt": []}, {}, "the training data set is empty"),
        ({"question": ["a"], "answer": ["b"]}, {}, "needs a column 'prompt', it has question, answer"),
        ({"prompt": ["a"]}, {"id_column": "id"}, "prompt_id_column 'id' is not in the data set, which has prompt"),
        ({"prompt": ["a"] * 3, "id": [1, None, 2]}, {"id_column": "id"}, "column 'id' has no id in row 1"),
    ],
)
def test_data_sets_that_cannot_be_drawn_from(columns, arguments, message):
    with pytest.raises(ValueError, match=message):
        DatasetPrompts(of(**columns), **arguments)


# The fingerprint


def fingerprint(dataset):
    return DatasetPrompts(dataset).fingerprint


def test_fingerprint_is_of_the_prompts_alone(tmp_path):
    plain = of(prompt=["a", "b", "c"])
    expected = fingerprint(plain)
    same = [
        of(prompt=["a", "b", "c"], answer=[1, 2, 3]),
        plain.with_format("numpy"),
        plain.with_transform(lambda batch: {"prompt": [text + "!" for text in batch["prompt"]]}),
        of(prompt=["c", "b", "x", "a"]).select([3, 1, 0]),
    ]
    plain.save_to_disk(tmp_path / "saved")
    same.append(datasets.load_from_disk(tmp_path / "saved"))
    assert [fingerprint(dataset) for dataset in same] == [expected] * len(same)
    others = [["a", "c", "b"], ["a", "b"], ["a", "b", "c", ""], ["a", "b", "C"], ["ab", "", "c"]]
    assert len({expected, *(fingerprint(of(prompt=prompts)) for prompts in others)}) == 1 + len(others)


def test_fingerprint_of_chats():
    one, same, other = (fingerprint(of(prompt=[chat("1"), chat(text)])) for text in "223")
    assert one == same != other


def test_fingerprint_reads_all_portions():
    texts = [str(number) for number in range(10_001)]
    found = {fingerprint(of(prompt=texts)), fingerprint(of(prompt=texts[:-1]))}
    for place in (0, 5_000, 9_999, 10_000):
        found.add(fingerprint(of(prompt=[*texts[:place], "other", *texts[place + 1 :]])))
    assert len(found) == 6


def test_fingerprint_without_prompts_is_of_everything():
    one, same, other = (
        DatasetPrompts(of(environment=[1, 2], level=[3, last]), needs_prompt=False).fingerprint for last in (4, 4, 5)
    )
    assert one == same != other


def test_fingerprint_of_bytes_is_the_same_in_every_process():
    """No part of it may be the address of an object."""
    text = r"""{"prompt": "b'\\x00\\xff'"}""" + "\n" + """{"prompt": "b'b'"}""" + "\n"
    assert fingerprint(of(prompt=[b"\x00\xff", b"b"])) == hashlib.sha256(text.encode()).hexdigest()[:32]


# Which one


def test_chosen_by_what_was_given(caplog):
    dataset = of(prompt=["a", "b"], id=["x", "y"])
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_prompts(None, None, "unsolved"), EnvironmentPrompts)
        assert open_prompts(dataset, "id", "unsolved").keys == ["x", "y"]
    assert not caplog.records
    stream = open_prompts(dataset.to_iterable_dataset(), "id", "thompson")
    assert stream.keys_of(list(dataset)) == ["x", "y"]
    assert "cannot be drawn from: prompts are taken as they come, not by 'thompson'" in caplog.text
    assert len(open_prompts(of(level=[1, 2, 3]), None, "unsolved", needs_prompt=False)) == 3


@pytest.mark.parametrize("given", [[{"prompt": "a"}], datasets.DatasetDict({"train": of(prompt=["a"])})])
def test_other_things_are_refused(given):
    with pytest.raises(TypeError, match=f"must be a Dataset or an IterableDataset, got {type(given).__name__}"):
        open_prompts(given, None, "unsolved")
