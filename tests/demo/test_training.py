import os
import signal
from types import SimpleNamespace

import pytest

from mmbert_hf.demo.training import StopOnInterrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_behind_the_step_and_a_second_stops_at_once(number):
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    stop, control = StopOnInterrupt(), SimpleNamespace(should_save=False, should_training_stop=False)
    with stop.listening():
        stop.on_step_end(None, None, control)
        assert not control.should_save
        os.kill(os.getpid(), number)
        stop.on_step_end(None, None, control)
        assert control.should_save
        assert control.should_training_stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert {each: signal.getsignal(each) for each in handlers} == handlers
