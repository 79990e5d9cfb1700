"""The hub's own protocol, against a stand-in on this machine: what is asked of it, how much is sent, which commit is kept."""
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.data import published
from tests.pages import Pages

REPO = Path(__file__).resolve().parents[2]
SHA, BRANCH = "a" * 40, "b" * 40
FILES = [f"data/validation-{i:05d}-of-00004.parquet" for i in range(4)]
pytestmark = pytest.mark.slow  # another process that imports datasets, for each test


class Hub(Pages):
    """One data set a/b in four shards, at two commits: what `main` is, and what the branch `other` is."""

    def do_GET(self):
        path, shards = self.path.partition("?")[0].strip("/"), self.server.shards
        known = {SHA: SHA, "main": SHA, BRANCH: BRANCH, "other": BRANCH}
        parts = path.split("/")
        if path.startswith("api/datasets/a/b/tree/"):
            inside = "/".join(parts[6:])
            found = [{"type": "file", "path": name, "size": len(data), "oid": tag(data)} for name, data in shards.items()]
            return self.answer(200, json.dumps(found if inside == "data" else [
                {"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}]).encode())
        if path.startswith("api/datasets/a/b"):
            return self.answer(200, json.dumps({"id": "a/b", "sha": known[parts[-1] if "revision" in parts else "main"],
                                                "siblings": [{"rfilename": name} for name in shards]}).encode())
        data = shards.get("/".join(parts[5:]))
        if data is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.server.asked.add((parts[4], parts[-1][11:16]))
        headers = {"ETag": f'"{tag(data)}"', "X-Repo-Commit": known[parts[4]], "Accept-Ranges": "bytes"}
        if said := self.headers.get("Range"):
            first, _, last = said.removeprefix("bytes=").partition("-")
            last = min(int(last or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[int(first):last + 1], headers)
        return self.answer(200, data, headers)


def tag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path):
    """`hub(expression)` is what another process makes of it, with `hub` and `data` imported and the stand-in as its hub."""
    pytest.importorskip("datasets")
    records = [published.squad(f"Number {i}?", context="word " * 50_000) for i in range(8)]
    paths = [published.write(tmp_path / name, "squad", records[i::4]) for i, name in enumerate(FILES)]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.shards, server.asked = {name: Path(path).read_bytes() for name, path in zip(FILES, paths, strict=True)}, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(expression, **more):
        code = f"import json; from mamba_mi import data; from mamba_mi.data import hub\nprint(json.dumps({expression}))"
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
               "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(REPO), **more}
        ran = subprocess.run([sys.executable, "-c", code], env=env, cwd=REPO, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return json.loads(ran.stdout)
    ask.server = server
    yield ask
    server.shutdown()


def test_a_stream_opens_no_shard_it_does_not_need_and_keeps_the_commit(hub):
    questions, origin = hub("(lambda x: [[r['question'] for r in x.records], x.origin])(hub.beginning('a/b', 2, split='validation'))")
    assert questions == ["Number 0?", "Number 4?"] and origin == {"hub": "a/b", "config": None, "split": "validation", "commit": SHA}
    assert hub.server.asked == {(SHA, "00000")}


def test_a_download_is_of_the_revision_asked_for_and_is_kept_with_its_commit_for_who_is_offline(hub):
    whole = "(lambda x: [[r['question'] for r in x.records], x.origin])(hub.whole('a/b', split='validation', {}choose=lambda n: [1, n - 1]))"
    newest, other = whole.format(""), whole.format("revision='other', ")
    questions, origin = hub(other)
    assert questions == ["Number 4?", "Number 7?"] and origin["commit"] == BRANCH
    assert hub.server.asked == {(BRANCH, f"{i:05d}") for i in range(4)}
    hub.server.asked.clear()
    again, of_main = hub(f"[{other}, {newest}]")
    assert again == [questions, origin] and of_main[1]["commit"] == SHA
    assert hub.server.asked == {(SHA, f"{i:05d}") for i in range(4)}
    hub.server.shutdown()
    assert hub(newest, HF_HUB_OFFLINE="1") == of_main
