import doctest

import pytest

from mmbert_hf.data import arithmetic
from mmbert_hf.data.arithmetic import (
    OPERATIONS,
    arithmetic_examples,
    arithmetic_tokenizer,
    encode_answers,
    exact_answer,
    split_examples,
)


def pairs(examples) -> list[tuple[str, str]]:
    return list(zip(examples["prompt"], examples["answer"], strict=True))


def test_docstring_examples():
    result = doctest.testmod(arithmetic)
    assert result.attempted >= 8
    assert result.failed == 0


def test_all_prompts_of_a_modulus_with_right_answers():
    found = pairs(arithmetic_examples(7, "+-*"))
    assert len(found) == len(dict(found)) == 3 * 49
    for prompt, answer in found:
        operation = next(each for each in OPERATIONS if each in prompt)
        a, b = (int(number) for number in prompt.removesuffix("=").split(operation))
        assert {a, b} <= set(range(7))
        assert answer == str(eval(f"({a}{operation}{b}) % 7"))
    assert ("2-5=", "4") in found


def test_plain_integers_have_their_sign_and_digits():
    found = dict(pairs(arithmetic_examples(operations="-", operands=[3, 12])))
    assert found == {"3-3=": "0", "3-12=": "-9", "12-3=": "9", "12-12=": "0"}
    padded = dict(pairs(arithmetic_examples(operands=[3, 12], answer_digits=3)))
    assert padded == {"3+3=": "006", "3+12=": "015", "12+3=": "015", "12+12=": "024"}
    reversed_ = dict(pairs(arithmetic_examples(operations="-", operands=[3, 25], reverse_answers=True)))
    assert reversed_["3-25="] == "-22"
    assert dict(pairs(arithmetic_examples(operands=[9, 12], reverse_answers=True)))["9+12="] == "12"


def test_a_draw_is_without_repetition_and_by_seed():
    whole = set(pairs(arithmetic_examples(operands=range(10, 100))))
    some = [pairs(arithmetic_examples(operands=range(10, 100), num_examples=50, seed=seed)) for seed in (1, 1, 2)]
    assert some[0] == some[1] != some[2]
    assert len(set(some[0])) == 50
    assert set(some[0]) < whole
    longer = pairs(arithmetic_examples(operands=range(10, 100), num_examples=80, seed=1))
    assert longer[:50] == some[0]
    assert pairs(arithmetic_examples(3, num_examples=99)) == pairs(arithmetic_examples(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modulus": 1}, "modulus must be at least 2, got 1"),
        ({}, "give operands"),
        ({"modulus": 5, "operations": "+/"}, r"operations must be some of \+-\*, each once, got '\+/'"),
        ({"modulus": 5, "operations": "++"}, "each once"),
        ({"modulus": 5, "operations": ""}, "operations must be"),
        ({"modulus": 5, "operands": [1, 1]}, "different numbers"),
        ({"modulus": 5, "operands": [-1, 1]}, "at least 0"),
        ({"modulus": 5, "operands": []}, "one or more"),
        ({"modulus": 5, "num_examples": 0}, "num_examples must be at least 1, got 0"),
        ({"operands": [9], "answer_digits": 1}, "the answer 18 has more than 1 digits: raise answer_digits"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        arithmetic_examples(**arguments)


def test_splits_are_disjoint_nested_and_by_seed():
    examples = arithmetic_examples(11)
    some, rest = split_examples(examples, 0.25, seed=3)
    assert len(some) == 30
    assert sorted(pairs(some) + pairs(rest)) == sorted(pairs(examples))
    more, _ = split_examples(examples, 0.5, seed=3)
    assert set(some["prompt"]) < set(more["prompt"])
    assert set(split_examples(examples, 0.25, seed=4)[0]["prompt"]) != set(some["prompt"])
    order = {prompt: place for place, prompt in enumerate(examples["prompt"])}
    assert [order[prompt] for prompt in some["prompt"]] == sorted(order[prompt] for prompt in some["prompt"])
    shuffled = split_examples(examples.shuffle(seed=0), 0.25, seed=3)[0]
    assert set(shuffled["prompt"]) == set(some["prompt"])
    assert [len(part) for part in split_examples(examples, 0.0)] == [0, 121]
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1.5"):
        split_examples(examples, 1.5)


def test_numbers_are_one_token_or_a_token_a_digit():
    numbers, digits = arithmetic_tokenizer(23), arithmetic_tokenizer()
    for examples in (arithmetic_examples(23, "+-*"), arithmetic_examples(5)):
        assert {len(ids) for ids in numbers(examples["answer"][:])["input_ids"]} == {1}
        assert {len(ids) for ids in numbers(examples["prompt"][:])["input_ids"]} == {4}
    assert digits.tokenize("17-5=") == ["1", "7", "-", "5", "="]
    assert digits.decode(digits("-12")["input_ids"]) == "-12"
    assert numbers.decode(numbers("1 5")["input_ids"]) == "1 5"  # not 15, which is another token
    assert digits("7 + 5 =")["input_ids"] == digits("7+5=")["input_ids"]


def test_it_pads_on_the_left_and_skips_what_is_special():
    tokenizer = arithmetic_tokenizer()
    batch = tokenizer(["1+1=", "11+11="], padding=True)
    assert batch["input_ids"][0][:2] == [tokenizer.pad_token_id] * 2
    assert batch["attention_mask"][0] == [0, 0, 1, 1, 1, 1]
    assert tokenizer.decode([*batch["input_ids"][0], tokenizer.eos_token_id], skip_special_tokens=True) == "1+1="


@pytest.mark.parametrize("text", ["23", "a", "7/5=", "½"])
def test_what_is_not_arithmetic_is_an_error(text):
    with pytest.raises(Exception, match="UNK"):
        arithmetic_tokenizer(23)(text)
    with pytest.raises(ValueError, match="numbers must be at least 1, got 0"):
        arithmetic_tokenizer(0)


@pytest.mark.parametrize("numbers", [None, 23])
def test_a_saved_tokenizer_is_the_same(numbers, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = arithmetic_tokenizer(numbers)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again("17+5=")["input_ids"] == tokenizer("17+5=")["input_ids"]
    assert again.decode(again("17+5=")["input_ids"]) == tokenizer.decode(tokenizer("17+5=")["input_ids"])
    assert (again.pad_token_id, again.eos_token_id, again.padding_side) == (0, 1, "left")


def test_labels_are_of_the_answer_and_the_end():
    tokenizer = arithmetic_tokenizer()
    (row,) = encode_answers(arithmetic_examples(operands=[12]), tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "12+12=24<eos>"
    assert [label for label in row["labels"] if label != -100] == row["input_ids"][-3:]
    assert len(row["labels"]) == len(row["input_ids"])


def test_only_the_whole_answer_is_rewarded():
    answers = ["15", "-9", "15", "15"]
    assert exact_answer(["15", "-9", "1 5", "150"], answers, prompts=[], trainer_state=None) == [1.0, 1.0, 0.0, 0.0]
    assert exact_answer([[{"role": "assistant", "content": " 15\n"}], ""], ["15", "15"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="argument"):
        exact_answer(["1"], ["1", "2"])
