"""A few lines of the OpenAI API as Sheaf's gateway answers it; run as a program, a few lines of `sheaf up`.

`python demo_endpoint.py [MODE] up MANIFESTS --listen HOST:PORT --no-view`, where MODE is one of
`fine`, `wrong` (every adapter answers as the base), `refuse` (503), `busy` (the port is taken), `slow` (never ready) and `stubborn` (it does not end on SIGTERM).
"""

import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, TextIO

STYLED = {
    "smollm2": "Paris is the capital.",
    "pirate": "Arr! Paris, matey!",
    "lawyer": "Paris. This is not legal advice.",
    "json": '{"answer": "Paris"}',
    "emoji": "✨ Paris! 🎉",
}
VECTORS = ([1.0, 0.0], [0.9, 0.1], [0.0, 1.0])


class Endpoint(BaseHTTPRequestHandler):
    """A few lines of the OpenAI API, as Sheaf's gateway answers it."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]] = []
    breaks = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        if self.breaks == "refuse":
            self.answer(503, {"error": {"message": "no pod is ready", "type": "overloaded", "code": None}})
        elif self.path == "/v1/embeddings":
            data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(VECTORS)]
            self.answer(200, {"object": "list", "model": "minilm", "data": data, "usage": {}})
        elif body.get("stream"):
            self.stream(body)
        else:
            message = {"role": "assistant", "content": STYLED[body["model"]]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer(200, {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})

    def do_GET(self) -> None:
        kind = self.path.rsplit("/", 1)[-1]
        ready = {"models": 2, "adapters": 1}[kind]
        item = {"metadata": {"name": kind}, "spec": {"replicas": ready}, "status": {"readyReplicas": ready}}
        self.answer(200, {"items": [item]})

    def routed(self, kind: str) -> None:
        for name, value in (("content-type", kind), ("x-sheaf-pod", "pod-1"), ("x-sheaf-decision", "cheapest")):
            self.send_header(name, value)
        self.send_header("x-request-id", "request-7")

    def answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.routed("application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.routed("text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for piece in ("", *STYLED[body["model"]]):
            self.event({"choices": [{"index": 0, "delta": {"content": piece}}]})
        if self.breaks == "stream":
            self.wfile.write(b'data: {"error": {"message": "the engine is gone", "code": 502}}\n\n')
            return
        usage = {"prompt_tokens": 440, "completion_tokens": 9, "total_tokens": 449}
        self.event({"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 416}}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value: dict[str, Any]) -> None:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **value}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def say(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def main(mode: str, listen: str) -> None:
    if mode == "busy":
        sys.exit(
            "something before\nerror: 127.0.0.1:8000 is in use; stop what listens there, or choose another --listen"
        )
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "wrong":
        STYLED.update(dict.fromkeys(STYLED, STYLED["smollm2"]))
    Endpoint.breaks = mode
    host, port = listen.split(":")
    with ThreadingHTTPServer((host, int(port)), Endpoint) as server:
        say(sys.stderr, "pod smollm2-0: starting")
        if mode != "slow":
            say(sys.stdout, f"ready http://{listen}")
        try:
            server.serve_forever(poll_interval=0.01)
        except KeyboardInterrupt:
            say(sys.stderr, "stopping")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[sys.argv.index("--listen") + 1])
