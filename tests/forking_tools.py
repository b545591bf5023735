"""Programs beside the tests, forked from one process that has imported the libraries: that takes six seconds of the
processor, and a program of its own would take them each time."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path

from generation_tools import process

SERVER = """
import json, os, signal, sys, traceback
import torch
torch.set_num_threads(1)
import accelerate, diffusers, peft, transformers
from diffusers import StableDiffusionPipeline
import pilotage.cli.main, pilotage.cli.progress, pilotage.distill.trainer, pilotage.finetune.trainer
import pilotage.generation.models, pilotage.training.page
from pilotage.distill.methods.registry import make_method
from pilotage.finetune.rewards import open_rewards

make_method("f-distill"), open_rewards("saturation")

def runs(code, arguments, out, err):  # and whatever it forks
    for number, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv, ended = ["-c", *arguments], 1
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
        ended = 0
    except SystemExit as error:
        ended = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)

for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if not child:
        runs(**wanted)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = process(SERVER, stdin=-1, stdout=-1, start_new_session=True)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    """With all that it has forked."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def forked(code: str, *arguments: str, timeout: float = 240) -> tuple[int, str, str]:
    """Run a Python program as `python -c` would, from a process where the libraries are imported already. Its exit
    code, and what it wrote to stdout and stderr. POSIX."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        wanted = {"code": code, "arguments": arguments, "out": str(out), "err": str(err)}
        print(json.dumps(wanted), file=server.stdin, flush=True)
        if not select.select([server.stdout], [], [], timeout)[0]:
            _end(server)
            _server.cache_clear()
            raise TimeoutError(f"the program takes longer than {timeout} seconds: {err.read_text()[-2000:]}")
        return int(server.stdout.readline()), out.read_text(), err.read_text()
