// Hand-written forms of the split patterns that most models use: several times as fast as the
// regular expression, and the same cuts (tests compare them with Oniguruma).
#pragma once

#include <string_view>
#include <vector>

#include "wick/text/pretokenizer.h"

namespace wick {

// Appends the words of the text, which leave no gap; none is marked as being at the start.
using Splitter = void (*)(std::string_view text, std::vector<Piece>& out);

// The splitter of a pattern known by its exact text (GPT-2; cl100k and Llama 3; Qwen 2), or null.
Splitter find_splitter(std::string_view pattern);

}  // namespace wick
