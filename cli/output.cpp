// What a verb was asked to produce, on standard output.
#include "cli/output.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "wick/base/error.h"

namespace wick {

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EPIPE) {
      throw OutputClosed();
    } else if (errno != EINTR) {
      fail("standard output: {}", std::generic_category().message(errno));
    }
  }
}

}  // namespace wick
