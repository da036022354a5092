import doctest
import json
import logging

import pytest

from mmbert_hf.evaluation import samples as module
from mmbert_hf.evaluation.answers import ExactChecker
from mmbert_hf.evaluation.samples import (
    Problem,
    Samples,
    append_samples,
    problems_from_rows,
    read_samples,
    resume_samples,
    sampling_summary,
    score_samples,
)

SETTINGS = {"seed": 0, "model": "tiny", "top_p": 0.5}
CHAT = [{"role": "user", "content": "2 + 2 ="}]
PROBLEMS = [Problem("a", "1 + 1 =", "2"), Problem("b", CHAT, "4"), Problem("ø\ud800", "7", "7")]


def answered(problem, *texts):
    return Samples(problem, texts, tuple(map(len, texts)), tuple(text != "" for text in texts))


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 8
    assert result.failed == 0


@pytest.fixture
def path(tmp_path):
    """A file with the samples of three problems."""
    path = tmp_path / "deep" / "samples.jsonl"
    assert resume_samples(path, SETTINGS, PROBLEMS) == {}
    for problem in PROBLEMS:
        append_samples(path, answered(problem, "2", "\u2028 4\n", "\ud800"))
    return path


def test_what_is_written_is_read(path):
    settings, found = read_samples(path)
    assert settings == SETTINGS
    assert found == [answered(problem, "2", "\u2028 4\n", "\ud800") for problem in PROBLEMS]
    assert resume_samples(path, SETTINGS, PROBLEMS) == {each.problem.id: each for each in found}
    assert len(path.read_bytes().splitlines()) == 4


def test_a_line_that_was_cut_off_is_written_again(path):
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (last + 1, last + 30, len(whole) - 1):  # also where only the line break is missing
        path.write_bytes(whole[:end])
        assert list(resume_samples(path, SETTINGS, PROBLEMS)) == ["a", "b"]
        assert path.read_bytes() == whole[:last]
        append_samples(path, answered(PROBLEMS[2], "2", "\u2028 4\n", "\ud800"))
        assert path.read_bytes() == whole
    path.write_bytes(whole[:20])  # the settings were not even there
    assert resume_samples(path, SETTINGS, PROBLEMS) == {}
    assert read_samples(path) == (SETTINGS, [])


def test_reading_alone_leaves_the_file_and_warns(path, caplog):
    cut = path.read_bytes()[:-9]
    path.write_bytes(cut)
    with caplog.at_level(logging.WARNING):
        assert [each.problem.id for each in read_samples(path)[1]] == ["a", "b"]
    assert caplog.messages == [f"{path}: line 4 is cut off, and left out"]
    assert path.read_bytes() == cut


def test_damage_before_the_last_line_is_an_error(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:20] + b"\n" + lines[2])
    for read in (read_samples, lambda path: resume_samples(path, SETTINGS, PROBLEMS)):
        with pytest.raises(ValueError, match=r"samples.jsonl, line 2: damaged .*restore it, or remove the line"):
            read(path)


def test_another_run_does_not_go_on_here(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"was sampled with seed 0 and not 1, top_p 0.5 and not None: give the same"):
        resume_samples(path, {"seed": 1, "model": "tiny"}, PROBLEMS)
    with pytest.raises(ValueError, match="another prompt under the name 'a'"):
        resume_samples(path, SETTINGS, [Problem("a", "1 + 2 =", "2")])
    assert path.read_bytes() == before


def test_a_mended_answer_counts(path):
    mended = Problem("b", CHAT, "5")
    done = resume_samples(path, SETTINGS, [mended, Problem("new", "8", "8")])
    assert list(done) == ["b"]
    assert done["b"].problem == mended


