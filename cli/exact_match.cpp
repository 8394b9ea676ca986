// Questions and greedy answers.
#include "cli/exact_match.h"

#include <algorithm>
#include <chrono>

#include "wick/base/error.h"
#include "wick/base/progress.h"
#include "wick/data/masking.h"
#include "wick/infer/generator.h"

namespace wick {

namespace {

std::string trimmed(const std::string& text) {
  constexpr const char* kSpace = " \t\r\n";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string::npos) {
    return {};
  }
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::string answer_one(Bundle& bundle, const Question& question) {
  constexpr int64_t kMargin = 16;  // the same text may be spelt in more tokens
  const Tokenizer& tokenizer = bundle.tokenizer;
  const auto used = static_cast<int64_t>(encode_prompt(tokenizer, question.prompt).size());
  const auto wanted = static_cast<int64_t>(tokenizer.encode(question.expected, false).size());
  GenerateOptions options;
  options.max_tokens = std::min(wanted + kMargin, bundle.config.max_positions - used);
  if (options.max_tokens <= 0) {
    return {};  // the prompt alone fills the context
  }
  if (question.chat) {
    options.stop_text = {"<|im_end|>"};
    if (const std::optional<int32_t> id = tokenizer.token_to_id("<|im_end|>")) {
      options.stop_ids = {*id};
    }
  }
  return trimmed(generate_text(*bundle.decoder, tokenizer, question.prompt, options).text);
}

}  // namespace

std::vector<Question> read_questions(const std::filesystem::path& file, int64_t limit) {
  std::vector<Question> questions;
  RecordReader reader(file);
  for (int64_t read = 0; limit == 0 || read < limit; ++read) {
    const std::optional<Record> record = reader.next();
    if (!record) {
      break;
    }
    Question question{.prompt = prompt_of(*record)};
    if (record->form == Record::Form::completion) {
      question.expected = trimmed(record->completion);
    } else {
      question.chat = true;
      for (const Message& message : record->messages) {
        if (message.role == "assistant") {
          question.expected = trimmed(message.content);
        }
      }
    }
    if (!question.prompt.empty()) {
      questions.push_back(std::move(question));
    }
  }
  check(!questions.empty(),
        "{}: exact match needs records with a prompt and a completion, or chats with an assistant "
        "turn; there is none",
        file.string());
  return questions;
}

Answers answer(Bundle& bundle, const std::vector<Question>& questions, const std::string& label) {
  const auto start = std::chrono::steady_clock::now();
  Progress progress(label, static_cast<int64_t>(questions.size()));
  Answers answers;
  for (const Question& question : questions) {
    answers.texts.push_back(answer_one(bundle, question));
    answers.matches += answers.texts.back() == question.expected ? 1 : 0;
    progress.update(static_cast<int64_t>(answers.texts.size()),
                    fmt::format("{} match", answers.matches));
  }
  answers.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return answers;
}

}  // namespace wick
