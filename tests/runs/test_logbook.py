"""Which logbooks there are."""
from pathlib import Path

import pytest

from mamba_mi.config import UserError
from mamba_mi.runs.logbook import Card, open_logbook

CARD = Card("0123456789ab", "patching", Path("run"))


def test_the_silent_logbook_takes_everything_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    book = open_logbook({"name": "none"}, CARD)
    book.config({"seed": 0})
    book.log({"loss": 1.0}, step=3)
    book.summary([{"metric": "m", "mean": 1.0}])
    book.figure(Path("a.png"))
    book.close("done")
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_an_unknown_logbook_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="logger=nonne: no such logbook; there is none.*did you mean 'none'"):
        open_logbook({"name": "nonne"}, CARD)
