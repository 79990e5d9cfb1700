"""A small data set in CounterFact's shape, a tokenizer, and random checkpoints that speak it."""
from __future__ import annotations

from oracles.checkpoints import MAMBA1, MAMBA2, random_checkpoint, with_ssm

from mamba_mi import data, models
from mamba_mi.experiments import Setting, knobs_of
from tests.data.conftest import train_bpe

VOCAB = 361
CONFIGS = {name: {**config, "vocab_size": VOCAB} for name, config in {
    "mamba1": MAMBA1, "mamba2": with_ssm(MAMBA2, d_state=16, headdim=32, ngroups=2)}.items()}
TARGETS = (" French", " German", " Old High Danish", " Japanese")


def record(prefix: str, subject: str, suffix: str, target: str, wrong: str = " Korean") -> dict:
    return {"relation": "r", "relation_prefix": prefix, "relation_suffix": suffix, "prompt": prefix + subject + suffix,
            "relation_id": "P1", "target_false_id": "Q2", "target_true_id": "Q1", "target_true": target,
            "target_false": wrong, "subject": subject}


def records() -> list[dict]:
    """Prompts of several lengths, answers of one token and of more; the last repeats the first with another answer, and the
    one before it has a wrong answer that begins as the right one does."""
    subjects = (" Danielle Darrieux", " Zoë Müller", " 大江健三郎", " Toko Yasuda", " Velmora", " Bo")
    made = [record("The mother tongue of", subject, suffix, TARGETS[i % 4])
            for i, subject in enumerate(subjects) for suffix in (" is", " is said to be")]
    made.append(record("The anthem of", " Velmora", " is in", " Danish", " Danish"))
    return [*made, {**made[0], "target_true": " German"}]


def dataset(folder, tokenizer, **knobs):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(records()), folder / "records.parquet")
    return data.load({"name": "counterfact", "path": str(folder / "records.parquet"), **knobs}, tokenizer, 0)


def tokenizer():
    return train_bpe(trim_offsets=True, merges=140)


def model(folder, variant: str, dtype: str = "float32", calm: bool = True):
    """A random model and its tensors as written."""
    weights = random_checkpoint(folder, CONFIGS[variant], seed=3, calm=calm)
    lm = models.load(folder, dtype=dtype, cached=False)
    lm.tokenizer = tokenizer()
    return lm, weights


def made(kind, lm, **knobs):
    experiment = kind(knobs_of(kind, {"name": "x", **knobs}), lm, Setting(0, 1 << 30))
    experiment.check()
    return experiment
