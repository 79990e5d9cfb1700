"""A server on this machine that answers as it is told to: well enough for wandb to begin a run, or not at all well."""
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0" * 40


@contextmanager
def server(answer):
    """Yields its address. `answer(query, variables)` is (code, JSON or bytes); without a code, the bytes are all it sends."""
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self):
            said = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                asked = json.loads(said)
            except ValueError:
                asked = {}
            code, body = answer(asked.get("query", ""), asked.get("variables") or {})
            if code is None:
                self.wfile.write(body)
                self.close_connection = True
                return
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _reply

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()


class WandB:
    """Enough of W&B to begin and end a run; `told` keeps what was said of it."""

    def __init__(self):
        self.told, self.address = [], None

    def __call__(self, query, variables):
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
        if "upsertBucket" in query:
            self.told.append(variables)
            return 200, {"data": {"upsertBucket": {"inserted": True, "bucket": {
                "id": "x", "name": variables["name"], "displayName": variables["displayName"], "project": project}}}}
        if "RunResumeStatus" in query:
            return 200, {"data": {"model": {**project, "bucket": None}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.address}/{name}"} for name in variables["files"]]
            return 200, {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        return 200, {"data": {}}


class Refusing:
    """A server that answers everything with one code and body."""

    def __init__(self, code, body=b""):
        self.code, self.body = code, body

    def __call__(self, query, variables):
        return self.code, self.body
