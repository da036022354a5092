import doctest
import importlib.util
import signal
import threading

import pytest

from mmbert_hf.evaluation import answers
from mmbert_hf.evaluation.answers import ExactChecker, MathChecker, exact_match, get_checker, marked_answer
from mmbert_hf.evaluation.reasoning import vote_groups


@pytest.fixture
def math():
    pytest.importorskip("math_verify", reason="comparing mathematics needs the extra [reasoning]")
    return MathChecker()


def test_docstring_examples(math):
    result = doctest.testmod(answers)
    assert result.attempted >= 10
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {3}, \fbox{4}.", "4"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{6} then \boxed{7", "6"),
        (r"\boxed{8} then \boxed{}", "8"),
        (r"{ \boxed{9}", "9"),
        (r"first } and \boxed{$10$.}", "10"),
        (r"The answer is 3. \boxed{11} #### 12", "11"),
        ("1 + 1 = 2\n#### 12\n", "12"),
        ("Answer: 13\nAnswer: 14.", "14"),
        ("So the final answer is: **15**", "15"),
        ("## Answer: $16$", "16"),
        (
            "The answer is that 1 + 1 may be 2, but the question may also be\n",
            "that 1 + 1 may be 2, but the question may also be",
        ),
        ("I know the answer is 17", None),
        ("Answer: " + "x" * 201, None),
        ("18", None),
        ("", None),
        (r"\boxed{", None),
    ],
)
def test_what_is_marked(text, expected):
    assert marked_answer(text) == expected


def test_a_loop_of_boxes_is_read_in_one_pass():
    deep = r"\boxed{" * 50_000
    assert marked_answer(deep) is None
    assert marked_answer(deep + "1" + "}" * 50_000) == "1"


EQUAL = [
    (r"\frac12", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\sqrt{8}", r"2\sqrt2"),
    (r"3\pi", r"\pi \cdot 3"),
    ("1,000", "1000"),
    ("(3, 4)", "(3,4)"),
    (r"\{1, 2\}", "2, 1"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("5", "x = 5"),
    ("12", "12."),
    ("Monday", r"\text{Monday}"),
    ("C", r"\text{(C)}"),
    (r"90^\circ", "90"),
    ("1/3", "0.333333"),
]
DIFFERENT = [("3\\pi", "3"), ("(3, 4)", "4"), ("(3, 4)", "(4, 3)"), ("1/3", "0.33"), ("lemon", "melon"), ("7", "8")]


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_equal_as_mathematics(math, reference, answer):
    found = math.extract(f"So it is $\\boxed{{{answer}}}$.")
    assert math.is_correct(found, math.reference(reference))
    assert math.is_same(found, math.extract(f"\\boxed{{{reference}}}"))


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_different_as_mathematics(math, reference, answer):
    found = math.extract(f"\\boxed{{{answer}}}")
    assert not math.is_correct(found, math.reference(reference))
    assert not math.is_same(found, math.extract(f"\\boxed{{{reference}}}"))
    assert not math.is_correct(None, math.reference(reference))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"The answer is $\frac{1}{2}$ because x.", "0.5"),
        (r"We see that the answer is 7, so", "7"),
        ("12", "12"),
        ("**-3.**", "-3"),
        ("50 %", "0.5"),
        (r"$\pi$", r"\pi"),
        ("Answer: (3, 4)", "(3, 4)"),
        ("2 + 2 = 4\n#### 4", "4"),
    ],
)
def test_what_else_is_an_answer(math, completion, expected):
    assert math.is_correct(math.extract(completion), math.reference(expected))


def test_a_number_on_the_way_is_no_answer_unless_asked_for(math):
    cut_off = "There are 3 apples and 4 pears, which makes"
    assert math.extract(cut_off) is None
    assert math.extract("") is None
    anywhere = MathChecker(anywhere=True)
    assert anywhere.is_correct(anywhere.extract(cut_off), anywhere.reference("4"))
    assert anywhere.extract("no number at all") is None
    marked = anywhere.extract(r"\boxed{5}, of the 6")
    assert anywhere.is_correct(marked, anywhere.reference("5"))


def test_a_reference_may_be_a_solution(math):
    right = math.extract(r"\boxed{72}")
    for reference in ("72", "He sold 48/2 = 24, so 48 + 24 = 72.\n#### 72", r"Hence $\boxed{72}$.", "$72$"):
        assert math.is_correct(right, math.reference(reference))
    for empty in ("", "  ", "$ $"):
        with pytest.raises(ValueError, match="a reference answer is empty, got"):
            math.reference(empty)


