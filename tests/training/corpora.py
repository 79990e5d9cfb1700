"""A model of two layers and the tokenizer and text it is trained on, in a folder."""
from __future__ import annotations

from mamba_mi import data, experiments, models
from mamba_mi.experiments import Setting
from mamba_mi.together import Alone
from mamba_mi.training.text import Rows
from tests.data.conftest import train_bpe
from tests.data.texts import records, write

SIZES = {"mamba1": {"d_model": 16, "n_layer": 2, "d_state": 4, "vocab_size": 361},
         "mamba2": {"d_model": 16, "n_layer": 2, "d_state": 4, "headdim": 8, "vocab_size": 361}}
FEW = {"name": "train", "steps": 4, "batch": 4, "length": 24, "warmup": 1, "examined": 6, "eval_every": 2, "checkpoint_every": 1,
       "lr": 4e-3}


def tokenizer_file(folder):
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_bpe(trim_offsets=True, merges=80).backend_tokenizer.save(str(path))
    return path


def made(folder, variant="mamba2", *, seed=0, ranks=None, dtype="float32", data_knobs=None, lm=None, documents=90, **knobs):
    """The experiment, checked and with its corpus, ready for `fit(None, scratch)`."""
    kind = experiments.get("train").on("pile")
    path = folder / "text.jsonl.zst"
    if not path.exists():
        write(path, records(documents))
    lm = lm or models.sized("x", variant, SIZES[variant], seed=seed, tokenizer=tokenizer_file(folder), dtype=dtype)
    out = kind(experiments.knobs_of(kind, FEW | knobs), lm, Setting(seed, 1 << 20, ranks=ranks or Alone()))
    out.check()
    out.candidates(lambda: data.load({"name": "pile", "path": str(path), "heldout": 0.2, "buffer": 10, **(data_knobs or {})},
                                     lm.tokenizer, seed))
    return out


def gradients_of_ranks(folder, count: int) -> list[dict]:
    """What each of `count` processes would hand over of one step's gradients, in float64."""
    found = []
    for rank in range(count):
        ranks = Alone()
        ranks.rank, ranks.count = rank, count
        train = made(folder, ranks=ranks, dtype="float64")
        train.rows = Rows(train.dataset.corpus.reader(), train.script, length=train.knobs.length, boundaries=True)
        for part in train._losses_at(0):
            part.backward()
        found.append({name: p.grad for name, p in train.lm.named_parameters()})
    return found
