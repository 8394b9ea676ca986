"""What every peer's worker shares: the line protocol and the parsing of case names.

A case is named `kind:key=value,...`, for example `lora_delta:T=64,d=1024,r=8`. The driver (`../compare.py`) writes one
JSON line {"case": NAME, "samples": N}; the worker answers with one JSON line, {"seconds": [...]}, {"unavailable": WHY},
or, for a request {"info": true}, its version and threads. Every sample is one awaited call.
"""
import json
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


def serve(info, kinds):
    """Answers requests until standard input ends. `kinds` maps a kind to a function of its values that makes a call."""
    prepared = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("info"):
            answer = info
        else:
            answer = run_case(request, kinds, prepared)
        print(json.dumps(answer), flush=True)


def run_case(request, kinds, prepared):
    name = request["case"]
    kind, values = parse_case(name)
    try:
        if name not in prepared:
            if kind not in kinds:
                raise Unavailable(f"no such operation: {kind}")
            if request.get("alone"):
                prepared.clear()
            prepared[name] = kinds[kind](**values)
            for _ in range(request.get("warm_up", 3)):
                prepared[name]()
        call = prepared[name]
        seconds = []
        for _ in range(request["samples"]):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    except Unavailable as reason:
        return {"unavailable": str(reason)}
    answer = {"seconds": seconds}
    extra = getattr(call, "extra", None)
    if extra is not None:
        answer["extra"] = extra()
    return answer
