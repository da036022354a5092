"""What runs inside the sandbox: takes a program from stdin, gives up what the program must not have, and runs it.

Its text is given to an interpreter by `python -c`, so it imports nothing of this package, nothing large, and works on any
Python 3 that is still in use. `mmbert_hf.trainers.spo.sandbox` calls it.

Design decisions:

- Nothing of the program is read before the limits hold and the user is an unprivileged one; the marker on stdout tells
  the caller that they do. What comes before it is an error of the sandbox, what comes behind it is the program's.
- stdin carries the length in eight bytes, and then the program. If the caller dies before it has sent all, nothing runs.
- As at a prompt, the value of an expression at the end of the program is shown. The program is `__main__`, and a file in
  its working folder: so other processes find its functions, and a traceback its lines, without modules that load slowly.
- When memory ran out, there is a little more of it for saying so.
"""

import builtins
import os
import resource
import sys

PROGRAM = "program.py"
SPARE_BYTES = 2**25  # of memory, for printing a traceback when there is no other
SYNTAX_TREE = 0x400  # what makes `compile` give one; the module `ast` is not needed for it


def main(marker, limits, user, paths):
    """Read a program, lock the door, run it; end the process with status 1 if the program raised.

    Args:
        marker: Bytes to write on stdout when the limits hold.
        limits: Soft limits by name without "RLIMIT_".
        user: Number of the user and group to become, or None to stay who this is.
        paths: What to add to `sys.path`.
    """
    header = sys.stdin.buffer.read(8)
    source = sys.stdin.buffer.read(int.from_bytes(header, "big"))
    if len(header) < 8 or len(source) != int.from_bytes(header, "big"):
        os._exit(1)
    lock(limits, user)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.path.extend(paths)
    sys.argv = [PROGRAM]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # these come with the module site, which is slow and not loaded
    os.write(1, marker)
    sys.exit(run(source, resource.getrlimit(resource.RLIMIT_AS)[1]))


def lock(limits, user):
    """Be the first to be killed when memory is short, set the limits, become the user."""
    if os.path.exists("/proc/self/oom_score_adj"):
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"1000")
    for name, soft in limits.items():
        number = getattr(resource, "RLIMIT_" + name)
        hard = soft + {"AS": SPARE_BYTES, "CPU": 1}.get(name, 0)
        allowed = resource.getrlimit(number)[1]
        if allowed != resource.RLIM_INFINITY:
            soft, hard = min(soft, allowed), min(hard, allowed)
        resource.setrlimit(number, (soft, hard))
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def run(source, all_memory):
    """Run a program as `__main__`; the value of an expression at its end is shown.

    Args:
        source: UTF-8.
        all_memory: Bytes of address space with what is put aside for printing a traceback.

    Returns:
        0, or 1 if it raised an exception, whose traceback is printed.
    """
    program = sys.modules["__main__"] = type(sys)("__main__")
    spare = (all_memory, all_memory)
    program.__dict__.update({"__builtins__": builtins, "__file__": PROGRAM})
    try:
        with open(PROGRAM, "wb") as file:
            file.write(source)
        code = source.decode("utf-8", "surrogatepass")
        tree = compile(code, PROGRAM, "exec", SYNTAX_TREE, dont_inherit=True)
        last = tree.body[-1:]
        shown = bool(last) and type(last[0]).__name__ == "Expr"
        if shown:
            del tree.body[-1]
        exec(compile(tree, PROGRAM, "exec", dont_inherit=True), program.__dict__)
        if shown:
            import _ast

            tree = _ast.Interactive(last)
            exec(compile(tree, PROGRAM, "single", dont_inherit=True), program.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        show(error, spare)
        return 1
    return 0


def show(error, spare):
    """Print a traceback that begins at the program's own first frame, with the memory that was put aside for it."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, spare)
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != PROGRAM:
            frames = frames.tb_next
        sys.stderr = sys.__stderr__
        sys.__excepthook__(type(error), error.with_traceback(frames), frames)
    except BaseException:  # a program may have broken anything
        os.write(2, type(error).__name__.encode() + b"\n")
