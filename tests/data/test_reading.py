"""Streams that break, and what may be tried again."""

import doctest

import pytest

from mmbert_hf.data import reading
from mmbert_hf.data.reading import SourceError, is_transient, resume_on_failure


def test_docstring_examples():
    assert doctest.testmod(reading).failed == 0


class Flaky:
    """Numbers from 0 to 99; raises where and as often as told."""

    def __init__(self, **failures):
        self.failures = {int(place.removeprefix("at_")): list(errors) for place, errors in failures.items()}
        self.opened = []

    def __call__(self, skip):
        self.opened.append(skip)
        for number in range(skip, 100):
            if self.failures.get(number):
                raise self.failures[number].pop(0)
            yield number


def test_reading_goes_on_behind_the_last_row_with_waits_that_double():
    flaky = Flaky(
        at_0=[ConnectionResetError()], at_40=[OSError("a"), TimeoutError("b"), OSError("c")], at_41=[OSError()]
    )
    waits = []
    rows = list(resume_on_failure(flaky, "numbers", first_wait_seconds=0.5, sleep=waits.append))
    assert rows == list(range(100))  # nothing twice, nothing lost
    assert flaky.opened == [0, 0, 40, 40, 40, 41]
    assert waits == [0.5, 0.5, 1.0, 2.0, 0.5]  # a new row sets the count back


def test_reading_is_given_up_after_all_attempts_and_the_source_is_named():
    flaky = Flaky(at_7=[OSError("wire cut")] * 9)
    waits, rows = [], []
    with pytest.raises(SourceError, match=r"numbers broke 5 times in a row, with 7 documents read \(OSError: wire cut"):
        rows.extend(resume_on_failure(flaky, "numbers", sleep=waits.append))
    assert waits == [1, 2, 4, 8]
    assert len(flaky.opened) == 5


@pytest.mark.parametrize("error", [ValueError("corrupt"), KeyError("field"), MemoryError()])
def test_what_is_wrong_is_not_tried_again(error):
    flaky = Flaky(at_3=[error])
    with pytest.raises(type(error)):
        list(resume_on_failure(flaky, "numbers", sleep=lambda seconds: pytest.fail("waited")))


def test_what_is_not_there_is_not_tried_again():
    flaky = Flaky(at_0=[FileNotFoundError("no such data set")])
    with pytest.raises(SourceError, match=r"numbers cannot be read, with 0 .*Check its name, revision and your access"):
        list(resume_on_failure(flaky, "numbers", sleep=lambda seconds: pytest.fail("waited")))


@pytest.mark.parametrize(("status", "transient"), [(401, False), (404, False), (408, True), (429, True), (503, True)])
def test_status_of_the_hub_decides(status, transient):
    from huggingface_hub import errors

    client = pytest.importorskip(errors.HTTPError.__module__.split(".")[0])
    response = client.Response(status, request=client.Request("GET", "http://127.0.0.1/"))
    assert is_transient(errors.HfHubHTTPError("answer", response=response)) is transient


def test_transport_errors_of_the_client_are_transient():
    from huggingface_hub import errors

    client = pytest.importorskip(errors.HTTPError.__module__.split(".")[0])
    assert is_transient(client.RemoteProtocolError("peer closed connection"))
    assert is_transient(client.ReadTimeout("slow"))
    assert not is_transient(errors.OfflineModeIsEnabled("offline"))
