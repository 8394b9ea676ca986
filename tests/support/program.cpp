// Runs the program through bash, with files for its streams.
#include "tests/support/program.h"

#include <sys/wait.h>

#include <cstdlib>

#include "tests/support/test_data.h"
#include "wick/base/error.h"
#include "wick/base/file.h"

namespace wick::test {

namespace {

// One word for a shell.
std::string quoted(const std::string& word) {
  std::string result = "'";
  for (const char c : word) {
    result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  }
  return result + "'";
}

std::string command_line(const std::vector<std::string>& arguments) {
  std::string line = quoted(wick_program());
  for (const std::string& argument : arguments) {
    line += " " + quoted(argument);
  }
  return line;
}

// Runs `line` in bash, whose last command must exit with the status to report.
ProgramResult run_shell(const std::string& line, const TemporaryFolder& folder) {
  const auto out = folder.path() / "out";
  const auto err = folder.path() / "err";
  const std::string script =
      "{ " + line + "; } >" + quoted(out.string()) + " 2>" + quoted(err.string()) + " </dev/null";
  const int status = std::system(("bash -c " + quoted(script)).c_str());
  check(status != -1 && WIFEXITED(status), "cannot run: {}", line);
  return {WEXITSTATUS(status), read_text(out), read_text(err)};
}

}  // namespace

std::string wick_program() {
  const char* program = std::getenv("WICK_PROGRAM");
  return program == nullptr ? WICK_PROGRAM_DEFAULT : program;
}

ProgramResult run_wick(const std::vector<std::string>& arguments, const std::string& input) {
  const TemporaryFolder folder;
  const auto in = folder.path() / "in";
  write_text_atomically(in, input);
  return run_shell(command_line(arguments) + " <" + quoted(in.string()), folder);
}

ProgramResult run_wick_in_shell(const std::vector<std::string>& arguments,
                                const std::string& rest) {
  const TemporaryFolder folder;
  return run_shell(command_line(arguments) + " " + rest + "; exit ${PIPESTATUS[0]}", folder);
}

}  // namespace wick::test
