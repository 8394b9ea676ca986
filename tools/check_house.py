#!/usr/bin/env python3
# Checks the rules of docs/map.md that a machine can check: who may include whom, who may print and catch.
"""Usage: check_house.py [ROOT]. Prints `file:line: what is wrong` and exits with 1, or exits with 0.

Includes go down only: a folder may include itself and the folders that MAY_INCLUDE lists for it, and
no two files include each other in a circle. The library never prints (but for wick/base/log.cpp),
never ends the process, and lets errors pass up to cli/main.cpp: a catch of everything must throw
again. Build flags (a WICK_... that no source file defines) are read in wick/backend/registry.cpp
alone. No two headers define a type of one name in one namespace: the linker would pick one of their
functions for both. A file opens with a line that says what it is for, and holds nothing unfinished.
"""

import re
import sys
from pathlib import Path

# Folder (under wick/, but for cli): the folders below it that it may include.
MAY_INCLUDE = {
    "base": [],
    "core": ["base"],
    "text": ["base"],
    "backend/cpu": ["core", "base"],
    "backend/cuda": ["core", "base"],
    "backend/metal": ["core", "base"],
    "backend/mpi": ["core", "base"],
    "autograd": ["core", "base"],
    "io": ["core", "base"],
    "data": ["text", "base"],
    "ops": ["autograd", "core", "base"],
    "backend": ["backend/cpu", "backend/cuda", "backend/metal", "backend/mpi", "core", "base"],
    "nn": ["ops", "autograd", "core", "base"],
    "lora": ["nn", "autograd", "io", "core", "base"],
    "models": ["nn", "ops", "autograd", "io", "text", "core", "base"],
    "train": ["models", "lora", "data", "autograd", "io", "core", "base"],
    "infer": ["models", "lora", "nn", "text", "core", "base"],
    "embed": ["models", "lora", "text", "core", "base"],
    "serve": ["infer", "embed", "lora", "text", "base"],
}
# Beside the floors, and not looked through itself: the benchmark cases behind `wick bench`.
MAY_INCLUDE["bench"] = list(MAY_INCLUDE)
MAY_INCLUDE["cli"] = list(MAY_INCLUDE)

