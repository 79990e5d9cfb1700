"""Several processes: the same batch in shares gives the curve of one process; who may not be started so is told in a line."""
import json
import sys
from pathlib import Path

import pytest
import torch

from mamba_mi import together
from mamba_mi.config import UserError
from tests.data.texts import records, write
from tests.torchrun import torchrun
from tests.training.corpora import gradients_of_ranks, made, tokenizer_file

WORDS = ["experiment=train", "model=mamba2-130m", "dataset=pile", "dataset.heldout=0.2", "dataset.buffer=10", "threads=1",
         "model.sizes.d_model=16", "model.sizes.n_layer=2", "model.sizes.d_state=4", "model.sizes.headdim=8", "model.sizes.vocab_size=361",
         "method.steps=6", "method.batch=4", "method.length=24", "method.warmup=1", "method.examined=6", "method.eval_every=3",
         "method.resamples=100", "method.lr=4e-3", "device=cpu"]


def test_the_shares_of_all_ranks_are_the_batch_and_their_gradients_sum_to_its(tmp_path):
    whole = gradients_of_ranks(tmp_path, 1)[0]
    shares = gradients_of_ranks(tmp_path, 2)
    for name, gradient in whole.items():
        torch.testing.assert_close(sum(share[name] for share in shares), gradient, rtol=1e-9, atol=1e-13)


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path):
    with pytest.raises(UserError, match="method.batch=4: does not split into 1 processes times method.accumulate=3 parts"):
        made(tmp_path, accumulate=3)
    two = together.Alone()
    two.count = 2
    with pytest.raises(UserError, match="method.batch=4: does not split into 2 processes times method.accumulate=4 parts"):
        made(tmp_path, accumulate=4, ranks=two)


def test_without_accelerate_several_processes_are_refused_in_a_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"WORLD_SIZE=2: several processes need accelerate \(pip install '.\[train\]'\)"):
        together.join("cpu", together.FIT, "it")
    with pytest.raises(UserError, match="WORLD_SIZE=2: experiment=patching runs in one process; start it without torchrun"):
        together.join("cpu", "", "experiment=patching")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert together.join("cpu", "", "it").count == 1


def launched(folder, processes: int, *words) -> Path:
    done = torchrun(processes, *WORDS, f"model.tokenizer={folder / 'tokenizer.json'}", f"dataset.path={folder / 'text.jsonl.zst'}",
                    *words, f"paths.logs={folder / str(processes)}", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return next((folder / str(processes)).glob("*/*/*/manifest.json")).parent


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    tokenizer_file(tmp_path)
    write(tmp_path / "text.jsonl.zst", records(90))
    one, two = launched(tmp_path, 1), launched(tmp_path, 2)
    assert one.name == two.name  # how many there were is no setting
    curves = [json.loads((run / "artifacts" / "training_curve.json").read_text()) for run in (one, two)]
    losses = [[point["loss"] for point in curve] for curve in curves]
    assert losses[1] == pytest.approx(losses[0], rel=2e-6) and losses[0][-1] < losses[0][0] - 0.1
    assert [p["validation"] for p in curves[1] if "validation" in p] == pytest.approx(
        [p["validation"] for p in curves[0] if "validation" in p], rel=2e-6)
    told = json.loads((two / "artifacts" / "training_info.json").read_text())
    assert told["speed"]["processes"] == 2 and json.loads((two / "manifest.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_two_processes_go_on_from_where_one_was(tmp_path):
    """Checkpoints do not know how many there were: stopped after three steps in one, it ends as if in one."""
    tokenizer_file(tmp_path)
    write(tmp_path / "text.jsonl.zst", records(90))
    script = ("import sys; sys.path[:0] = {path!r}\nfrom pathlib import Path\nfrom mamba_mi import together\n"
              "from tests.training.corpora import made\nfolder = Path({folder!r})\nranks = together.join('cpu', together.FIT, '')\n"
              "train = made(folder, ranks=ranks, steps=6, warmup=2)\ntrain.fit(None, folder / 'cut')\n"
              "print('curve', ranks.rank, [p['loss'] for p in train.curve])")
    whole = made(tmp_path, steps=6, warmup=2)
    whole.fit(None, tmp_path / "whole")
    cut = made(tmp_path, steps=6, warmup=2)
    real = cut._losses_at
    cut._losses_at = lambda step: stop() if step == 3 else real(step)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(None, tmp_path / "cut")
    (tmp_path / "go.py").write_text(script.format(path=sys.path, folder=str(tmp_path)))
    done = torchrun(2, cwd=tmp_path, script=tmp_path / "go.py")
    assert done.returncode == 0, done.stderr[-3000:]
    curves = [json.loads(line.split(maxsplit=2)[2]) for line in done.stdout.splitlines() if line.startswith("curve")]
    assert len(curves) == 2 and curves[0] == curves[1]
    assert curves[0] == pytest.approx([point["loss"] for point in whole.curve], rel=2e-6)


def stop():
    raise KeyboardInterrupt
