import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from mmbert_hf.trainers.stopping import StopOnInterrupt


def control():
    return SimpleNamespace(should_save=False, should_training_stop=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step(number):
    stop, before = StopOnInterrupt(), control()
    with stop.listening():
        stop.on_step_end(None, None, before)
        os.kill(os.getpid(), number)
        assert stop.interrupted  # and we are still here: the step goes on
        after = control()
        stop.on_step_end(None, None, after)
    assert not before.should_save
    assert not before.should_training_stop
    assert after.should_save
    assert after.should_training_stop


def test_the_second_signal_stops_at_once():
    with StopOnInterrupt().listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_signals_are_given_back_however_it_ends():
    mine = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        found = [signal.getsignal(number) for number in mine]
        with StopOnInterrupt().listening():
            assert [signal.getsignal(number) for number in mine] != found
        assert [signal.getsignal(number) for number in mine] == found
        with pytest.raises(RuntimeError), StopOnInterrupt().listening():
            raise RuntimeError
        assert [signal.getsignal(number) for number in mine] == found
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_nothing_is_taken_over():
    seen = []

    def run():
        with StopOnInterrupt().listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


RANKS = """
import os, signal, sys
from types import SimpleNamespace
import torch.distributed as dist
from mmbert_hf.trainers.stopping import StopOnInterrupt

def rank(number):
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=number, world_size=2)
    stop, steps = StopOnInterrupt(), 0
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    with stop.listening():
        while not control.should_training_stop and steps < 5:
            if (number, steps) == (1, 2):
                os.kill(os.getpid(), signal.SIGINT)  # the other rank gets none
            stop.on_step_end(SimpleNamespace(device="cpu"), None, control)
            steps += 1
    dist.barrier()
    dist.destroy_process_group()
    assert stop.interrupted and control.should_save and steps == 3, (number, steps, stop.interrupted)

children = []
for number in range(2):
    child = os.fork()
    if not child:
        try:
            rank(number)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
"""


def test_all_ranks_stop_behind_the_same_step(tmp_path):
    """A signal reaches ranks at different moments, or only one of them; where one went on it would wait for ever."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RANKS, str(tmp_path)], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
