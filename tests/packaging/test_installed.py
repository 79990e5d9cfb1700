"""The wheel in an environment of its own: the console command works from any folder and does what launch.py does."""
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
RUN = ["dataset.n=6", "method.sites=[resid]", "method.layers=[0,3]", "method.resamples=50", "threads=1"]
ENVIRON = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def said(*command: object, cwd: Path) -> str:
    ran = subprocess.run(list(map(str, command)), cwd=cwd, env=ENVIRON, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def installed(wheel_file, tmp_path_factory) -> Path:
    """The folder of an environment's programs: this wheel and nothing else, the libraries lent by the one we are in."""
    place = tmp_path_factory.mktemp("environment")
    said(sys.executable, "-m", "venv", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    said(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel_file, cwd=place)
    home = Path(said(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    (home / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.parent


@pytest.mark.slow
def test_the_console_command_does_what_launch_does_from_any_folder(installed, tmp_path):
    where = said(installed / "python", "-c", "import mamba_mi; print(mamba_mi.__file__)", cwd=tmp_path)
    assert str(installed.parent) in where, "the package under test is the wheel's, not the checkout's"
    said(installed / "mamba-mi", *RUN, cwd=tmp_path)
    said(sys.executable, REPO / "launch.py", *RUN, f"paths.logs={tmp_path / 'launched'}", cwd=tmp_path)
    ours, theirs = (sorted(tmp_path.glob(f"{logs}/patching/tiny/*")) for logs in ("experiment_logs", "launched"))
    assert [folder.name for folder in ours] == [folder.name for folder in theirs] and len(ours) == 1
    for name in ("effects.parquet", "summary.json", "prompts.json"):
        assert (ours[0] / name).read_bytes() == (theirs[0] / name).read_bytes()
    assert (ours[0] / "report.html").exists()


@pytest.mark.slow
def test_its_help_and_its_errors_name_the_command_as_it_was_called(installed, tmp_path):
    assert "mamba-mi -m seed=0,1,2" in said(installed / "mamba-mi", "--help", cwd=tmp_path)
    wrong = subprocess.run([installed / "mamba-mi", "sed=1"], cwd=tmp_path, env=ENVIRON, text=True, capture_output=True)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: sed: no such key") and not list(tmp_path.iterdir())
