"""A run in bfloat16 goes to its report, and says in which arithmetic and how far off it was."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_patching_in_bfloat16_says_so(tmp_path):
    words = ["experiment=patching", "model=tiny", "dtype=bfloat16", "debug=fast", "device=cpu", f"paths.logs={tmp_path}"]
    done = subprocess.run([sys.executable, str(REPO / "launch.py"), *words], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = next(tmp_path.glob("*/*/*/manifest.json")).parent
    told = json.loads((folder / "manifest.json").read_text())
    assert told["dtype"] == told["deviation"]["dtype"] == "bfloat16" and 1e-4 < told["deviation"]["relative"] < 0.1
    assert "bfloat16, backend" in (folder / "report.html").read_text()
