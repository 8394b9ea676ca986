// What a verb was asked to produce, on standard output; everything else goes through the log.
#pragma once

#include <string_view>

namespace wick {

// The reader of standard output has gone away (`wick generate ... | head`): no error, but no reason
// to go on. Thrown by `print`, caught in main.
struct OutputClosed {};

// Writes and flushes. Throws Error if the system refuses (disk full), OutputClosed as above.
void print(std::string_view text);

}  // namespace wick
