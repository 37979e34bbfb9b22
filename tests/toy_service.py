"""A minimal service: answers GET /health and POST /die, and has a child that sleeps.

python toy_service.py PORT FOLDER [SECONDS until it is ready] [--deaf: SIGTERM does not end it]
"""

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Toy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        print("out of memory, says the toy", flush=True)
        os._exit(7)


child = subprocess.Popen(["sleep", "1000"])
(Path(sys.argv[2]) / "pids").write_text(f"{os.getpid()} {child.pid}")
if "--deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(float(sys.argv[3]) if sys.argv[3:] else 0)
HTTPServer(("", int(sys.argv[1])), Toy).serve_forever()
