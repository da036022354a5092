"""A hub for each test, and processes that are its clients."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from huggingface_hub import HfApi

from mmbert_hf.testing import LoopbackHub


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="session")
def run_client():
    """Return a function that runs a script as a client of a hub and returns what it printed last, read as JSON."""

    def run(hub, script, **variables):
        environment = {**os.environ, **hub.environment(), "OMP_NUM_THREADS": "1", **variables}
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{done.stderr}\n{hub.requests}"
        # Which coding agents the Hub knows of is asked in some terminals; the client does without an answer.
        failures = [record for record in hub.requests if record.status in (500, 501) and "harness" not in record.path]
        assert not failures, f"the client needs what the hub cannot do: {failures}"
        return json.loads(done.stdout.splitlines()[-1])

    return run
