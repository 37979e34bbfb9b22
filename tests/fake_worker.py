"""Stands in for the worker process: does what the command says of its rank, as fast as a process starts.

A command's `ranks` is a list with one script a rank: lists of steps such as ["say", EVENT], ["wait", SECONDS],
["killed"], ["exit", CODE], ["threads"] (says what the environment allows).
"""

import json
import os
import signal
import sys
import time


def main() -> None:
    rank = int(sys.argv[1])
    command = json.loads(sys.stdin.readline())
    for step, *argument in command["ranks"][rank]:
        if step == "say":
            print(json.dumps({"when": time.monotonic(), **argument[0]}), flush=True)
        elif step == "wait":
            time.sleep(argument[0])
        elif step == "threads":
            print(json.dumps({"event": "log", "message": os.environ["OMP_NUM_THREADS"]}), flush=True)
        elif step == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif step == "exit":
            print("RuntimeError: Connection closed by peer", file=sys.stderr, flush=True)
            os._exit(argument[0])
    sys.stdin.read()


main()
