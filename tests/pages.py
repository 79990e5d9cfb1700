"""A web server's handler for stand-ins of the hub: a subclass says in `do_GET` what is there, through `answer`."""
from http.server import BaseHTTPRequestHandler


class Pages(BaseHTTPRequestHandler):
    """Answers GET and HEAD alike, a HEAD without the data, and logs nothing."""

    def do_GET(self):
        raise NotImplementedError

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, data, headers=()):
        self.send_response(status)
        for key, value in {**dict(headers), "Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass
