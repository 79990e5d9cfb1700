"""Which logbooks there are, and how each run's is closed."""
from pathlib import Path

import pytest

from mamba_mi.config import UserError
from mamba_mi.runs import logbook
from mamba_mi.runs.logbook import Card, check_logbook, open_logbook

CARD = Card("0123456789ab", "patching", Path("run"))


class Noting(logbook.Silent):
    """A logbook that notes how it was closed."""

    closed = []

    def close(self, status):
        self.closed.append(status)


def test_the_silent_logbook_takes_everything_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with open_logbook({"name": "none"}, CARD) as book:
        book.config({"seed": 0})
        book.log({"training/loss": 1.0}, step=3)
        book.summary([{"metric": "m", "mean": 1.0}], [], {"seconds": 1.0})
        book.figure(Path("a.png"))
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "") and book.facts == {"name": "none"}


@pytest.mark.parametrize("ask", [check_logbook, lambda knobs: open_logbook(knobs, CARD).__enter__()])
def test_an_unknown_logbook_is_answered_with_those_there_are(ask):
    with pytest.raises(UserError, match="logger=wanb: no such logbook; there is none, wandb; did you mean 'wandb'"):
        ask({"name": "wanb"})


@pytest.mark.parametrize(("error", "status"), [
    (None, "done"), (ValueError, "failed"), (UserError, "failed"), (KeyboardInterrupt, "interrupted"),
    (SystemExit, "interrupted")])
def test_a_logbook_is_closed_as_the_run_ended(monkeypatch, error, status):
    monkeypatch.setattr(logbook, "_kind", lambda name: Noting)
    Noting.closed.clear()
    try:
        with open_logbook({"name": "noting"}, CARD):
            if error:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert Noting.closed == [status]
