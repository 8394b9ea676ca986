// A program that runs beside the test, so that it can be killed, interrupted and asked what it
// said.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

namespace wick::test {

class Child {
 public:
  // Runs `command` (its first word is the program, looked up in PATH); its streams go to files in
  // this folder.
  Child(const std::vector<std::string>& command, const std::filesystem::path& streams);

  pid_t pid() const { return pid_; }
  void send(int signal) const;
  // The exit status; 1000 + the signal that ended it.
  int wait() const;
  std::string out() const;
  std::string err() const;

 private:
  std::filesystem::path out_;
  std::filesystem::path err_;
  pid_t pid_ = -1;
};

}  // namespace wick::test
