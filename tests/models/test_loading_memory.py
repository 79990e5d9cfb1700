"""A checkpoint is streamed: beside the model itself, loading takes no more than about one tensor of it."""
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mamba_mi import models
from mamba_mi.config import stream
from mamba_mi.models import checkpoints

REPO = Path(__file__).resolve().parents[2]
SIZES = {"d_model": 1024, "n_layer": 4, "vocab_size": 8000, "ssm_cfg": {"layer": "Mamba2"}}  # 140 MB, the embedding 33
FORMATS = ("safetensors", "bin")
SLACK = 16 << 20  # bytes: what the library makes once, the read buffer
SCRIPT = """
import sys
import torch
from mamba_mi import models
torch.set_num_threads(1)
models.load("tiny", cached=False)  # what a first call loads is the library's
if sys.argv[3:] == ["twice"]:
    real = models.checkpoints.read_weights
    models.checkpoints.read_weights = lambda path: {name: x.clone() for name, x in real(path).items()}
print("ready", flush=True)
sys.stdin.readline()
lm = models.load(sys.argv[1], dtype=sys.argv[2], cached=False)
print(sum(x.numel() * x.element_size() for x in lm.parameters()), flush=True)
sys.stdin.readline()
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").exists(),
                                                   reason="only Linux says how much of a process's memory is its own")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """`checkpoint(format, shards)`: a folder, and the bytes of its largest tensor."""
    lm = models.fresh(SIZES, generator=stream(0, "loading"))
    config, tensors = checkpoints.written(lm)

    def make(kind: str, shards: int) -> tuple[Path, int]:
        folder = tmp_path_factory.mktemp(kind)
        stem, save = ("model", lambda x, to: save_file(x, to, metadata={"format": "pt"})) if kind == "safetensors" else (
            "pytorch_model", torch.save)
        parts = {f"{stem}-{i}.{kind}" if shards > 1 else f"{stem}.{kind}": sorted(tensors)[i::shards] for i in range(shards)}
        for name, own in parts.items():
            save({key: tensors[key] for key in own}, folder / name)
        (folder / "config.json").write_text(json.dumps(config))
        if shards > 1:
            of = {key: name for name, own in parts.items() for key in own}
            (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": of}))
        return folder, max(4 * x.numel() for x in tensors.values())
    return make


def own_memory(process) -> int:
    """Bytes that are the process's own; pages of a mapped file, which the system takes back when it likes, are not."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def loaded(folder: Path, *words: str) -> tuple[int, int]:
    """The bytes of the model that a process of its own loads, and the most that doing so took."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), *words], cwd=REPO, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process, ThreadPoolExecutor(1) as pool:
        assert process.stdout.readline() == "ready\n"
        before = most = own_memory(process)
        print(file=process.stdin, flush=True)
        answer = pool.submit(process.stdout.readline)
        while not answer.done():
            most = max(most, own_memory(process))
            time.sleep(5e-4)
        size, most = int(answer.result()), max(most, own_memory(process))  # while the model is still there
        print(file=process.stdin, flush=True)
    return size, most - before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", FORMATS)
def test_loading_takes_the_model_and_about_one_tensor(checkpoint, kind, shards, dtype):
    folder, largest = checkpoint(kind, shards)
    size, most = loaded(folder, dtype)
    assert 0.95 * size <= most <= size + largest + SLACK  # the model owns its memory, whatever becomes of the file


def test_the_measurement_sees_a_file_that_is_held_beside_the_model(checkpoint):
    folder, largest = checkpoint("safetensors", 1)
    size, most = loaded(folder, "bfloat16", "twice")
    assert most > size + largest + SLACK
