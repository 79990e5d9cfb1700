"""Commands in several processes, as a user starts them."""
import os
import socket
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def torchrun(processes: int, *words: str, cwd: Path, script: Path = REPO / "launch.py") -> subprocess.CompletedProcess:
    """`torchrun --nproc-per-node=… launch.py …`; without torchrun for one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    many = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"] if processes > 1 else []
    return subprocess.run([sys.executable, *many, str(script), *words], cwd=cwd, capture_output=True, text=True, timeout=280,
                          env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"})
