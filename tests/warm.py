"""A Python that has the libraries imported already, so that a program that a test starts begins in
milliseconds and not in seconds.

`interpreter(folder)` starts a server that imports them once, and yields an executable that takes the place of
`sys.executable`: it asks the server for a fork, which gets the program's words, folder, environment and standard
streams, and it ends as the fork ends. SIGINT and SIGTERM are passed on; when the executable is killed, so is the fork.
Our own packages are imported by each fork anew.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: What our programs import, down to what diffusers and transformers import only when it is asked for.
LIBRARIES = (
    "accelerate", "accelerate.commands.launch", "datasets", "diffusers", "filelock", "huggingface_hub", "numpy",
    "open_clip", "pandas",
    "peft", "pyarrow.parquet", "pydantic", "rich.progress", "rich.table", "safetensors.torch", "scipy.linalg", "torch",
    "torch._dynamo",
    "torch._subclasses.fake_tensor", "torch.distributed.run", "torch.distributed.fsdp", "torch.distributed.tensor",
    "torch.distributed.checkpoint.state_dict", "torch.utils.checkpoint", "torch.utils.flop_counter", "torchmetrics",
    "torchvision.utils",
    "torchvision.transforms.v2", "typer.main", "yaml", "matplotlib.figure",
    "torch.distributed.elastic.multiprocessing.api",
)  # fmt: skip
LAZY = {
    "diffusers": (
        "AutoencoderKL", "AutoencoderTiny", "EulerDiscreteScheduler", "LCMScheduler", "StableDiffusionPipeline",
        "UNet2DConditionModel",
    ),
    "transformers": ("CLIPModel", "CLIPTextModel", "CLIPTokenizer", "PreTrainedTokenizerFast"),
}  # fmt: skip


# ---- what is put in the place of an interpreter ----------------------------------------------------------------------


def ask(address: str, executable: str, *words: str) -> int:
    """Have a fork run `python WORDS`, called as `executable`. Returns its exit code, negative for the signal that ended
    it.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        request = json.dumps(
            {"executable": executable, "words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        ).encode()
        socket.send_fds(line, [len(request).to_bytes(4, "big")], [0, 1, 2])
        line.sendall(request)
        process = int.from_bytes(line.recv(4), "big")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda n, _: os.kill(process, n))
        os.close(0)  # a pipe whose other end is to be seen closing must not be held open here
        return int.from_bytes(line.recv(4), "big", signed=True)


def end(code: int) -> None:
    """End as the fork did."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# ---- the server ------------------------------------------------------------------------------------------------------


def serve(address: str) -> dict[str, Any]:
    """Fork for whoever asks until stdin is closed. Returns in the forks alone: the request that each is for."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for library, names in LAZY.items():
        for name in names:
            getattr(importlib.import_module(library), name)
    gc.collect()
    gc.freeze()  # so that a fork's collections leave these pages shared
    children: dict[int, socket.socket] = {}
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            ready, _, _ = select.select([0, listener, ended, *children.values()], [], [])
            if 0 in ready:
                for process in children:
                    os.kill(process, signal.SIGKILL)
                os._exit(0)
            if ended in ready:
                os.read(ended, 4096)
                _report(children)
            for process, line in list(children.items()):
                if line in ready:  # it never says anything more: it is gone
                    os.kill(process, signal.SIGKILL)
                    children.pop(process).close()
            if listener in ready:
                line, _ = listener.accept()
                size, streams, _, _ = socket.recv_fds(line, 4, 3)
                asked = line.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
                if not asked or len(asked) < int.from_bytes(size, "big"):  # killed while it asked
                    for held in (*streams, line.detach()):
                        os.close(held)
                    continue
                request = json.loads(asked)
                process = os.fork()
                if not process:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for held in (ended, wake, line.fileno(), *(other.detach() for other in children.values())):
                        os.close(held)
                    line.detach()
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                        os.close(stream)
                    return request
                for stream in streams:
                    os.close(stream)
                children[process] = line
                with contextlib.suppress(OSError):  # killed meanwhile, which is seen next
                    line.sendall(process.to_bytes(4, "big"))


def _report(children: dict[int, socket.socket]) -> None:
    """Tell those who asked how their forks ended."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if line := children.pop(found[0], None):
                with contextlib.suppress(OSError), line:
                    line.sendall(os.waitstatus_to_exitcode(found[1]).to_bytes(4, "big", signed=True))


def become(request: dict[str, Any]) -> None:
    """Be the interpreter that was asked for."""
    words, environment = request["words"], request["environment"]
    sys.executable = request["executable"]  # what it starts is warm too
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    while words[0] in ("-u", "-E", "-s"):
        words = words[1:]
    sys.path[0:1] = ["" if words[0] in ("-c", "-m") else str(Path(words[0]).parent),
    *filter(None, environment.get("PYTHONPATH", "").split(":"))]  # fmt: skip
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


# ---- for tests -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interpreter(folder: Path, **environment: str) -> Iterator[Path]:
    """Within: an executable in `folder` that is called as Python is.

    environment: over this process's, while the libraries are imported.
    """
    # A socket's path has room for a hundred letters, which a folder for tests may have itself.
    home = tempfile.mkdtemp(prefix="warm", dir="/tmp")
    address, program = f"{home}/socket", folder / "python"
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, address], stdin=subprocess.PIPE, env=os.environ | one | environment, cwd=folder
    )
    # As a module's file, not imported from its folder: -I and -S keep out all that takes time.
    (folder / "ask.py").write_text(
        f"import runpy, sys\nwarm = runpy.run_path({__file__!r})\n"
        f"warm['end'](warm['ask']({address!r}, *sys.argv[1:]))\n"
    )
    asks = [sys.executable, "-IS", str(folder / "ask.py")]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(asks)} "$0" "$@"\n')
    program.chmod(0o755)
    try:
        while not Path(address).exists():
            assert server.poll() is None, "the interpreter that is to be asked has died"
            time.sleep(0.05)
        yield program
    finally:
        assert server.stdin
        server.stdin.close()
        server.wait()
        shutil.rmtree(home)


def leave(request: dict[str, Any]) -> None:
    """Run the program and end with its exit code, without taking all the libraries down one by one."""
    code: Any = 0
    try:
        become(request)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        traceback.print_exception(error)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    end(int(bool(code)) if isinstance(code, str) else code or 0)


if __name__ == "__main__":
    leave(serve(sys.argv[1]))
