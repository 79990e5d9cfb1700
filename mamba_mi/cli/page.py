"""The page of `--help`. It is read off conf/: a group, an option or a key that is added is on the page by itself."""
from __future__ import annotations

import re
from pathlib import Path

from mamba_mi import __version__
from mamba_mi.cli.composing import by_size
from mamba_mi.cli.flags import FLAGS

ABOUT = """\
mamba_mi {version}: what happens inside Mamba-family language models, one command an experiment.
Every run ends in a folder with its effects, their statistics, figures and a report to open in a browser.
"""
EXAMPLES = (
    ("", "activation patching of the tiny model, about a minute"),
    ("experiment=patching model=mamba2-1.3b", "the same of a published model, on CounterFact"),
    ("model=mamba2-130m dry_run=true", "what that would run and cost; runs nothing"),
    ("model=mamba2-1.3b model.path=DIR", "a checkpoint folder of your own"),
    ("dataset=pairs dataset.path=FILE", "prompts of your own: clean, corrupt, answer, wrong answer"),
    ("-m seed=0,1,2", "a sweep: three runs; -m seeds=three says the same"),
    ("-m 'model=glob(mamba2*)' seed=0,1", "a sweep over every Mamba-2 size and two seeds"),
    ("-m seeds=five launcher=joblib", "five runs side by side, one a core"),
    ("experiment=train debug=fast", "train a tiny model, 50 steps only"),
    ("model=mamba2-1.3b --cfg job", "every setting of that run, with its keys"),
)
OFTEN = (
    ("model.path=DIR", "a folder with config.json and the weights; its config decides every size"),
    ("model.tokenizer=…", "a tokenizer.json, a folder that holds one, or a hub id"),
    ("dataset.path=FILE", "a local file instead of the hub's"),
    ("dataset.n=50", "how many prompts; null for all"),
    ("dataset.only_correct=false", "also prompts that the model gets wrong"),
    ("method.layers=[0,3]", "lists have brackets"),
    ("paths.logs=DIR", "where runs are written"),
)
FIRST = ("experiment", "model", "dataset", "method", "debug", "seeds", "sweep")
RESULTS = """\
  A run:    experiment_logs/<method>/<model>/<run_id>/ with report.html, summary.json, effects.parquet, figures/,
            prompts.json, config.yaml and manifest.json. The run_id follows from the settings: the same command finds
            its run, goes on where it was interrupted, and does not repeat what is done (force=true does).
  A sweep:  the same folders, one for each run, and in multirun/<method>/<date_time>/ the report of all of them and
            sweep.json: what was planned and how each run ended."""


def help_text(conf: Path, command: str) -> str:
    """The whole page, for somebody who calls us as `command`."""
    groups, keys = _groups(conf / "config.yaml"), _keys(conf / "config.yaml")
    parts = [
        ABOUT.format(version=__version__),
        _block("Usage", [(f"{command} {words}".rstrip(), said) for words, said in EXAMPLES]),
        _block("Flags", FLAGS.items()),
        "Groups: choose with GROUP=OPTION",
        *(_group(conf, name, default, said) for name, default, said in groups),
        _block("Settings of every run: change with KEY=VALUE", [(f"{key}={default}", said) for key, default, said in keys]),
        _block("Settings inside a group: GROUP.KEY=VALUE; --cfg job shows them all", OFTEN),
        f"Results\n{RESULTS}",
    ]
    return "\n\n".join(part.rstrip() for part in parts)


def _group(conf: Path, name: str, default: str, said: str) -> str:
    options = sorted((conf / name).glob("*.yaml"), key=lambda path: by_size(path.stem))
    head = f"{name}={default}" if default != "null" else f"{name}="
    return _block(f"  {head:<22}{said}", [(path.stem, _described(path)) for path in options], indent=4, widest=20)


def _block(title: str, rows, indent: int = 2, widest: int = 60) -> str:
    """Two columns; what is longer than `widest` stands out of the first."""
    rows = list(rows)
    width = max([22 - indent, *(len(left) for left, _ in rows if len(left) <= widest)])
    return "\n".join([title, *(f"{' ' * indent}{left:<{width}}  {right}" for left, right in rows)])


def _groups(config: Path) -> list[tuple[str, str, str]]:
    """(group, default, description) of the defaults list, the much used first; Hydra's own have a path in their name."""
    found = re.findall(r"^  - (\w+): (\S+) # (.+)$", config.read_text(encoding="utf-8"), re.MULTILINE)
    return sorted(found, key=lambda group: FIRST.index(group[0]) if group[0] in FIRST else len(FIRST))


def _keys(config: Path) -> list[tuple[str, str, str]]:
    """(key, default, description) of the settings, those below another as `cone.memory`."""
    found, above = [], ""
    settings = re.split(r"^(?=seed:|hydra:)", config.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    for line in settings.splitlines():
        if opened := re.fullmatch(r"(\w+):", line):
            above = f"{opened[1]}."
        elif setting := re.fullmatch(r"( *)(\w+): (\S+) # (.+)", line):
            found.append((f"{above if setting[1] else ''}{setting[2]}", setting[3], setting[4]))
    return found


def _described(option: Path) -> str:
    """The first comment of an option's file that is not Hydra's package line."""
    lines = option.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @")), "")
