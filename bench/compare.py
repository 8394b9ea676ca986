#!/usr/bin/env python3
"""Times wick and its peers on the same cases in one run, and writes every sample as JSON.

Each side is a process of its own that waits on its input while the others work; for every case the sides take turns for
several rounds, in an order that rotates, so that a change in the machine's load meets all of them. The cases and their
sizes come from `wick bench list`; what a peer cannot do is recorded with the reason. Then wick alone: where the time of
whole models goes, decoding with an adapter against without and against reading memory, one thread against all, a busy
neighbour against none. `./run compare` calls this.
"""
import argparse
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
WORKERS = {"torch": "torch_worker.py", "mlx": "mlx_worker.py", "llama.cpp": "llama_worker.py"}
# Some machines set these for all programs; they hold OpenBLAS to the kernels of another processor.
NOT_PASSED_ON = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
HUGE_FLOPS = 2e12  # a call of minutes: one sample a side, and no two sides in memory at one time
SETTLE_SECONDS = 0.01  # of calls before each turn of a small case: a core that slept may take a millisecond to come back
PROFILED = ["train_step:shape=qwen2.5-0.5b,T=512,r=16,dtype=bf16",
            "decode:shape=qwen2.5-0.5b,prompt=16,tokens=32,dtype=bf16,r=16",
            "train_step:shape=qwen2.5-0.5b,B=4,T=2048,r=16,dtype=bf16"]
SCALED_MODELS = ["train_step:shape=qwen2.5-0.5b,T=512,r=16,dtype=bf16",
                 "prefill:shape=qwen2.5-0.5b,T=512,dtype=bf16"]


class Side:
    """One program under test: it answers requests line by line."""

    def __init__(self, key, command, threads, limit_s=600):
        self.key = key
        self.limit_s = limit_s  # of one answer
        self.command = command
        self.environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        self.environment |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        self.process = None
        self.messages = None
        self.info = {}

    def start(self):
        """Returns what the side says of itself, or {"unavailable": why}."""
        self.messages = tempfile.TemporaryFile()
        try:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                            stderr=self.messages, env=self.environment,
                                            cwd=os.path.join(HERE, "peers"))
        except OSError as error:
            return {"unavailable": str(error)}
        self.info = self.ask({"info": True})
        return self.info

    def running(self):
        return self.process is not None and self.process.poll() is None

    def make_room(self):
        """Gives its memory back: by forgetting what it has prepared, or by ending."""
        if self.running() and (not self.info.get("forgets") or self.ask({"forget": True}) != {}):
            self.stop()

    def ask(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], self.limit_s)[0]:
                self.process.kill()
                return {"unavailable": f"no answer in {self.limit_s} s"}
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"unavailable": self.last_words()}

    def last_words(self):
        status = self.process.wait()
        self.messages.seek(0)
        lines = self.messages.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {status}" + (f": {lines[-1]}" if lines else "")

    def stop(self):
        if self.running():
            self.process.stdin.close()
            self.process.wait(timeout=60)


def tell(text):
    print(text, file=sys.stderr, flush=True)


def all_sides(arguments):
    threads = str(arguments.threads)
    if arguments.device != "cpu":
        worker = ["torch_cuda_worker.py", "--device", arguments.device]
        return [Side("wick", [arguments.wick, "bench", "worker", "--device", arguments.device], threads, 90),
                Side("torch", [arguments.torch_python or "no Python with torch", *worker], threads, 90)]
    found = [Side("wick", [arguments.wick, "bench", "worker", "--threads", threads], threads)]
    for name in ("onednn", "openblas"):
        found.append(Side(name, [os.path.join(arguments.build, f"{name}_peer")], threads))
    pythons = {"torch": arguments.torch_python, "mlx": arguments.mlx_python, "llama.cpp": arguments.llama_python}
    for name, python in pythons.items():
        found.append(Side(name, [python or f"no Python with {name}", WORKERS[name], "--threads", threads], threads))
    return found


def started(sides, record):
    """Starts the sides, notes what they say of themselves, returns those that are there."""
    active = []
    for side in sides:
        info = side.start()
        if side.key not in record["sides"]:
            record["sides"][side.key] = info
            tell(f"{side.key}: {info.get('version', '')} {info.get('detail', '')}"
                 if "unavailable" not in info else f"{side.key}: not measured: {info['unavailable']}")
        if "unavailable" not in info:
            active.append(side)
        elif side.key == "wick":
            sys.exit(f"wick itself does not run: {info['unavailable']}")
    return active


def request_of(case, arguments):
    if arguments.device != "cpu" and case["heavy"]:
        return {"case": case["name"], "samples": 5, "budget_s": 4, "warm_up": 3, "warm_up_s": 2}
    if case["flops"] > HUGE_FLOPS:
        return {"case": case["name"], "samples": 1, "warm_up": 0}
    if case["heavy"]:
        return {"case": case["name"], "samples": 1, "warm_up": 1}
    return {"case": case["name"], "samples": arguments.samples, "warm_up": 3, "budget_s": arguments.budget,
            "settle_s": SETTLE_SECONDS}


