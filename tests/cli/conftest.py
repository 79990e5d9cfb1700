"""The command line in this process, with a runner that only notes what it is given: no test here is about the runner."""
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from mamba_mi import cli


@dataclass
class Answer:
    """What came of a command."""

    code: int
    out: str
    err: str
    ran: list = field(default_factory=list)
    left: list = field(default_factory=list)


@pytest.fixture
def runner(monkeypatch):
    """The stand-in: `runner.ran` holds the settings it was called with; set `runner.run` for one that fails."""
    module = ModuleType("mamba_mi.runner")
    module.ran = []
    module.run = module.ran.append
    monkeypatch.setitem(sys.modules, "mamba_mi.runner", module)
    return module


@pytest.fixture
def command(runner, monkeypatch, capsys, tmp_path):
    """`command("model=tiny", "-m")` does what `python launch.py model=tiny -m` does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Answer:
        runner.ran.clear()
        monkeypatch.setattr(sys, "argv", ["launch.py", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        left = sorted(str(path.relative_to(tmp_path)) for path in Path(tmp_path).rglob("*") if path.is_file())
        return Answer(code, said.out, said.err, list(runner.ran), left)

    return call
