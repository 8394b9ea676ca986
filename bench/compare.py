#!/usr/bin/env python3
"""Times wick and its peers on the same cases in one run, and writes every sample as JSON.

Each side is a process of its own that waits on its input while the others work; for every case the sides take turns for
several rounds, in an order that rotates, so that a change in the machine's load meets all of them. The cases and their
sizes come from `wick bench --list`; what a peer cannot do is recorded with the reason. `./run compare` calls this.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))


class Side:
    """One program under test: it answers requests line by line."""

    def __init__(self, key, command, environment):
        self.key = key
        self.command = command
        self.environment = environment
        self.process = None
        self.info = None

    def start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **self.environment}, cwd=os.path.join(HERE, "peers"))
        self.info = self.ask({"info": True})
        return self.info

    def ask(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"unavailable": f"the process ended with status {self.process.wait()}"}
        return json.loads(line)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(timeout=60)


def sides(arguments):
    threads = str(arguments.threads)
    common = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    found = [Side("wick", [arguments.wick, "bench", "worker", "--threads", threads], {})]
    for name in ("onednn", "openblas"):
        program = os.path.join(arguments.build, f"{name}_peer")
        if os.path.exists(program):
            found.append(Side(name, [program], common))
    for name, python in (("torch", arguments.torch_python), ("mlx", arguments.mlx_python),
                         ("llama.cpp", arguments.llama_python)):
        script = {"torch": "torch_worker.py", "mlx": "mlx_worker.py", "llama.cpp": "llama_worker.py"}[name]
        if python:
            found.append(Side(name, [python, script, "--threads", threads], common))
    return found


def time_case(case, active, arguments):
    """Rounds of samples, the order of the sides rotating; returns side -> result."""
    heavy = case.get("heavy", False)
    rounds, samples = (arguments.heavy_rounds, 1) if heavy else (arguments.rounds, arguments.samples)
    results = {}
    for turn in range(rounds):
        for side in active[turn % len(active):] + active[:turn % len(active)]:
            result = results.setdefault(side.key, {"seconds": []})
            if "unavailable" in result:
                continue
            time.sleep(0.02)  # lets the spinning threads of the side before this one fall asleep
            request = {"case": case["name"], "samples": samples, "warm_up": 1 if heavy else 3, "alone": heavy}
            answer = side.ask(request)
            if "unavailable" in answer:
                results[side.key] = {"unavailable": answer["unavailable"]}
                continue
            result["seconds"] += answer["seconds"]
            if "extra" in answer:
                result["extra"] = answer["extra"]
    return results


def run(arguments):
    listing = subprocess.run([arguments.wick, "bench", "list", "--suite", arguments.suite], check=True,
                             capture_output=True, text=True)
    cases = [case for case in json.loads(listing.stdout)["cases"] if arguments.filter in case["name"]
             and not (arguments.no_models and case["heavy"])]
    machine = json.loads(subprocess.run([arguments.wick, "bench", "machine", "--json", "-", "--threads",
                                         str(arguments.threads)], check=True, capture_output=True, text=True).stdout)
    light, heavy = [c for c in cases if not c.get("heavy")], [c for c in cases if c.get("heavy")]
    record = {"machine": {**machine, "system": platform.platform()}, "threads": arguments.threads,
              "rounds": arguments.rounds, "samples": arguments.samples, "sides": {}, "cases": []}
    # Heavy cases (whole models) get fresh processes each, so that one side's peak memory is that case's alone.
    for group in ([light] if light else []) + [[case] for case in heavy]:
        active = []
        for side in sides(arguments):
            info = side.start()
            if "unavailable" not in info:
                active.append(side)
            record["sides"].setdefault(side.key, info)
        for case in group:
            results = time_case(case, active, arguments)
            record["cases"].append({**case, "results": results})
            show(case, results)
        for side in active:
            side.stop()
    return record


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def show(case, results):
    parts = [f"{key} {1e6 * median(r['seconds']):.1f}" for key, r in results.items() if r.get("seconds")]
    print(f"{case['name']}: " + ", ".join(parts) + " us", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wick", required=True, help="the program to measure")
    parser.add_argument("--build", default="", help="the folder with onednn_peer and openblas_peer")
    parser.add_argument("--torch-python", default="", help="a Python that has torch, transformers and peft")
    parser.add_argument("--mlx-python", default="", help="a Python that has mlx")
    parser.add_argument("--llama-python", default="", help="a Python that has llama_cpp")
    parser.add_argument("--suite", default="all", help="training, inference or all")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--no-models", action="store_true", help="leave out whole models, which take most of the time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--samples", type=int, default=10, help="a round")
    parser.add_argument("--heavy-rounds", type=int, default=3, help="rounds of one sample for whole models")
    parser.add_argument("--output", required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    arguments.wick = os.path.abspath(arguments.wick)
    arguments.build = os.path.abspath(arguments.build)
    record = run(arguments)
    with open(arguments.output + ".tmp", "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    os.replace(arguments.output + ".tmp", arguments.output)


if __name__ == "__main__":
    main()
