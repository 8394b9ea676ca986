#!/usr/bin/env python3
# Tests tools/check_house.py: a good tree passes, and each broken rule is found at its file and line.
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "tools" / "check_house.py"
HEADER = "// What it is for.\n#pragma once\n"
GOOD = {
    "wick/base/error.h": HEADER,
    "wick/base/log.cpp": '// The log.\nvoid log() { std::fprintf(stderr, "x"); }\n',
    "wick/core/tensor.h": HEADER + '#include "wick/base/error.h"\n',
    "wick/backend/registry.cpp": "// Makes back ends.\n#ifdef WICK_CUDA\n#endif\n",
    "wick/base/parallel.cpp": "// A pool.\ntry {\n} catch (...) {\n  first = std::current_exception();\n}\n",
    "cli/main.cpp": '// The program.\n#include "wick/core/tensor.h"\ntry {\n} catch (const std::exception& e) {\n}\n',
}


class CheckHouse(unittest.TestCase):
    def run_on(self, changes):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (GOOD | changes).items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            done = subprocess.run([sys.executable, str(TOOL), folder], capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def assert_found(self, name, text, where, words):
        status, output = self.run_on({name: text})
        self.assertEqual(status, 1)
        lines = output.splitlines()
        self.assertEqual(len(lines), 1, output)
        self.assertTrue(lines[0].startswith(f"{where}: "), output)
        self.assertIn(words, lines[0])

    def test_good_tree_passes(self):
        self.assertEqual(self.run_on({}), (0, ""))

    def test_include_upwards(self):
        text = HEADER + '#include "wick/core/tensor.h"\n'
        self.assert_found("wick/base/up.h", text, "wick/base/up.h:3", "base may not include core")

    def test_include_sideways(self):
        text = HEADER + '#include "wick/core/tensor.h"\n'
        self.assert_found("wick/text/side.h", text, "wick/text/side.h:3", "text may not include core")

    def test_library_does_not_include_the_program(self):
        changes = {"cli/common.h": HEADER, "wick/io/x.h": HEADER + '#include "cli/common.h"\n'}
        self.assertEqual(self.run_on(changes)[0], 1)

    def test_concrete_back_end_is_named_by_the_registry_alone(self):
        changes = {"wick/backend/cpu/cpu.h": HEADER, "wick/ops/x.cpp": '// X.\n#include "wick/backend/cpu/cpu.h"\n'}
        status, output = self.run_on(changes)
        self.assertEqual(status, 1)
        self.assertIn("wick/ops/x.cpp:2: ops may not include backend/cpu", output)
        changes["wick/ops/x.cpp"] = "// X.\n"
        changes["wick/backend/make.cpp"] = '// X.\n#include "wick/backend/cpu/cpu.h"\n'
        self.assertEqual(self.run_on(changes), (0, ""))

    def test_circle_in_one_folder(self):
        changes = {
            "wick/core/a.h": HEADER + '#include "wick/core/b.h"\n',
            "wick/core/b.h": HEADER + '#include "wick/core/a.h"\n',
        }
        status, output = self.run_on(changes)
        self.assertEqual(status, 1)
        self.assertEqual(
            output,
            "wick/core/b.h:3: a circle of includes: wick/core/a.h -> wick/core/b.h -> wick/core/a.h\n",
        )

    def test_include_that_is_not_named_from_the_root(self):
        text = '// X.\n#include "tensor.h"\n'
        self.assert_found("wick/core/x.cpp", text, "wick/core/x.cpp:2", "name it from the root")

    def test_folder_without_a_floor(self):
        self.assert_found("wick/utils/x.h", HEADER, "wick/utils/x.h:1", "has no floor")

    def test_library_that_prints(self):
        for code in ('std::printf("x");', "std::cerr << 1;", 'fmt::print("x");', "#include <iostream>"):
            self.assert_found("wick/io/x.cpp", f"// X.\n{code}\n", "wick/io/x.cpp:2", "log.h")

    def test_words_in_comments_and_strings_count_for_nothing(self):
        text = '// X.\nfail("printf(1) and abort()");  // not std::cout\n'
        self.assertEqual(self.run_on({"wick/io/x.cpp": text}), (0, ""))

    def test_library_that_ends_the_process(self):
        self.assert_found("wick/io/x.cpp", "// X.\nstd::abort();\n", "wick/io/x.cpp:2", "never ends")

    def test_catch_that_swallows(self):
        for what in ("...", "const std::exception& e", "const Error& e"):
            text = f"// X.\ntry {{\n}} catch ({what}) {{\n}}\n"
            self.assert_found("cli/cmd_x.cpp", text, "cli/cmd_x.cpp:3", "only cli/main.cpp catches")

    def test_catch_that_throws_again_is_allowed(self):
        text = '// X.\ntry {\n} catch (const Error& e) {\n  fail("file: {}", e.what());\n}\n'
        self.assertEqual(self.run_on({"wick/io/x.cpp": text}), (0, ""))

    def test_build_flag_outside_the_registry(self):
        self.assert_found("wick/io/x.cpp", "// X.\n#ifdef WICK_CUDA\n#endif\n", "wick/io/x.cpp:2", "build flags")

    def test_macro_of_our_own_is_no_build_flag(self):
        text = "// X.\n#define WICK_MASKS 1\n#if WICK_MASKS\n#endif\n"
        self.assertEqual(self.run_on({"wick/io/x.cpp": text}), (0, ""))

    def test_types_of_one_name(self):
        # Two structs named Piece once shared one move constructor, and with it a stack overflow.
        changes = {"wick/text/x.h": HEADER + "struct Piece {\n", "wick/data/y.h": HEADER + "struct Piece {\n"}
        status, output = self.run_on(changes)
        self.assertEqual(status, 1)
        self.assertEqual(output, "wick/text/x.h:3: wick/data/y.h defines a type Piece too: rename one\n")
        elsewhere = {"wick/text/x.h": HEADER + "namespace wick::a {\nstruct Piece {\n",
                     "wick/data/y.h": HEADER + "namespace wick::b {\nstruct Piece {\n"}
        self.assertEqual(self.run_on(elsewhere), (0, ""))

    def test_file_without_a_first_line(self):
        self.assert_found("wick/io/x.cpp", "int x;\n", "wick/io/x.cpp:1", "first line")

    def test_header_without_pragma_once(self):
        self.assert_found("wick/io/x.h", "// X.\n", "wick/io/x.h:1", "#pragma once")

    def test_header_for_each_instruction_set_has_a_toggling_guard(self):
        text = "// X.\n#if defined(WICK_X_H_) == defined(HWY_TARGET_TOGGLE)\n#define WICK_X_H_\n#endif\n"
        self.assertEqual(self.run_on({"wick/backend/cpu/x_inl.h": text}), (0, ""))

    def test_unfinished_work(self):
        self.assert_found("wick/io/x.cpp", "// X.\n// TO" "DO: more\n", "wick/io/x.cpp:2", "left undone")


if __name__ == "__main__":
    unittest.main()
