"""An endpoint of OpenAI's protocol on loopback, that answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Endpoint:
    """What the server does, and what it was asked.

    Attributes:
        answer: what the model says to a prompt.
        body: in place of what the protocol says, where it is given.
        status: of its answers.
        delay: seconds before each answer.
        prompts: what was asked.
        keys: what was sent as authorization.
    """

    answer: Callable[[str], str] = lambda _prompt: "[]"
    body: bytes | None = None
    status: int = 200
    delay: float = 0.0
    prompts: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    address: str = ""


@contextmanager
def serve_endpoint(endpoint: Endpoint) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            prompt = json.loads(self.rfile.read(length))["messages"][0]["content"]
            endpoint.prompts.append(prompt)
            endpoint.keys.append(self.headers["Authorization"])
            threading.Event().wait(endpoint.delay)
            message = {"message": {"role": "assistant", "content": endpoint.answer(prompt)}}
            body = json.dumps({"choices": [message]}).encode()
            body = body if endpoint.body is None else endpoint.body
            self.send_response(endpoint.status)
            if endpoint.status == 302:
                self.send_header("Location", f"{endpoint.address}/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_arguments: object) -> None:
            """Whoever is tired of waiting hangs up; that is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    endpoint.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
