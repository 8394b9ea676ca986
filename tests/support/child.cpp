// fork, exec, wait.
#include "tests/support/child.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "wick/base/file.h"

namespace wick::test {

Child::Child(const std::vector<std::string>& command, const std::filesystem::path& streams)
    : out_(streams / "stdout"), err_(streams / "stderr") {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& word : command) {
    argv.push_back(const_cast<char*>(word.c_str()));
  }
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::dup2(::open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), STDOUT_FILENO);
    ::dup2(::open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), STDERR_FILENO);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
}

void Child::send(int signal) const {
  ::kill(pid_, signal);
}

int Child::wait() const {
  int status = 0;
  ::waitpid(pid_, &status, 0);
  return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string Child::out() const {
  return read_text(out_);
}

std::string Child::err() const {
  return read_text(err_);
}

}  // namespace wick::test