def add_round(case, turn, active, results, arguments):
    """Samples of each side, the order of the sides rotating."""
    for side in active[turn % len(active):] + active[:turn % len(active)]:
        add_samples(case, side, results, arguments)


def take_turns(case, active, arguments):
    """Rounds of samples; returns side -> result."""
    results = {}
    for turn in range(arguments.heavy_rounds if case["heavy"] else arguments.rounds):
        add_round(case, turn, active, results, arguments)
    return results


def go_through(cases, active, arguments):
    """Rounds of samples of all cases, so that a phase of some seconds in which the host is slow meets a part of each case's
    samples, and not all of one's; yields the results of each case."""
    results = [{} for _ in cases]
    for turn in range(arguments.rounds):
        tell(f"round {turn + 1} of {arguments.rounds} of the small cases")
        for case, of_case in zip(cases, results):
            add_round(case, turn, active, of_case, arguments)
    yield from results


def add_samples(case, side, results, arguments):
    result = results.setdefault(side.key, {"seconds": []})
    # A few long samples say as much as many short ones.
    if "unavailable" in result or (case["heavy"] and sum(result["seconds"]) > arguments.heavy_seconds):
        return
    # Lets the spinning threads of the side before this one fall asleep; OpenBLAS's take 2^26 cycles.
    time.sleep(0.1)
    answer = side.ask(request_of(case, arguments))
    if "unavailable" in answer:
        results[side.key] = {"unavailable": answer["unavailable"]}
        return
    result["seconds"] += answer["seconds"]
    if "extra" in answer:
        result["extra"] = answer["extra"]


def one_after_another(case, sides, arguments, record):
    """All samples of a side, its memory given back before the next one starts."""
    results = {}
    for side in sides:
        for present in [side] if side.running() else started([side], record):
            add_samples(case, present, results, arguments)
            present.make_room()
    return results


def check_wick(case, results, arguments, record):
    """On the CPU wick is to do every case; on a GPU, whose time is dear, the others go on without one that fails."""
    reason = results.get("wick", {}).get("unavailable")
    if reason is None:
        return
    if arguments.device == "cpu":
        sys.exit(f"{case['name']}: wick: {reason}")
    record["failed"] = record.get("failed", 0) + 1
    tell(f"FAILED: {case['name']}: wick: {reason}")


def compare(cases, arguments, record):
    begin, done = time.time(), 0
    light, heavy = [c for c in cases if not c["heavy"]], [c for c in cases if c["heavy"]]
    on_gpu = arguments.device != "cpu"
    sides = all_sides(arguments)
    # Whole models get fresh processes each, so that a side's peak memory is that of one case.
    for group in ([light] if light else []) + [[case] for case in heavy]:
        alone = group[0]["heavy"] if on_gpu else group[0]["flops"] > HUGE_FLOPS
        active = [] if alone else started(sides, record)
        gone_through = go_through(group, active, arguments) if not on_gpu and not group[0]["heavy"] else None
        for case in group:
            if time.time() - begin > arguments.deadline:
                tell(f"no time left for {case['name']}")
                continue
            if alone:
                results = one_after_another(case, sides, arguments, record)
            elif gone_through:
                results = next(gone_through)
            else:
                if on_gpu:
                    started([side for side in active if not side.running()], record)
                results = take_turns(case, active, arguments)
            check_wick(case, results, arguments, record)
            record["cases"].append({**case, "results": results})
            done += 1
            show(f"[{done}/{len(cases)} {time.time() - begin:.0f} s]", case, results)
            if on_gpu:
                write(record, arguments.output)  # the machine may be taken away at any time
        for side in active:
            side.make_room() if on_gpu else side.stop()
    for side in sides:
        side.stop()


