"""What a model gets to read; that nothing breaks out is seen in test_sandbox.py."""

import doctest
import inspect
import os
import signal
import tempfile

import pytest
from mmbert_hf.trainers.spo import python_tool
from mmbert_hf.trainers.spo.python_tool import PythonTool, describe
from mmbert_hf.trainers.spo.sandbox import Finished, Limits, SandboxUnavailable


@pytest.fixture(scope="module")
def tool():
    try:
        return PythonTool(timeout_seconds=20.0, max_output_characters=200)
    except SandboxUnavailable as error:
        if "MMBERT_REQUIRE_SANDBOX" in os.environ:
            raise
        pytest.skip(f"{error} With MMBERT_REQUIRE_SANDBOX set this fails instead.")


def test_docstring_examples(tool):
    result = doctest.testmod(python_tool)
    assert result.attempted >= 6
    assert result.failed == 0


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("1 + 1", "2\n"),
        ("print('a')\n'b'", "a\n'b'\n"),
        ("x = 1", "[no output]\n"),
        ("", "[no output]\n"),
        ("None", "[no output]\n"),
        ("for x in range(2):\n    x", "[no output]\n"),  # only the last line is shown, and only if it is an expression
        ("print('no newline', end='')", "no newline"),
        ("'''text'''", "'text'\n"),
        ("from __future__ import annotations\ndef f(x: unknown): pass\nf.__annotations__", "{'x': 'unknown'}\n"),
        ("import sys\nprint(1)\nprint(2, file=sys.stderr)\nprint(3)", "1\n2\n3\n"),
        ("__name__, __file__", "('__main__', 'program.py')\n"),
        ("annotations = 1; len([name for name in globals() if not name.startswith('__')])", "1\n"),
        ("_ = 5\n_ + 1", "6\n"),
        ("print('Γειά σου 😀')", "Γειά σου 😀\n"),
        ("import sys; sys.exit(3)", "[exit status 3]\n"),
        ("print(1); import os; os.abort()", "1\n[ended by SIGABRT]\n"),
    ],
)
def test_what_is_shown(tool, code, answer):
    assert tool(code) == answer


def test_a_traceback_begins_with_the_program(tool):
    code = "def half(x):\n    return x / 0  # wrong\n\nprint('before')\nhalf(1)"
    lines = tool(code).splitlines()
    assert lines[:3] == ["before", "Traceback (most recent call last):", '  File "program.py", line 5, in <module>']
    assert "    return x / 0  # wrong" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_a_traceback_of_the_last_line(tool):
    lines = tool("x = [1]\nx[1]").splitlines()
    assert lines[1:3] == ['  File "program.py", line 2, in <module>', "    x[1]"]
    assert lines[-1] == "IndexError: list index out of range"


def test_a_syntax_error_has_its_line_and_nothing_of_ours(tool):
    lines = tool("x = 1\ny = (2\nprint(x)").splitlines()
    assert lines[:2] == ['  File "program.py", line 2', "    y = (2"]
    assert lines[-1] == "SyntaxError: '(' was never closed"


def test_exceptions_of_every_kind_are_results(tool):
    assert tool("raise KeyboardInterrupt").splitlines()[-1] == "KeyboardInterrupt"
    assert tool("raise BaseException('all')").splitlines()[-1] == "BaseException: all"
    assert "RecursionError" in tool("def f(): f()\nf()")
    assert tool("import sys, builtins\nsys.stderr = None\nbuiltins.open = None\n1/0").endswith(
        "ZeroDivisionError: division by zero\n"
    )


def test_long_output_is_shortened_in_the_middle(tool):
    answer = tool("print('a' * 500 + 'b' * 500)")
    assert answer == f"{'a' * 100}\n[... 801 characters left out ...]\n{'b' * 99}\n"


def test_what_limits_say():
    limits = Limits(timeout_seconds=2.5, cpu_seconds=7, memory_bytes=1000)
    assert describe(Finished("1", 137, "time"), limits) == "1\n[stopped: still running after 2.5 seconds]\n"
    assert describe(Finished("", 137, "memory"), limits) == "[stopped: used more than 1000 bytes of memory]\n"
    assert describe(Finished("1\n", 137, "output"), limits) == "1\n[stopped: printed too much]\n"
    time_limit = describe(Finished("", 128 + signal.SIGXCPU), limits)
    assert time_limit == "[stopped: used more than 7 seconds of processor time]\n"
    assert describe(Finished("", 255), limits) == "[exit status 255]\n"
    assert describe(Finished("Traceback\n", 1), limits) == "Traceback\n"


def test_limits_reach_the_program(tool):
    limited = PythonTool(timeout_seconds=1.5, memory_bytes=2**27, max_processes=5, disk_bytes=2**20, cpu_seconds=4)
    code = """
import os, resource
print([resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in ("AS", "NPROC", "CPU")])
found = os.statvfs(".")
print(found.f_blocks * found.f_frsize, flush=True)
while True: pass
"""
    said = f"[{2**27}, 5, 4]\n{2**20}\n[stopped: still running after 1.5 seconds]\n"
    assert limited.run_python(code) == said
    assert limited.limits.max_output_characters == Limits.max_output_characters


def test_a_tool_for_chat_templates(tool):
    from transformers.utils import get_json_schema

    function = get_json_schema(tool.run_python)["function"]
    assert function["name"] == "run_python"
    assert function["parameters"] == {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "The program."}},
        "required": ["code"],
    }
    assert function["description"].startswith("Run a Python program")
    assert "no network" in function["description"]
    assert not inspect.iscoroutinefunction(tool.run_python)
    assert tool.run_python(code="2 ** 10") == "1024\n"


def test_a_program_must_be_text(tool):
    for code in (None, 5, ["print(1)"], {"code": "1"}):
        with pytest.raises(TypeError, match=f"code must be a string with a Python program, got {type(code).__name__}"):
            tool(code)


def test_refused_or_unsafe_without_bubblewrap(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        PythonTool()
    with pytest.warns(UserWarning, match="NOT isolated") as warned:
        unsafe = PythonTool(allow_unsafe=True)
    assert unsafe.isolation == "none"
    assert unsafe("1 + 1") == unsafe("2") == "2\n"
    assert len(warned) == 1


def test_isolation_is_known(tool):
    assert tool.isolation == ("own user" if os.geteuid() == 0 else "user namespace")
