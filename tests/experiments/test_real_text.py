"""Real text, a reduced model, the published tokenizer: the loss falls below a unigram model's, killed on the way or not."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.data.texts import write

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "data"


def documents(text: str, size: int = 1500) -> list[dict]:
    """Paragraphs put together to about that many characters."""
    found, held = [], ""
    for paragraph in text.split("\n\n"):
        held += paragraph + "\n\n"
        if len(held) > size:
            found.append({"text": held.strip(), "meta": {"pile_set_name": "Plays"}})
            held = ""
    return found


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "text" / "tinyshakespeare.txt").is_file(), reason="the text is not beside the repository, in ../shared/data")
def test_a_model_of_real_text_beats_a_unigram_model_though_it_was_killed(tmp_path):
    text = (SHARED / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    path = write(tmp_path / "text.jsonl.zst", documents(text), frames=7)
    command = [sys.executable, str(REPO / "launch.py"), "experiment=train", "model=mamba2-130m", "dataset=pile", f"dataset.path={path}",
               "dataset.heldout=0.05", f"model.tokenizer={SHARED / 'gpt-neox-20b-tokenizer.json'}", "model.sizes.d_model=32", "model.sizes.n_layer=2",
               "model.sizes.d_state=16", "model.sizes.headdim=16", "method.steps=150", "method.batch=8", "method.length=96", "method.lr=8e-3",
               "method.warmup=10", "method.examined=null", "method.eval_every=75", "method.checkpoint_every=10", "method.resamples=200",
               "threads=1", f"paths.logs={tmp_path / 'logs'}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    while child.poll() is None and not list((tmp_path / "logs").glob("*/*/*/scratch/checkpoint.pt")):
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    (kept,) = (tmp_path / "logs").glob("*/*/*/scratch/checkpoint.pt")
    assert 10 <= len(torch.load(kept, weights_only=True)["curve"]) < 150
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)
    run = kept.parents[1]
    rows = {row["metric"]: row for row in json.loads((run / "summary.json").read_text())}
    gain, manifest = rows["nats_per_token_over_unigram"], json.loads((run / "manifest.json").read_text())
    print(rows["perplexity"]["mean"], rows["unigram_perplexity"]["mean"], gain)
    assert (manifest["status"], manifest["resumed"]) == ("done", 1) and gain["n"] > 15
    assert gain["ci_high"] < 0 and rows["perplexity"]["mean"] < rows["unigram_perplexity"]["mean"]
