#!/usr/bin/env python3
# Counts the instructions of a few kernels under valgrind, and compares them with the recorded counts.
"""Usage: count_instructions.py WICK [--record]

Times on shared machines are no measure of a change; instructions are. The count of a case is the difference between runs
of few and of many calls, so that start-up and set-up fall out. Valgrind knows AVX2 but nothing wider, so every x86-64
machine since 2013 runs the same kernels under it. A count more than 5 % above benchmarks/instructions.json is an error; one
more than 5 % below asks for a new record (--record). Exits with 77, the reason printed, where there is nothing to compare:
no valgrind, another instruction set, or another compiler than the recorded one.
"""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

RECORD = Path(__file__).resolve().parent.parent / "benchmarks" / "instructions.json"
TOLERANCE = 0.05
SKIPPED = 77
FEW = 2
# Case -> calls beyond the few: so many that what differs between two starts of a program does not show.
CASES = {"lora_delta:T=64,d=512,r=8": 60, "lora_grouped:T=64,d=1024,r=8,n=32": 20, "lora_linear:T=64,d=512,r=8": 10,
         "lora_gradients:B=2,T=16,d=512,r=8": 40, "adamw:n=262144": 20, "softmax:T=64,C=1024": 60,
         "layer_norm:T=64,C=1024": 100, "rms_norm:T=64,C=1024": 100, "sample:V=32000,mode=top_k,k=50": 60,
         "sample:V=32000,mode=top_p,p=0.9": 10, "gemm:T=512,N=128,K=896": 5}


def run_counted(wick, case, calls):
    """Returns the instructions executed, and what the program says of its build."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", wick, "bench", "repeat",
               "--threads", "1", "--filter", case, "--calls", str(calls)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{case}: {done.stderr.strip()}")
    return int(re.search(r"I +refs: +([\d,]+)", done.stderr)[1].replace(",", "")), done.stdout.strip()


def count(wick, case):
    few, build = run_counted(wick, case, FEW)
    many, _ = run_counted(wick, case, FEW + CASES[case])
    return (many - few) // CASES[case], build


def skip(reason):
    print(f"not compared: {reason}")
    sys.exit(SKIPPED)


def compare(name, now, recorded):
    """Prints a line; returns whether the count is no regression."""
    change = now / recorded - 1
    verdict = "MORE" if change > TOLERANCE else "fewer: record it" if change < -TOLERANCE else "ok"
    print(f"{name}: {recorded} -> {now} instructions ({100 * change:+.1f} %) {verdict}")
    return change <= TOLERANCE


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    wick, record_anew = sys.argv[1], sys.argv[2:] == ["--record"]
    if shutil.which("valgrind") is None:
        skip("valgrind is not installed")
    name, *others = CASES
    first, build = count(wick, name)
    old = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else None
    if not record_anew and (old is None or old["build"] != build):
        skip(f"this build is of {build}, the record of {old['build'] if old else 'nothing'}")
    counts = {name: first} | {other: count(wick, other)[0] for other in others}
    if record_anew:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps({"build": build, "instructions": counts}, indent=1) + "\n", encoding="utf-8")
        return 0
    kept = [compare(case, now, old["instructions"][case]) for case, now in counts.items()]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
