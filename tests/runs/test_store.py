"""A run's folder keeps what it kept, whole, whatever ends the process."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mamba_mi.config import UserError
from mamba_mi.measure.effects import effects
from mamba_mi.runs.files import in_words
from mamba_mi.runs.store import OWN, Store

WRITER = """
import itertools, os, signal, sys, time
import numpy as np
from mamba_mi.measure.effects import effects
from mamba_mi.runs.store import Store
def table(i, rows):
    return effects({"prompt_id": [f"p{n:06d}" for n in range(rows)], "metric": ["m"] * rows,
                    "value": np.random.default_rng(i).random(rows), "baseline": [float(i)] * rows})
"""


def made(number: int, rows: int = 3) -> pa.Table:
    """One batch's effects: every batch has its own prompts, and two roles of each, in no order."""
    values = np.random.default_rng(number).random(2 * rows)
    prompts = [f"{number:02d}-{n}" for n in reversed(range(rows))] * 2
    return effects({"prompt_id": prompts, "role": ["last"] * rows + ["subject"] * rows,
                    "layer": [number] * 2 * rows, "metric": ["logit_diff"] * 2 * rows,
                    "value": values, "baseline": values + 1})


def started(code: str, *args: object) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER + code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_effects_are_the_same_bytes_in_whatever_order_the_parts_were_made(tmp_path):
    files = []
    for turn in range(3):
        order = random.Random(turn).sample(range(12), 12)
        with Store(tmp_path / str(turn)) as store:
            for number in order:
                store.keep(f"{number:05d}", made(number))
            store.write_effects(store.join())
        files.append((tmp_path / str(turn) / "effects.parquet").read_bytes())
    assert files[0] == files[1] == files[2]
    rows = pq.ParquetFile(tmp_path / "0" / "effects.parquet").read().to_pylist()
    expected = [row for number in range(12) for row in made(number).to_pylist()]
    assert rows == sorted(expected, key=lambda row: (row["prompt_id"], row["role"], row["layer"]))


