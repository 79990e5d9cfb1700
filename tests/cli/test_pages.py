"""What is answered without running anything: --help, --version, --cfg, and how soon."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mamba_mi
from mamba_mi import cli
from mamba_mi.cli import page
from mamba_mi.config import UserError

REPO = Path(__file__).resolve().parents[2]
CONF = REPO / "conf"
HEAVY = ("torch", "transformers", "wandb", "pandas", "pyarrow", "scipy", "matplotlib", "datasets")


def test_the_help_names_every_group_and_every_option(command):
    answer = command("--help")
    assert answer.code == 0 and answer.err == ""
    for option in CONF.glob("*/*.yaml"):
        lines = [line.split() for line in answer.out.splitlines()]
        assert any(line and line[0].partition("=")[0] == option.parent.name for line in lines), option.parent.name
        assert any(len(line) > 1 and line[0] == option.stem for line in lines), f"{option} has no description"


def test_the_help_names_every_setting_that_all_runs_share(command):
    shown = command("--help").out
    for key, value in yaml.safe_load((CONF / "config.yaml").read_text()).items():
        if key not in ("defaults", "hydra"):
            for name in [f"{key}.{below}=" for below in value] if isinstance(value, dict) else [f"{key}="]:
                assert f"\n  {name}" in shown


def test_the_help_fits_a_terminal(command):
    assert max(map(len, command("--help").out.splitlines())) <= 120


@pytest.mark.parametrize("words", [pytest.param(words, marks=pytest.mark.slow) if "joblib" in words else words for words, _ in page.EXAMPLES])
def test_every_example_of_the_help_is_accepted(command, words):
    more = ["debug=fast"] if "joblib" in words else []  # in processes of their own the runs are real ones
    assert command(*words.replace("'", "").split(), *more).code == 0


def test_the_version_is_ours(command):
    assert command("--version").out == f"mamba_mi {mamba_mi.__version__}\n"


def test_cfg_prints_yaml_and_runs_nothing(command):
    answer = command("model=mamba2-1.3b", "--cfg", "job", "seed=3")
    shown = yaml.safe_load(answer.out)
    assert (shown["seed"], shown["model"]["name"], shown["dataset"]["name"]) == (3, "mamba2-1.3b", "counterfact")
    assert (answer.code, answer.ran, answer.left) == (0, [], [])


def test_a_part_of_the_settings_can_be_shown(command):
    assert yaml.safe_load(command("--cfg", "job", "-p", "paths").out) == {"logs": "experiment_logs", "sweeps": "multirun"}


@pytest.mark.parametrize("words", ["--help", "--cfg job", "modle=tiny", "--version"])
def test_no_heavy_library_is_loaded_for_an_answer(words, tmp_path):
    script = ("import sys\nfrom mamba_mi.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
              f"sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, "-c", script, *words.split()], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(REPO)})
    assert done.returncode == 0, done.stderr


def test_the_launcher_and_the_console_command_say_the_same_from_any_folder(tmp_path):
    launched = subprocess.run([sys.executable, str(REPO / "launch.py"), "--cfg", "job"], cwd=tmp_path, capture_output=True,
                              text=True, check=True)
    called = subprocess.run([sys.executable, "-c", "from mamba_mi.cli import main; main()", "--cfg", "job"], cwd=tmp_path,
                            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(REPO)})
    assert launched.stdout == called.stdout != ""
    assert list(tmp_path.iterdir()) == []


def test_an_exit_code_reaches_the_shell(tmp_path):
    done = subprocess.run([sys.executable, str(REPO / "launch.py"), "modle=tiny"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: modle") and "Traceback" not in done.stderr


def test_an_installed_package_takes_the_configuration_it_came_with(monkeypatch, tmp_path):
    package = tmp_path / "mamba_mi"
    for folder in (tmp_path / "conf", package / "conf"):  # beside it may lie the conf of somebody else
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    monkeypatch.setattr(cli, "HERE", package)
    assert cli.conf_dir() == package / "conf"
    (package / "conf" / "config.yaml").unlink()
    assert cli.conf_dir() == tmp_path / "conf"
    (tmp_path / "conf" / "config.yaml").unlink()
    with pytest.raises(UserError, match="install mamba_mi again"):
        cli.conf_dir()
