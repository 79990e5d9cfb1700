"""Contestants in processes of their own: their environments, and a line of JSON each way."""
from __future__ import annotations

import json
import os
import subprocess
import tempfile
import venv
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parent / "constraints.txt"
ENVIRONMENTS = {"transformer_lens": "transformer-lens", "nnsight": "nnsight"}  # and what pip calls it


class Failed(RuntimeError):
    """A contestant could not be installed or ended; the message says what it said."""


def environment(name: str, folder: Path) -> Path:
    """The Python of an environment with that library in it, in `folder`: made if it is not there."""
    python = folder / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / name / ".ready"
    if ready.is_file():
        return python
    venv.create(folder / name, with_pip=True, clear=True)
    pip = subprocess.run([python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, ENVIRONMENTS[name]],
                         capture_output=True, text=True)
    if pip.returncode:
        raise Failed(f"pip install {ENVIRONMENTS[name]}: {pip.stderr.strip().splitlines()[-1]}")
    ready.touch()
    return python


class Worker:
    """One contestant over one checkpoint, in a process that goes on until it is left; its libraries' `versions`."""

    def __init__(self, name: str, folder: Path, python: Path | str):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, HERE / "patching_worker.py", name, folder], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
        self.versions = self._told()["versions"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def seconds(self, cells: list, batch: int = 1) -> float:
        """CPU seconds of these cells, `batch` of them a forward."""
        return self._asked(cells=cells, batch=batch, out=None)["seconds"]

    def logits(self, cells: list, batch: int = 1) -> Tensor:
        """Their logits at the last position, SV; the unpatched run's where there are no cells."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.pt"
            self._asked(cells=cells, batch=batch, out=str(out))
            return torch.load(out, weights_only=True)

    def _asked(self, **request) -> dict:
        with suppress(BrokenPipeError):  # it has ended: what it said is still to be read
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._told()

    def _told(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise Failed(f"ended with {self.process.wait()}: {self.errors.read().strip()[-400:]}")
        told = json.loads(line)
        if "failed" in told:
            raise Failed(told["failed"])
        return told