PRINTS = re.compile(
    r"\b(?:std::)?(?:printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|perror)\s*\("
    r"|\bstd::(?:cout|cerr|clog)\b|\bfmt::print\b|#\s*include\s*<iostream>"
)
ENDS = re.compile(r"(?<![\w.>])(?:std::|::)?(?:exit|_exit|_Exit|quick_exit|abort|terminate)\s*\(")
CATCHES_ALL = re.compile(r"\bcatch\s*\(\s*(?:\.\.\.|(?:const\s+)?(?:std::exception|(?:wick::)?Error)\b)")
PASSES_ON = re.compile(r"\bthrow\b|\bfail\s*\(|\bcurrent_exception\b")
CONDITION = re.compile(r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b")
FLAG = re.compile(r"\bWICK_\w+")
DEFINE = re.compile(r"^\s*#\s*define\s+(WICK_\w+)")
# A header once a file, or once an instruction set (Highway's toggling guard).
GUARD = re.compile(r"^#pragma once$|\bHWY_TARGET_TOGGLE\b", re.MULTILINE)
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
NAMESPACE = re.compile(r"^namespace ([\w:]+) \{")
TYPE = re.compile(r"^(?:struct|class|enum class|union) (\w+)(?:\s+final)?\s*(?::.*)?\{")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')
SOURCES = (".h", ".cpp", ".cu", ".cuh")
HANDLER_LINES = 5  # how far down a handler's throw is looked for


def folder_of(path):
    """The folder of a path such as wick/backend/cpu/x.h as MAY_INCLUDE names it, or None."""
    parts = Path(path).parts[:-1]
    if parts[:1] in (("cli",), ("bench",)):
        return parts[0]
    if parts[:1] == ("wick",) and len(parts) > 1:
        return "/".join(parts[1:3])
    return None


def code_of(line):
    """The line without strings and line comments, so that words in them count for nothing."""
    return re.sub(r"//.*", "", re.sub(r'"(?:\\.|[^"\\])*"', '""', line))


def check_include(file, target, root):
    """What is wrong with `#include "target"` in the file, or None."""
    here, there = folder_of(file), folder_of(target)
    if not (root / target).is_file():
        return f'"{target}" is no file of the project: name it from the root'
    if there is None:
        return f'"{target}" is not of the library or the program'
    if there not in MAY_INCLUDE:
        return f'folder "{there}" has no floor: add it to MAY_INCLUDE and docs/map.md'
    if here == there or there in MAY_INCLUDE[here]:
        return None
    allowed = ", ".join(MAY_INCLUDE[here]) or "nothing"
    return f'{here} may not include {there} ("{target}"); it may include: {allowed}'


def check_lines(file, lines, root, own_macros):
    """Yields (line number, message) for one file under wick/ or cli/."""
    library = file.startswith("wick/")
    if not lines or not lines[0].startswith("// "):
        yield 1, "the first line must be a comment that says what the file is for"
    if file.endswith((".h", ".cuh")) and not GUARD.search("\n".join(lines)):
        yield 1, "a header needs #pragma once"
    for number, line in enumerate(lines, 1):
        included = INCLUDE.match(line)
        if included:
            problem = check_include(file, included.group(1), root)
            if problem:
                yield number, problem
            continue
        if UNFINISHED.search(line):
            yield number, "something is left undone here"
        code = code_of(line)
        if library and file != "wick/base/log.cpp" and PRINTS.search(code):
            yield number, "the library prints through wick/base/log.h only"
        if library and ENDS.search(code):
            yield number, "the library never ends the process: throw wick::Error"
        if file != "cli/main.cpp" and CATCHES_ALL.search(code):
            handler = "\n".join(code_of(row) for row in lines[number - 1 : number - 1 + HANDLER_LINES])
            if not PASSES_ON.search(handler):
                yield number, "only cli/main.cpp catches everything: let the error pass, or throw it again"
        if file != "wick/backend/registry.cpp" and CONDITION.search(code):
            for flag in set(FLAG.findall(code)) - own_macros:
                yield number, f"build flags ({flag}) are read in wick/backend/registry.cpp alone"


def find_twins(files):
    """Yields (file, line number, message) for each type of a header that an earlier one defines too."""
    first = {}
    for file in (name for name in files if name.endswith((".h", ".cuh"))):
        namespace = ""
        for number, line in enumerate(files[file], 1):
            opened, defined = NAMESPACE.match(line), TYPE.match(line)
            namespace = opened.group(1) if opened else namespace
            if defined:
                name = f"{namespace}::{defined.group(1)}"
                if first.setdefault(name, file) != file:
                    yield file, number, f"{first[name]} defines a type {defined.group(1)} too: rename one"


def find_circles(includes):
    """Yields each circle of files that include each other, found once, as a list of files."""
    state = {}  # file: "open" while it is on the path, "done" afterwards

    def visit(file, path):
        state[file] = "open"
        for target in sorted(includes.get(file, {})):
            if state.get(target) == "open":
                yield path[path.index(target) :] + [target]
            elif target not in state:
                yield from visit(target, path + [target])
        state[file] = "done"

    for file in sorted(includes):
        if file not in state:
            yield from visit(file, [file])


def check_house(root):
    """All findings of the tree, as `file:line: message`."""
    findings, includes = [], {}
    paths = sorted(p for top in ("wick", "cli") for p in (root / top).rglob("*") if p.suffix in SOURCES)
    files = {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8").splitlines() for p in paths}
    defines = (DEFINE.match(line) for lines in files.values() for line in lines)
    own_macros = {define.group(1) for define in defines if define}
    for file, lines in files.items():
        if folder_of(file) not in MAY_INCLUDE:
            findings.append(f"{file}:1: this folder has no floor: add it to MAY_INCLUDE and docs/map.md")
            continue
        findings += [f"{file}:{number}: {message}" for number, message in check_lines(file, lines, root, own_macros)]
        matches = [(number, INCLUDE.match(line)) for number, line in enumerate(lines, 1)]
        includes[file] = {match.group(1): number for number, match in matches if match}
    findings += [f"{file}:{number}: {message}" for file, number, message in find_twins(files)]
    for circle in find_circles(includes):
        line = includes[circle[-2]][circle[-1]]
        findings.append(f"{circle[-2]}:{line}: a circle of includes: {' -> '.join(circle)}")
    if not files:
        findings.append(f"{root}:1: there is neither wick/ nor cli/ here")
    return findings


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    findings = check_house(root)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
