"""A chat endpoint on this machine that stands in for a teacher model."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Teacher(ThreadingHTTPServer):
    """An endpoint that answers every question alike and remembers what it was asked."""

    def __init__(self, answer="The tool fits what is asked.", delay=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.delay = answer, delay
        self.asked, self.keys = Counter(), set()
        self.at_once, self.most_at_once, self.lock = 0, 0, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked[json.dumps(body["messages"])] += 1
            self.server.keys.add(self.headers["Authorization"])
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(self.server.delay)
        with self.server.lock:
            self.server.at_once -= 1
        message = {"role": "assistant", "content": self.server.answer}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        reply["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