def wick_json(arguments, *command):
    """Runs `wick bench ...`, its table on standard error; returns its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "result.json")
        where = ["--device", arguments.device, "--threads", str(arguments.threads)]
        subprocess.run([arguments.wick, "bench", *command, "--json", path, *where],
                       check=True, stdout=sys.stderr, cwd=folder)
        with open(path, encoding="utf-8") as file:
            return json.load(file)


def measure_scaling(cases, arguments):
    """One thread against all, by wick itself."""
    results = []
    if any(not case["heavy"] and case["flops"] >= 1e6 for case in cases):
        results += wick_json(arguments, "scaling", "--filter", arguments.filter)["cases"]
    for case in cases:
        if case["name"] in SCALED_MODELS:
            results += wick_json(arguments, "scaling", "--whole-models", "--filter", case["name"])["cases"]
    return results


def measure_decoding(cases, arguments):
    """An adapter's cost and the share of the memory's bandwidth, in turns of one token in one process of wick."""
    if not any(case["name"].startswith("decode:shape=qwen2.5-0.5b") for case in cases):
        return None
    return wick_json(arguments, "decoding")


class Neighbour:
    """A process that is busy on one core while it is not stopped."""

    def __init__(self):
        core = max(os.sched_getaffinity(0))
        self.process = subprocess.Popen([sys.executable, "-c", "while True: pass"],
                                        preexec_fn=lambda: os.sched_setaffinity(0, {core}))
        self.rest()

    def work(self):
        self.process.send_signal(signal.SIGCONT)
        time.sleep(0.02)

    def rest(self):
        self.process.send_signal(signal.SIGSTOP)

    def end(self):
        self.process.kill()
        self.process.wait()


def measure_neighbour(cases, arguments):
    """wick with and without a process that is busy on one core, in turns."""
    side = all_sides(arguments)[0]
    side.start()
    neighbour, results = Neighbour(), []
    for case in (case for case in cases if not case["heavy"]):
        seconds = {"quiet_seconds": [], "busy_seconds": []}
        for _ in range(arguments.rounds):
            for key, before in (("quiet_seconds", neighbour.rest), ("busy_seconds", neighbour.work)):
                before()
                request = {**request_of(case, arguments), "budget_s": 0.15}
                seconds[key] += side.ask(request)["seconds"]
        neighbour.rest()
        results.append({"name": case["name"], **seconds})
        ratio = median(seconds["busy_seconds"]) / median(seconds["quiet_seconds"])
        tell(f"busy neighbour: {case['name']}: {ratio:.2f} times the quiet time")
    neighbour.end()
    side.stop()
    return results


def measure_profiles(cases, arguments):
    profiles = []
    for case in cases:
        if case["name"] in PROFILED:
            try:
                result = wick_json(arguments, case["suite"], "--whole-models", "--filter", case["name"], "--profile")
            except subprocess.CalledProcessError as error:
                tell(f"no profile of {case['name']}: {error}")
                continue
            own = next(c for c in result["cases"] if c["name"] == case["name"])
            precision = {key: own[key] for key in ("matmul_precision",) if key in own}
            profiles.append({"name": case["name"], "calls": len(own["seconds"]), **precision, **result["profile"]})
    return profiles


def run(arguments):
    listing = subprocess.run([arguments.wick, "bench", "list", "--suite", arguments.suite, "--device", arguments.device],
                             check=True, capture_output=True, text=True)
    cases = [case for case in json.loads(listing.stdout)["cases"] if arguments.filter in case["name"]
             and not (arguments.no_models and case["heavy"])]
    if not cases:
        sys.exit(f"no case has {arguments.filter!r} in its name")
    machine = wick_json(arguments, "machine")
    record = {"machine": {**machine, "cores": os.cpu_count(), "system": platform.platform()},
              "threads": arguments.threads, "rounds": arguments.rounds, "samples": arguments.samples,
              "settle_seconds": SETTLE_SECONDS, "sides": {}, "cases": []}
    compare(cases, arguments, record)
    record["profiles"] = measure_profiles(cases, arguments)
    if arguments.device != "cpu":
        return record
    record["decoding"] = measure_decoding(cases, arguments)
    record["scaling"] = measure_scaling(cases, arguments)
    record["neighbour"] = measure_neighbour(cases, arguments)
    return record


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def show(progress, case, results):
    own = median(results["wick"].get("seconds") or [float("nan")])
    parts = [f"{key} {1e6 * median(r['seconds']):.1f} ({own / median(r['seconds']):.2f})"
             for key, r in results.items() if r.get("seconds")]
    tell(f"{progress} {case['name']}: " + ", ".join(parts) + " us (wick/it)")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wick", required=True, help="the program to measure")
    parser.add_argument("--build", default="", help="the folder with onednn_peer and openblas_peer")
    parser.add_argument("--torch-python", default="", help="a Python that has torch, transformers and peft")
    parser.add_argument("--mlx-python", default="", help="a Python that has mlx")
    parser.add_argument("--llama-python", default="", help="a Python that has llama_cpp and gguf")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, where PyTorch is the only peer")
    parser.add_argument("--suite", default="all", help="training, inference or all")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--no-models", action="store_true", help="leave out whole models, which take most of the time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=150, help="a round: enough to outlast what a side just awake does")
    parser.add_argument("--budget", type=float, default=0.4, help="seconds of a round, for cases slower than that")
    parser.add_argument("--heavy-rounds", type=int, default=7, help="rounds of one sample for whole models")
    parser.add_argument("--heavy-seconds", type=float, default=15, help="no more rounds after so long, a side")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="no new case after so many seconds")
    parser.add_argument("--output", required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    arguments.wick = os.path.abspath(arguments.wick)
    arguments.build = os.path.abspath(arguments.build)
    return arguments


def rounded(value):
    """Every float to five digits: more is noise."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def text_of(record):
    """Indented JSON, but a list of numbers on one line."""
    return re.sub(r"\[[\d.e\-+,\s]+\]", lambda numbers: " ".join(numbers[0].split()),
                  json.dumps(rounded(record), indent=1)) + "\n"


def write(record, path):
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(text_of(record))
    os.replace(path + ".tmp", path)


def main():
    arguments = parse_arguments()
    record = run(arguments)
    write(record, arguments.output)
    return 1 if record.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
