"""Online, offline or off, and everything that can go wrong with it: said once, and no run ends of it."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oracles import wandb_file
from oracles.wandb_server import KEY, Refusing, WandB, server

from mamba_mi.config import UserError
from mamba_mi.runs import wandb_mode
from mamba_mi.runs.logbook import Card, check_logbook, open_logbook

REPO = Path(__file__).resolve().parents[2]
ROWS = [{"conditions": {"task": "box"}, "metric": "hit", "n": 3, "mean": 0.5}]


@pytest.fixture(autouse=True)
def fresh(alone, forget_wandb):
    """Each test here has an environment of its own, which wandb reads once a process of its own."""


def keep(folder, said, **knobs):
    """The facts of a logbook that is told of a whole run."""
    for name in ("report.html", "summary.json"):
        (folder / name).write_text("[]")
    card = Card("0123456789ab", "patching", folder, group="patching/today", tags=("tiny",), name="a name")
    with open_logbook({"name": "wandb", "patience": 2.0, **knobs}, card, said.append) as book:
        book.config({"seed": 0})
        book.log({"training/loss": 1.0}, 1)
        book.summary(ROWS, ROWS, {"seconds": 1.0})
    return book.facts


def in_wandbs_folder(folder, said):
    """That the run was logged into its folder and the one line says how to sync it."""
    (path,) = folder.glob("wandb/offline-run-*")
    assert said[0].endswith(f"; later: wandb sync {path}") and len(said) == 1
    assert wandb_file.read(path / "run-0123456789ab.wandb").summary["hit/box/mean"] == 0.5
    return True


def test_without_a_key_it_is_offline(tmp_path, said):
    assert keep(tmp_path, said)["mode"] == "offline" and in_wandbs_folder(tmp_path, said)


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_with_a_key_and_a_server_it_is_online(tmp_path, said, monkeypatch, home, where):
    asked = WandB()
    with server(asked) as asked.address:
        address = asked.address
        monkeypatch.setenv("WANDB_BASE_URL", address)
        if where == "environment":
            monkeypatch.setenv("WANDB_API_KEY", KEY)
        else:
            (tmp_path / "netrc").write_text(f"machine {address.removeprefix('http://')}\n  login user\n  password {KEY}\n")
            monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        card = Card("0123456789ab", "patching", tmp_path, group="patching/today", tags=("tiny",), name="a name")
        with open_logbook({"name": "wandb", "files": [], "patience": 5.0}, card, said.append) as book:
            book.config({"seed": 0})
            book.log({"training/loss": 1.0}, 1)
    told = asked.told[0]
    assert (told["name"], told["project"], told["displayName"]) == ("0123456789ab", "mamba_mi", "a name")
    assert (told["groupName"], told["jobType"], told["tags"]) == ("patching/today", "patching", ["tiny"])
    assert book.facts["mode"] == "online" and book.facts["url"] == f"{address}/me/p/runs/0123456789ab"
    assert said == [f"W&B: {book.facts['url']}"] and "trouble" not in book.facts


@pytest.mark.parametrize(("answer", "why"), [
    (None, "Connection refused"), (Refusing(500), "it answers 500"), (Refusing(None, b"\0\1 garbage\r\n\r\n"), "garbage")])
def test_with_a_key_and_no_good_server_it_is_offline(tmp_path, said, monkeypatch, answer, why):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    if answer is None:
        facts = keep(tmp_path, said)
    else:
        with server(answer) as address:
            monkeypatch.setenv("WANDB_BASE_URL", address)
            facts = keep(tmp_path, said)
    assert facts["mode"] == "offline" and "cannot be reached: " in facts["why"] and why in facts["why"]
    assert in_wandbs_folder(tmp_path, said)


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_mode, "PROBE", 0.2)
    with server(lambda *asked: time.sleep(1) or (200, {})) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        assert "timed out" in keep(tmp_path, said)["why"] and in_wandbs_folder(tmp_path, said)


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_key_that_the_server_refuses_is_said_and_nothing_is_lost(tmp_path, said, monkeypatch, mode):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server(Refusing(401)) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        facts = keep(tmp_path, said, mode=mode)
    assert facts["mode"] == "offline" and "online failed" in facts["why"] and "401" in facts["why"]
    (path,) = tmp_path.glob("wandb/offline-run-*")
    assert len(said) == 1 and said[0].endswith(f"; later: wandb sync {path}")


@pytest.mark.slow
@pytest.mark.parametrize("answer", [None, Refusing(500), Refusing(None, b"\0\1 garbage\r\n\r\n")])
def test_asked_to_be_online_it_waits_for_the_server_as_long_as_it_may(tmp_path, said, monkeypatch, answer):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    started = time.monotonic()
    if answer is None:
        facts = keep(tmp_path, said, mode="online")
    else:
        with server(answer) as address:
            monkeypatch.setenv("WANDB_BASE_URL", address)
            facts = keep(tmp_path, said, mode="online")
    assert time.monotonic() - started < 20 and facts["mode"] == "offline" and len(said) == 1


@pytest.mark.slow
def test_a_server_that_goes_away_is_said_once_and_the_run_ends(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    asked, answer = WandB(), {}
    with server(lambda *words: answer.get("gone") or asked(*words)) as asked.address:
        monkeypatch.setenv("WANDB_BASE_URL", asked.address)
        started = time.monotonic()
        with open_logbook({"name": "wandb", "patience": 2.0}, Card("0123456789ab", "patching", tmp_path),
                          said.append) as book:
            answer["gone"] = 500, {}
            for step in range(50):
                book.log({"training/loss": 1.0}, step)
        assert time.monotonic() - started < 60
    assert book.facts["mode"] == "online" and "trouble" in book.facts
    assert len(said) == 2 and said[1].endswith(f"what it has: wandb sync {book.facts['path']}")


def test_wandb_mode_decides_where_auto_is_left_to_it(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert keep(tmp_path, said)["mode"] == "disabled" and said == ["W&B is disabled (WANDB_MODE says so)"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert keep(tmp_path, said)["why"] == "WANDB_MODE says so"
    check_logbook({"name": "wandb", "mode": "online"})  # there is a key, whatever WANDB_MODE says


def test_disabled_it_writes_nothing(tmp_path, said):
    keep(tmp_path, said, mode="disabled")
    assert not (tmp_path / "wandb").exists() and said == ["W&B is disabled (logger.mode=disabled)"]


@pytest.mark.parametrize(("knobs", "line"), [
    ({"mode": "online"}, "logger.mode=online: there is no key for http://127.0.0.1:1; run `wandb login`"),
    ({"mode": "onlin"}, "logger.mode=onlin: there are auto, offline, online, disabled; did you mean 'online'?"),
    ({"files": ["reprt.html"]}, "logger.files=reprt.html: there are .*; did you mean 'report.html'?"),
    ({"patience": 0}, "logger.patience=0.0: give some seconds"),
    ({"tag": ["a"]}, "logger.tag: no such key; .*; did you mean 'tags'?"),
])
def test_what_cannot_be_met_is_refused_beforehand(knobs, line):
    with pytest.raises(UserError, match=line.replace("?", r"\?")):
        check_logbook({"name": "wandb", **knobs})


def test_a_key_that_is_none_counts_as_none(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "WANDB_API_KEY invalid" in keep(tmp_path, said)["why"] and in_wandbs_folder(tmp_path, said)
    with pytest.raises(UserError, match="WANDB_API_KEY invalid"):
        check_logbook({"name": "wandb", "mode": "online"})


def test_a_wandb_that_cannot_start_is_said_once(tmp_path, said, monkeypatch):
    def broken(**_):
        raise RuntimeError("the service\n did not start")

    monkeypatch.setattr(wandb_mode.library(), "init", broken)
    facts = keep(tmp_path, said, mode="offline")
    assert said == ["W&B failed at the start (RuntimeError: the service did not start); the run goes on without it"]
    assert facts["trouble"] == "the start: RuntimeError: the service did not start"


def test_a_wandb_that_cannot_be_loaded_is_said_once(tmp_path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert keep(tmp_path, said)["trouble"].startswith("the start: ModuleNotFoundError") and len(said) == 1


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, said):
    (tmp_path / "wandb").write_text("in the way")
    assert "Not a directory" in keep(tmp_path, said, mode="offline")["trouble"] and len(said) == 1


def test_wandb_dying_in_the_middle_is_said_once_and_the_next_run_has_another(tmp_path, said):
    with open_logbook({"name": "wandb", "mode": "offline"}, Card("0123456789ab", "patching", tmp_path),
                      said.append) as book:
        newest = subprocess.run(["pgrep", "-n", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True).stdout
        os.kill(int(newest), signal.SIGKILL)
        time.sleep(0.2)
        for step in range(20):
            book.log({"training/loss": 1.0}, step)
            time.sleep(0.01)
    assert len(said) == 2 and said[1].startswith("W&B failed at step by step (")
    (tmp_path / "next").mkdir()
    said.clear()
    assert "trouble" not in keep(tmp_path / "next", said, mode="offline") and in_wandbs_folder(tmp_path / "next", said)


def test_a_table_longer_than_wandb_takes_is_logged_in_pieces(tmp_path, said, monkeypatch):
    monkeypatch.setattr(wandb_mode.library().Table, "MAX_ROWS", 4)
    rows = [{"conditions": {"layer": layer}, "metric": "hit", "mean": 1.0} for layer in range(10)]
    with open_logbook({"name": "wandb", "mode": "offline", "files": []}, Card("0123456789ab", "patching", tmp_path),
                      said.append) as book:
        book.summary(rows, [], {})
    told = wandb_file.only(tmp_path)
    assert [told.summary[f"{name}/nrows"] for name in ("summary", "summary_2", "summary_3")] == [4, 4, 2]


@pytest.mark.parametrize("knobs", [{"name": "none"}, {"name": "wandb", "mode": "disabled"}])
def test_wandb_is_loaded_only_where_it_is_used(knobs, tmp_path):
    script = ("import sys\nfrom pathlib import Path\nfrom mamba_mi.runs.logbook import *\n"
              f"check_logbook({knobs})\n"
              f"with open_logbook({knobs}, Card('a', 'b', Path('c'))) as book: book.config({{}})\n"
              "sys.exit('wandb' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPO)}).returncode == 0


@pytest.mark.slow
def test_a_command_ends_with_its_run_and_leaves_no_process(tmp_path):
    words = ["experiment=train", "method.steps=1", "method.batch=2", "method.examined=2", "logger=wandb"]
    ran = subprocess.run([sys.executable, str(REPO / "launch.py"), *words], cwd=tmp_path, capture_output=True, timeout=300)
    # a process left behind would hold the pipes open, and the call above would not return
    assert ran.returncode == 0 and b"W&B is offline" in ran.stdout and ran.stderr == b""
