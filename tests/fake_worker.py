"""Stands in for the worker process: follows the command's script for its rank, without the cost of imports.

A command's `ranks` is a list with one script per rank: lists of steps such as ["say", EVENT], ["wait", SECONDS],
["killed"], ["exit", CODE], ["threads"] (reports what the environment allows), ["print", TEXT], ["fork", SECONDS] (a
child that holds the output open), ["stopped"] (waits for SIGTERM, then reports it), ["halted"] (as SIGSTOP does).
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
        elif step == "print":
            sys.stdout.buffer.write(argument[0].encode("latin-1"))
            sys.stdout.flush()
        elif step == "fork" and os.fork() == 0:
            time.sleep(argument[0])
            os._exit(0)
        elif step == "stopped":
            signal.sigwait([signal.SIGTERM])  # a worker starts with its signals blocked
            event = {"event": "failed", "kind": "Interrupted", "message": "stopped", "when": time.monotonic()}
            print(json.dumps(event), flush=True)
        elif step == "halted":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif step == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif step == "exit":
            print("RuntimeError: Connection closed by peer", file=sys.stderr, flush=True)
            os._exit(argument[0])
    sys.stdin.read()


main()
