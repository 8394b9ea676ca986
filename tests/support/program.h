// Runs the real program as a person would, and shows what it said.
#pragma once

#include <string>
#include <vector>

namespace wick::test {

// The program: what the environment variable WICK_PROGRAM names, else the one that was built along.
std::string wick_program();

struct ProgramResult {
  int status = 0;   // the exit status; 128 + n where signal n ended it
  std::string out;  // standard output
  std::string err;
};

// Runs `wick` with the arguments; `input` is its standard input. Throws Error where it cannot run.
ProgramResult run_wick(const std::vector<std::string>& arguments, const std::string& input = "");
// The same with a shell behind it: `wick ARGUMENTS REST`, where REST is a pipe or a redirection,
// taken as it is; the status is that of wick.
ProgramResult run_wick_in_shell(const std::vector<std::string>& arguments, const std::string& rest);

}  // namespace wick::test
