// Pieces, and where the learnt ones begin in tokens.
#include "wick/data/masking.h"

#include <algorithm>
#include <span>

namespace wick {

namespace {

std::string turn_start(const Message& message) {
  return "<|im_start|>" + message.role + "\n";
}

std::vector<RecordPiece> chat_pieces(const std::vector<Message>& messages) {
  std::vector<RecordPiece> pieces;
  std::string given;  // text since the last assistant turn
  for (const Message& message : messages) {
    given += turn_start(message);
    const std::string said = message.content + "<|im_end|>";
    if (message.role == "assistant") {
      pieces.push_back({std::move(given), false});
      pieces.push_back({said, true});
      given = "\n";
    } else {
      given += said + "\n";
    }
  }
  pieces.push_back({std::move(given), false});
  return pieces;
}

void append(Sample& sample, std::span<const int32_t> ids, bool is_target) {
  sample.ids.insert(sample.ids.end(), ids.begin(), ids.end());
  sample.is_target.insert(sample.is_target.end(), ids.size(), is_target ? 1 : 0);
}

// The ids of `text` as it follows `before`.
std::vector<int32_t> encode_after(const Tokenizer& tokenizer, const std::string& before,
                                  const std::string& text) {
  const std::vector<int32_t> head = tokenizer.encode(before, false);
  std::vector<int32_t> joint = tokenizer.encode(before + text, false);
  if (joint.size() >= head.size() && std::equal(head.begin(), head.end(), joint.begin())) {
    joint.erase(joint.begin(), joint.begin() + static_cast<std::ptrdiff_t>(head.size()));
    return joint;
  }
  return tokenizer.encode(text, false);
}

}  // namespace

std::vector<RecordPiece> pieces_of(const Record& record) {
  switch (record.form) {
    case Record::Form::completion:
      return {{record.prompt, false}, {record.completion, true}};
    case Record::Form::chat:
      return chat_pieces(record.messages);
    case Record::Form::text:
      break;
  }
  return {{record.text, true}};
}

std::string prompt_of(const Record& record) {
  if (record.form == Record::Form::completion) {
    return record.prompt;
  }
  std::string prompt;
  std::string rendered;
  for (const Message& message : record.messages) {
    rendered += turn_start(message);
    if (message.role == "assistant") {
      prompt = rendered;
    }
    rendered += message.content + "<|im_end|>\n";
  }
  return prompt;
}

Sample encode_record(const Tokenizer& tokenizer, const Record& record, TrainOn train_on) {
  const std::optional<int32_t> eos = tokenizer.eos_id();
  Sample sample;
  const std::string* before = nullptr;
  const std::vector<RecordPiece> pieces = pieces_of(record);
  for (const RecordPiece& piece : pieces) {
    std::vector<int32_t> ids = before == nullptr ? tokenizer.encode(piece.text, true)
                                                 : encode_after(tokenizer, *before, piece.text);
    if (before == nullptr && eos && !ids.empty() && ids.back() == *eos) {
      ids.pop_back();  // some tokenizers end every text themselves; the end comes below
    }
    append(sample, ids, piece.is_target || train_on == TrainOn::all);
    before = &piece.text;
  }
  if (!sample.is_target.empty()) {
    sample.is_target.front() = 0;
  }
  const auto last_target = std::find(sample.is_target.rbegin(), sample.is_target.rend(), 1);
  const auto length = static_cast<size_t>(sample.is_target.rend() - last_target);
  sample.ids.resize(length);
  sample.is_target.resize(length);
  if (eos && length > 0 && sample.ids.back() != *eos) {
    append(sample, std::span(&*eos, 1), true);
  }
  return sample;
}

}  // namespace wick