def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path):
    for name, sessions in {"whole": [range(6)], "resumed": [range(0, 2), range(0, 5), range(0, 6)]}.items():
        for numbers in sessions:
            with Store(tmp_path / name) as store:
                for number in numbers:
                    if f"{number:05d}" not in store.kept():
                        store.keep(f"{number:05d}", made(number))
        with Store(tmp_path / name) as store:
            store.write_effects(store.join())
    whole, resumed = ((tmp_path / name / "effects.parquet").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed


def test_parts_with_different_conditions_join(tmp_path):
    with Store(tmp_path) as store:
        store.keep("a", made(0))
        store.keep("b", made(1).drop_columns("role"))
        assert store.join()["role"].to_pylist()[-6:] == [None] * 6


@pytest.mark.parametrize("moment", range(6))
def test_killed_at_any_moment_every_part_is_whole_or_absent(tmp_path, moment):
    rows = 50_000
    child = started("store = Store(sys.argv[1])\nprint('ready', flush=True)\n"
                    f"for i in itertools.count(): store.keep(f'{{i:05d}}', table(i, {rows}))\n", tmp_path)
    assert child.stdout.readline() == "ready\n", child.stderr.read()
    time.sleep(random.Random(moment).uniform(0.05, 0.5))
    child.kill()
    child.wait()
    with Store(tmp_path) as store:
        kept = sorted(store.kept())
        assert kept == [f"{i:05d}" for i in range(len(kept))]
        for i, key in enumerate(kept):
            part = pq.ParquetFile(tmp_path / "parts" / f"{key}.parquet").read()
            assert np.array_equal(part["value"].to_numpy(), np.random.default_rng(i).random(rows))
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_killed_over_and_over_the_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path):
    code = """
with Store(sys.argv[1]) as store:
    kept, most = store.kept(), int(sys.argv[2])
    for done, i in enumerate(i for i in range(100) if f"{i:05d}" not in kept):
        if done == most:
            time.sleep(600)  # however fast the disk, the kill comes before the last part
        print("keeping", flush=True)
        store.keep(f"{i:05d}", table(i, 2_000))
    store.write_effects(store.join())
"""
    whole = started(code, tmp_path / "whole", 100)
    assert whole.communicate() and whole.returncode == 0
    kept = []
    for moment in range(10):
        child, chance = started(code, tmp_path / "killed", 9), random.Random(moment)
        for _ in range(chance.randint(2, 9)):
            assert child.stdout.readline() == "keeping\n", child.stderr.read()
        time.sleep(chance.uniform(0, 0.05))
        child.kill()
        child.wait()
        kept.append(len(list((tmp_path / "killed").glob("parts/[!.]*.parquet"))))
    print(f"parts kept at each kill, of 100: {kept}")
    assert kept == sorted(kept) and 0 < kept[0] and kept[-1] < 100
    last = started(code, tmp_path / "killed", 100)
    assert last.communicate() and last.returncode == 0
    ends = [(tmp_path / name / "effects.parquet").read_bytes() for name in ("whole", "killed")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("call, new", [("fsync", False), ("replace", False), ("close", True)])
def test_killed_inside_the_write_the_old_file_or_the_new_one_is_there(tmp_path, call, new):
    """The process shoots itself at a system call: before the move the file is old, after it new."""
    child = started(f"""
with Store(sys.argv[1]) as store:
    store.write_text("report.html", "old")
    real = os.{call}
    os.{call} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    store.write_text("report.html", "new")
""", tmp_path)
    assert child.wait() == -signal.SIGKILL, child.stderr.read()
    assert (tmp_path / "report.html").read_text() == ("new" if new else "old")
    assert bool(list(tmp_path.glob(".*.partial"))) is not new
    with Store(tmp_path):
        assert not list(tmp_path.glob(".*.partial"))


def test_a_second_writer_is_told_who_holds_the_folder_until_the_kernel_lets_go(tmp_path):
    child = started("store = Store(sys.argv[1]); print('ready', flush=True); sys.stdin.read()", tmp_path)
    child.stdout.readline()
    with pytest.raises(UserError) as refused:
        Store(tmp_path)
    assert f"process {child.pid} on " in str(refused.value) and "\n" not in str(refused.value)
    child.kill()
    child.wait()
    with Store(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} "):
        Store(tmp_path)
    Store(tmp_path).close()


def test_clear_removes_what_runs_write_and_nothing_else(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.png").touch()
    run = tmp_path / "run"
    with Store(run) as store:
        for name in OWN:
            store.write_text(name if "." in name else f"{name}/inside.txt", "mine")
        for name in ("notes.md", ".hydra/config.yaml", "my figures/a.png"):
            store.write_text(name, "theirs")
        (run / "figures" / "inside.txt").unlink()
        (run / "figures").rmdir()
        (run / "figures").symlink_to(outside)
        store.clear()
        store.clear()
        assert {p.name for p in run.iterdir()} == {".lock", "notes.md", ".hydra", "my figures"}
        assert (outside / "precious.png").exists()
        with pytest.raises(UserError, match="being written"):
            Store(run)


def test_tidy_removes_parts_and_scratch_and_keeps_the_results(tmp_path):
    with Store(tmp_path) as store:
        store.keep("00000", made(0))
        (store.scratch / "step.pt").touch()
        store.write_effects(store.join())
        store.tidy()
        assert {p.name for p in tmp_path.iterdir()} == {".lock", "effects.parquet"}


def test_nothing_kept_is_nothing_to_join(tmp_path):
    with Store(tmp_path) as store, pytest.raises(LookupError, match="kept no effects"):
        store.join()


@pytest.mark.parametrize("key", ["", "../a", ".hidden", "a/b"])
def test_a_key_that_is_no_file_name_raises(tmp_path, key):
    with Store(tmp_path) as store, pytest.raises(ValueError, match="names its file"):
        store.keep(key, made(0))


def test_json_is_json(tmp_path):
    with Store(tmp_path) as store:
        row = {"mean": np.float64("nan"), "n": np.int64(3), "ci": (1.5, float("inf")), "path": Path("a/b")}
        store.write_json("summary.json", [row | {"done": np.bool_(True), 4: np.arange(2)}])
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert read == [{"mean": None, "n": 3, "ci": [1.5, None], "path": "a/b", "done": True, "4": [0, 1]}]


def test_a_part_that_rotted_on_the_disk_is_named(tmp_path):
    with Store(tmp_path) as store:
        store.keep("00000", made(0))
        (tmp_path / "parts" / "00000.parquet").write_bytes(b"PAR1 rot PAR1")
        with pytest.raises(UserError, match="00000.parquet cannot be read"):
            store.join()


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_way_is_one_line(tmp_path, below):
    (tmp_path / "logs").write_text("I am a file")
    with pytest.raises(UserError, match="paths.logs=") as refused:
        Store(tmp_path / "logs" / below)
    assert "a file lies where a folder should" in str(refused.value)


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's /sys, closed even to root")
def test_a_folder_that_cannot_be_written_is_one_line():
    with pytest.raises(UserError, match="make /sys/kernel/mamba_mi writable, or choose another folder"):
        Store("/sys/kernel/mamba_mi")


def test_a_full_disk_is_one_line_and_what_was_kept_stays(tmp_path):
    child = started("""
import resource
store = Store(sys.argv[1])
store.keep("00000", table(0, 10))
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    store.keep("00001", table(1, 50_000))
except Exception as e:
    print(f"{type(e).__name__}: {e}")
print(sorted(store.kept()), [p.name for p in (store.folder / "parts").iterdir()])
""", tmp_path)
    said, after = child.communicate()[0].splitlines()
    assert said.startswith("UserError: cannot write ") and "make room and start again" in said
    assert after == "['00000'] ['00000.parquet']"


@pytest.mark.parametrize("number", [28, 122, 27, 13, 1, 30, 20, 17, 21, 5, 37])
def test_every_refusal_of_the_system_says_what_to_do(number):
    with pytest.raises(UserError) as refused, in_words(Path("here")):
        raise OSError(number, os.strerror(number), "here")
    said = str(refused.value)
    assert os.strerror(number) in said and "paths.logs=" in said and "\n" not in said


def test_a_table_is_kept_as_parquet_and_equal_tables_are_equal_bytes(tmp_path):
    table = pa.table({"text": ["a", None, "大"], "hit": [True, False, None], "p": [0.25, 1e-30, 1.0]})
    with Store(tmp_path) as store:
        for name in ("one", "two"):
            store.write_artefact(name, pa.table(table.to_pydict()))
    one, two = ((tmp_path / "artifacts" / f"{name}.parquet") for name in ("one", "two"))
    assert pq.read_table(one).equals(table) and one.read_bytes() == two.read_bytes()
