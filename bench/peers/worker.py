"""What every peer's worker shares: the line protocol and the parsing of case names.

A case is named `kind:key=value,...`, for example `lora_delta:T=64,d=1024,r=8`. The driver (`../compare.py`) writes one
JSON line {"case": NAME, "samples": N, "budget_s": SECONDS}; the worker answers with one JSON line, {"seconds": [...]},
{"unavailable": WHY}, or, for a request {"info": true}, its version and threads. Every sample is one awaited call; there
are N of them, or as many as fit into the budget, at least one. With "settle_s": SECONDS, calls of that long come before
them and are not counted. A call with an attribute `repeats` does the work so many
times: its seconds are those of one. A worker whose information says "forgets" drops what it has prepared at a request
{"forget": true}.
"""
import json
import resource
import sys
import time


class Unavailable(Exception):
    """The peer has no such operation; the message says why."""


def parse_case(name):
    kind, _, rest = name.partition(":")
    values = {}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        try:
            values[key] = int(value)
        except ValueError:
            try:
                values[key] = float(value)
            except ValueError:
                values[key] = value
    return kind, values


def peak_memory():
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def serve(info, kinds, what_lacks="no such operation", forget=None):
    """Answers requests until standard input ends. `kinds` maps a kind to a function of its values that makes a call."""
    prepared = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("forget"):
            prepared.clear()
            forget()
            answer = {}
        else:
            answer = info if request.get("info") else run_case(request, kinds, prepared, what_lacks)
        print(json.dumps(answer), flush=True)


def sample(call, most, budget):
    """Seconds of up to `most` calls, as many as fit into the budget."""
    seconds, begin = [], time.perf_counter()
    while len(seconds) < most and (not seconds or time.perf_counter() - begin < budget):
        start = time.perf_counter()
        call()
        seconds.append((time.perf_counter() - start) / getattr(call, "repeats", 1))
    return seconds


def run_case(request, kinds, prepared, what_lacks):
    name = request["case"]
    kind, values = parse_case(name)
    try:
        if name not in prepared:
            if kind not in kinds:
                raise Unavailable(what_lacks)
            prepared[name] = kinds[kind](**values)
            sample(prepared[name], request.get("warm_up", 3), request.get("warm_up_s", 1.0))
        call = prepared[name]
        if request.get("settle_s"):
            sample(call, float("inf"), request["settle_s"])
        answer = {"seconds": sample(call, request["samples"], request.get("budget_s", 1e9))}
    except Unavailable as reason:
        prepared.pop(name, None)
        return {"unavailable": str(reason)}
    extra = getattr(call, "extra", None)
    if extra is not None:
        answer["extra"] = extra()
    return answer
