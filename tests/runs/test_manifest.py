"""The manifest says how a run ended, and does not let two kinds of parts mix."""
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from mamba_mi.config import UserError
from mamba_mi.measure.effects import effects
from mamba_mi.runs import provenance
from mamba_mi.runs.manifest import Refused, compare, open_manifest, read_manifest
from mamba_mi.runs.store import Store

MADE_WITH = {"device": "cpu", "threads": 2, "backend": {"asked": "auto", "used": "chunked", "why": "no GPU"},
             "fingerprints": {"checkpoint": "aaa", "data": "bbb", "code": "ccc"}}
PART = effects({"prompt_id": ["p"], "metric": ["m"], "value": [1.0], "baseline": [0.0]})


def run(folder, error=None, keep=True, **fields):
    with Store(folder) as store, open_manifest(store, run_id="abc", seed=0) as manifest:
        assert read_manifest(folder)["status"] == "running"
        manifest.record(**(MADE_WITH | fields))
        if keep:
            store.keep("00000", PART)
        if error is not None:
            raise error
        manifest.record(hook_counts={"0.resid": 12}, bit_reproducible=True)


def test_a_finished_run_says_all_that_is_asked_of_a_manifest(tmp_path):
    run(tmp_path)
    said = read_manifest(tmp_path)
    asked = ("status run_id schema_version started ended seconds seed argv command git versions platform "
             "device backend threads fingerprints hook_counts bit_reproducible")
    assert set(asked.split()) <= set(said) and "error" not in said
    assert (said["status"], said["seed"], said["run_id"], said["resumed"]) == ("done", 0, "abc", 0)
    assert said["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "hydra-core", "mamba_mi", "numba", "triton", "mamba-ssm", "causal-conv1d"} <= set(said["versions"])
    assert said["platform"]["host"] == os.uname().nodename and said["platform"]["cores"] >= 1


@pytest.mark.parametrize("error, status, said", [
    (ValueError("no such layer"), "failed", "ValueError: no such layer"),
    (UserError("model.path=x: no such folder"), "failed", "model.path=x: no such folder"),
    (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt: "),
    (SystemExit(3), "interrupted", "SystemExit: 3"),
])
def test_what_ended_a_run_is_recorded_and_raised_again(tmp_path, error, status, said):
    with pytest.raises(type(error)) as raised:
        run(tmp_path, error)
    assert raised.value is error
    manifest = read_manifest(tmp_path)
    assert (manifest["status"], manifest["error"]) == (status, said)
    assert "in run\n" in manifest["traceback"] and manifest["ended"]


def test_an_interrupted_run_goes_on_and_forgets_its_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, KeyboardInterrupt())
    first = read_manifest(tmp_path)
    run(tmp_path)
    second = read_manifest(tmp_path)
    assert (second["status"], second["resumed"], second["started"]) == ("done", 1, first["started"])
    assert second["seconds"] >= first["seconds"] and "error" not in second


def test_a_killed_run_says_running_and_can_be_gone_on_with(tmp_path):
    code = ("import os, sys\n"
            "from mamba_mi.runs.manifest import open_manifest\n"
            "from mamba_mi.runs.store import Store\n"
            "with Store(sys.argv[1]) as store, open_manifest(store, run_id='abc', seed=0):\n"
            "    store.subfolder('parts'); os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -signal.SIGKILL
    assert read_manifest(tmp_path)["status"] == "running"
    run(tmp_path)
    assert read_manifest(tmp_path)["status"] == "done"


@pytest.mark.parametrize("fields, said", [
    ({"device": "cuda"}, "device was cpu and is cuda"),
    ({"threads": 4}, "threads was 2 and is 4"),
    ({"backend": {"asked": "auto", "used": "cuda", "why": "a GPU"}}, "backend was chunked and is cuda"),
    ({"fingerprints": {"checkpoint": "aaa", "data": "xyz"}}, "the data's fingerprint was bbb and is xyz"),
])
def test_a_run_under_other_conditions_is_refused_and_left_as_it_was(tmp_path, fields, said):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, KeyboardInterrupt())
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(Refused) as refused:
        run(tmp_path, **fields)
    line = str(refused.value)
    assert said in line and "force=true" in line and "\n" not in line
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_another_library_is_refused_before_anything_is_written(tmp_path):
    run(tmp_path)
    manifest = read_manifest(tmp_path)
    manifest["versions"]["torch"] = "1.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with Store(tmp_path) as store, pytest.raises(Refused, match="torch was 1.0 and is "):
        open_manifest(store, run_id="abc", seed=0)
    assert read_manifest(tmp_path) == manifest


def test_conditions_survive_a_start_that_never_came_to_measure_its_own(tmp_path):
    """Else a third start under other conditions would find nothing to contradict."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, KeyboardInterrupt())
    with pytest.raises(OSError), Store(tmp_path) as store, open_manifest(store, run_id="abc", seed=0):
        raise OSError("the checkpoint's disk is away")
    with pytest.raises(Refused):
        run(tmp_path, device="cuda")


def test_force_clears_what_would_contradict(tmp_path):
    run(tmp_path)
    with Store(tmp_path) as store:
        store.clear()
    run(tmp_path, device="cuda")
    assert read_manifest(tmp_path)["device"] == "cuda"


def test_a_run_that_failed_before_it_kept_anything_binds_nobody(tmp_path):
    with pytest.raises(ValueError):
        run(tmp_path, ValueError("all prompts wrong"), keep=False)
    run(tmp_path, device="cuda")
    assert read_manifest(tmp_path)["status"] == "done"


def test_compare_takes_only_contradictions_for_differences():
    assert compare(MADE_WITH, MADE_WITH | {"git": {"commit": "other"}, "seconds": 3}) == []
    assert compare(MADE_WITH, MADE_WITH | {"backend": {"used": "chunked", "why": "asked for"}}) == []
    assert compare({}, MADE_WITH) == []
    assert compare(MADE_WITH, {"device": None, "fingerprints": {"more": "ddd"}}) == []
    then, now = {"versions": {"scipy": None}}, {"versions": {"scipy": "1.2"}}
    assert compare(then, now) == ["scipy was missing and is 1.2"]


def test_a_manifest_that_cannot_be_written_does_not_hide_what_ended_the_run(tmp_path):
    with Store(tmp_path / "run") as store, pytest.raises(ValueError, match="the first error") as raised:
        with open_manifest(store, run_id="abc", seed=0):
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").write_text("a file now")
            raise ValueError("the first error")
    assert "the manifest could not say so" in raised.value.__notes__[0]


def test_a_broken_manifest_is_one_line(tmp_path):
    (tmp_path / "manifest.json").write_text('{"status": ')
    with pytest.raises(UserError, match="cannot be read.*force=true"):
        read_manifest(tmp_path)


def test_the_code_fingerprint_sees_names_and_bytes_of_python_files_only(tmp_path):
    seen = set()
    for name, text in {"a.py": "x = 1", "sub/b.py": "y = 2"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        seen.add(provenance.code_fingerprint(tmp_path))
    (tmp_path / "a.py").write_text("x = 2")
    seen.add(last := provenance.code_fingerprint(tmp_path))
    (tmp_path / "weights.bin").write_text("no code")
    assert provenance.code_fingerprint(tmp_path) == last
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert len({*seen, provenance.code_fingerprint(tmp_path)}) == 4


def test_git_speaks_of_mamba_mis_own_checkout_only(tmp_path):
    package = tmp_path / "mamba_mi"
    package.mkdir()
    (package / "a.py").write_text("x = 1")
    assert provenance.git(package) is None
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert provenance.git(package) == {"commit": commit, "dirty": False}
    (package / "a.py").write_text("x = 2")
    assert provenance.git(package) == {"commit": commit, "dirty": True}
    installed = tmp_path / "env" / "site-packages" / "mamba_mi"
    installed.mkdir(parents=True)
    assert provenance.git(installed) is None
