// How often a model, asked greedily, says exactly what a record wants.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "wick/models/bundle.h"

namespace wick {

// A record as a question: what the model is given, and what it is to say.
struct Question {
  std::string prompt;
  std::string expected;  // without the white space around it
  bool chat = false;     // the last assistant turn of a chat; else a completion
};

// The prompts with completions and the chats of a file; at most `limit` records are read (0: all).
// Throws Error if there is none.
std::vector<Question> read_questions(const std::filesystem::path& file, int64_t limit);

struct Answers {
  std::vector<std::string> texts;  // one a question, without the white space around it
  int64_t matches = 0;             // that equal what is expected
  double seconds = 0;
};

// Generation ends a little after the length of what is expected: nothing longer can match.
Answers answer(Bundle& bundle, const std::vector<Question>& questions, const std::string& label);

}  // namespace wick