def test_equal_answers_vote_together(math):
    texts = [r"\frac12", "0.5", "1/3", "0.333333", "2/4", "x", None, r"\frac{2}{6}"]
    found = [None if text is None else math.extract(f"\\boxed{{{text}}}") for text in texts]
    assert vote_groups(found, math.is_same) == [0, 0, 1, 1, 0, 2, -1, 1]


def test_voting_asks_in_both_orders(math, monkeypatch):
    interval, inequality = math.extract(r"\boxed{(1, 2)}"), math.extract(r"\boxed{1 < x < 2}")
    # verify takes the reference first, and lets an inequality be answered by an interval, but not the other way
    assert math.is_correct(interval, math.reference("1 < x < 2"))
    assert not math.is_correct(inequality, math.reference("(1, 2)"))
    assert math.is_same(interval, inequality)
    assert math.is_same(inequality, interval)


def test_what_cannot_be_parsed_is_compared_as_text(math):
    broken = r"\frac{1}{"
    assert math.is_correct(answers.Answer(broken), answers.Answer(broken))
    assert not math.is_correct(answers.Answer(broken), math.reference("1"))
    assert not math.is_same(answers.Answer(broken), answers.Answer(r"\frac{2}{"))


def test_what_takes_too_long_is_unequal(math):
    quick = MathChecker(timeout_seconds=1)
    endless = quick.extract(r"\boxed{9^{9^{9^9}}}")
    assert not quick.is_correct(endless, quick.reference("9"))
    assert quick.is_correct(endless, quick.reference("9^{9^{9^9}}"))


def test_the_caller_s_timer_goes_on(math):
    fired = []
    before = signal.signal(signal.SIGALRM, lambda *_: fired.append(True))
    kept = signal.setitimer(signal.ITIMER_REAL, 300, 7)
    try:
        assert math.is_correct(math.extract(r"\boxed{2/4}"), math.reference("1/2"))
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 200 < left <= 300
        assert interval == pytest.approx(7)
        assert signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL
    finally:
        signal.setitimer(signal.ITIMER_REAL, *kept)
        signal.signal(signal.SIGALRM, before)
    assert not fired


def in_thread(function):
    """What a function gives, or raises, in another thread."""
    result = []

    def work():
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return result[0]


def test_other_threads_have_to_do_without_a_limit(math):
    error = in_thread(lambda: math.extract(r"\boxed{5}"))
    assert isinstance(error, ValueError)
    assert "needs the main thread" in str(error)
    assert "MathChecker(timeout_seconds=None)" in str(error)
    a, b = math.reference("1/2"), math.reference("2/4")
    assert "main thread" in str(in_thread(lambda: math.is_correct(a, b)))
    free = MathChecker(timeout_seconds=None)
    assert in_thread(lambda: free.is_correct(free.extract(r"\boxed{2/4}"), free.reference("1/2"))) is True


def test_without_math_verify_it_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: found(name) if name != "math_verify" else None)
    with pytest.raises(ValueError, match=r"pip install 'mmbert-hf\[reasoning\]'"):
        get_checker("math")
    assert exact_match(r"\boxed{5}", "5")


def test_exact_match():
    assert exact_match("  4 2 \n", "4  2")
    assert exact_match("Answer: cat", "cat")
    assert exact_match(r"\boxed{x}", "#### x")
    assert not exact_match("Cat", "cat")
    assert not exact_match(r"\boxed{\frac12}", "0.5")
    assert not exact_match("", "0")
    assert ExactChecker().extract(" . ") is None
    with pytest.raises(ValueError, match="reference answer is empty"):
        exact_match("1", " ")


def test_checkers_by_name(math):
    assert isinstance(get_checker("math", anywhere=True), MathChecker)
    with pytest.raises(ValueError, match="'math' or 'exact', got 'fuzzy'"):
        get_checker("fuzzy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for the checker 'math'"):
        get_checker("exact", anywhere=True)
    for wrong in (0, 2.5, -1):
        with pytest.raises(ValueError, match="whole number of at least 1, or None"):
            MathChecker(timeout_seconds=wrong)  # type: ignore[arg-type]
