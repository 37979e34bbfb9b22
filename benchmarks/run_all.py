"""Runs all benchmarks one after the other; each writes results/<name>.json. `--quick`: tiny sizes, as a test."""

import argparse
import subprocess
import sys
import time

from harness import HERE, console, cpu_facts

FAST_BF16 = ("avx512_bf16", "amx_bf16")
"""Without any of these a processor computes bf16 many times slower than fp32; then bf16 gets less work."""


def commands(tiny: bool) -> list[str]:
    """The programs with their options. machine.py is first: sampling.py states shares of its bound."""
    flags = cpu_facts()["flags"]
    if tiny or any(flag in flags for flag in FAST_BF16):
        update, sampling, training = ["grpo_update.py"], ["sampling.py"], ["training.py"]
    else:
        console.print("[yellow]no fast bf16 here: bf16 is measured with less work and three repeats[/yellow]")
        less = "--precision bf16 --label bf16 --repeats 3"
        update = ["grpo_update.py --precision fp32", f"grpo_update.py {less} --groups 1 --only togi TRL"]
        sampling = ["sampling.py --precision fp32", f"sampling.py {less}"]
        training = ["training.py --precision fp32", f"training.py {less} --chats 3 --documents 2 --pairs 1"]
    return [
        "machine.py",
        *update,
        "grpo_step.py",
        "remote_step.py",
        *training,
        *sampling,
        "reward_scoring.py",
        "memory_vocab.py",
    ]


def run(command: str) -> bool:
    """Runs one benchmark; returns whether it succeeded."""
    console.rule(command)
    program, *options = command.split()
    start = time.perf_counter()
    code = subprocess.run([sys.executable, HERE / program, *options], check=False).returncode
    console.print(f"{program}: {time.perf_counter() - start:.0f} s")
    return code == 0


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="a tiny random model and two repeats")
    options = arguments.parse_args()
    more = " --tiny --repeats 2" if options.quick else ""
    failed = [command for command in commands(options.quick) if not run(command + more)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