def test_files_of_other_programs_are_read(tmp_path):
    path = tmp_path / "others.jsonl"
    row = {"id": 3, "answer": 2.5, "completions": ["a"]}
    path.write_text(json.dumps(row) + "\n\n" + json.dumps({**row, "id": 4}))
    assert read_samples(path) == ({}, [Samples(Problem(name, "", "2.5"), ("a",)) for name in "34"])
    for change, message in (
        ({"answer": None}, "line 1: answer is missing"),
        ({"completions": []}, "must be a list of texts"),
        ({"completions": ["a", 2]}, "must be a list of texts"),
        ({"num_tokens": [1, 2]}, "got 1 completions and 2 values of num_tokens"),
    ):
        path.write_text(json.dumps({**row, **change}) + "\n")
        with pytest.raises(ValueError, match=message):
            read_samples(path)
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="the problems 0 and 1 have the name '3'"):
        read_samples(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1: expected an object, got list"):
        read_samples(path)
    with pytest.raises(FileNotFoundError, match="no file of samples"):
        read_samples(tmp_path / "none.jsonl")


def test_problems_from_rows():
    rows = [{"prompt": "1 + 1 =", "answer": 2}, {"prompt": CHAT, "answer": " 4 "}]
    first, second = problems_from_rows(rows)
    assert (first.prompt, first.answer, second.prompt, second.answer) == ("1 + 1 =", "2", CHAT, " 4 ")
    assert problems_from_rows(rows[::-1]) == [second, first], "names depend on the prompts and not on the order"
    with pytest.raises(ValueError, match="the problems 0 and 2 have the name"):
        problems_from_rows([*rows, rows[0]])
    for change, message in (
        ({"answer": None}, "row 0 has no 'answer'; its columns are"),
        ({"prompt": " "}, "row 0: a prompt must be a text, or a list of messages"),
        ({"prompt": [{"role": "user"}]}, "row 0: a prompt must be"),
        ({"prompt": []}, "row 0: a prompt must be"),
        ({"answer": [2]}, r"row 0: 'answer' must be a text or a number, got \[2\]"),
        ({"answer": True}, "must be a text or a number, got True"),
        ({"answer": " "}, "must be a text or a number"),
    ):
        with pytest.raises(ValueError, match=message):
            problems_from_rows([{**rows[0], **change}])
    with pytest.raises(ValueError, match="there is no problem"):
        problems_from_rows([])
    with pytest.raises(ValueError, match="has no 'nr'"):
        problems_from_rows(rows, id_column="nr")


def test_scores_by_hand():
    found = [
        answered(PROBLEMS[0], r"\boxed{2}", "3", "3", r"\boxed{2}"),
        answered(PROBLEMS[1], "", "", "", "4"),
        answered(PROBLEMS[2], "8", "8", "7", "7"),
    ]
    scores = score_samples(found, [1, 4], "exact")
    assert scores.problem_ids == ("a", "b", "ø\ud800")
    assert scores.per_problem["maj@4"].tolist() == [0.5, 1.0, 0.5]
    assert scores.per_problem["maj@1"].tolist() == [1.0, 0.0, 0.0]
    assert scores.per_problem["pass@4"].tolist() == [1.0, 1.0, 1.0]
    assert scores.num_answered.tolist() == [4, 1, 4]
    assert scores.num_correct.tolist() == [2, 1, 2]
    assert score_samples(found, [1], "exact", confidence=0.5).confidence == 0.5


def test_mathematics_votes_together():
    pytest.importorskip("math_verify", reason="comparing mathematics needs the extra [reasoning]")
    texts = [r"\boxed{\frac12}", r"\boxed{1/3}", r"\boxed{0.5}", r"\boxed{\frac13}", r"\boxed{2/4}", "so 1/3 or"]
    found = [answered(Problem("a", "", "0.5"), *texts)]
    assert score_samples(found, [6]).per_problem["maj@6"] == [1.0]
    assert score_samples(found, [6], "exact").per_problem["maj@6"] == [1 / 6]


def test_each_text_is_looked_at_once():
    class Counting(ExactChecker):
        looked = compared = 0

        def extract(self, completion):
            self.looked += 1
            return super().extract(completion)

        def is_correct(self, answer, reference):
            self.compared += 1
            return super().is_correct(answer, reference)

    checker = Counting()
    scores = score_samples([answered(PROBLEMS[0], *["2", "3"] * 50, r"\boxed{2}")], [101], checker)
    assert scores.num_correct == [51]
    assert (checker.looked, checker.compared) == (3, 2)


def test_a_k_that_cannot_be_is_told():
    found = [answered(PROBLEMS[0], "2", "3"), answered(PROBLEMS[1], "2")]
    for ks in ([2], [0], []):
        with pytest.raises(ValueError, match="and each k from 1 to 1"):
            score_samples(found, ks, "exact")
    with pytest.raises(ValueError, match="for 0 problems"):
        score_samples([], [1], "exact")


def test_summary_of_what_is_known():
    assert sampling_summary([Samples(PROBLEMS[0], ("2",))]) == {}
    found = [Samples(PROBLEMS[0], ("2", "2"), (1, 4), (True, True)), Samples(PROBLEMS[1], ("2",), (10,), (False,))]
    assert sampling_summary(found) == {"mean_tokens": 5.0, "truncated": pytest.approx(1 / 3)}
