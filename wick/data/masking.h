// Records to tokens, and which of the tokens are learnt.
//
// A record is a list of pieces, each learnt or not. Pieces are encoded one by one, so that a prompt
// has the ids that it will have when the model is used; a piece is encoded together with the one
// before it where that does not change the ids of the latter (SPM tokenizers mark the start of a
// text).
#pragma once

#include "wick/data/records.h"
#include "wick/text/tokenizer.h"

namespace wick {

enum class TrainOn : uint8_t {
  completion,  // completions, assistant turns, and all of a text
  all,         // every token, prompts too
};

struct RecordPiece {
  std::string text;
  bool is_target = false;
};

// Chats are rendered as ChatML: "<|im_start|>role\ncontent<|im_end|>\n".
std::vector<RecordPiece> pieces_of(const Record& record);

// The prompt of a record as it is given to a model that is to continue it: the prompt itself, or
// the chat up to where the last assistant turn begins. Empty for a text.
std::string prompt_of(const Record& record);

// The ids of the pieces in order, begun as the tokenizer begins a text (often by bos) and ended by
// eos where the tokenizer has one; eos is learnt. Tokens after the last target are dropped.
Sample encode_record(const Tokenizer& tokenizer, const Record& record, TrainOn train_on);

}  // namespace wick
