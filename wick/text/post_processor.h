// The post-processor of a tokenizer.json: the special tokens before and behind a text.
#pragma once

#include <cstdint>
#include <vector>

namespace wick {

class Component;

struct Frame {
  std::vector<int32_t> before;
  std::vector<int32_t> behind;
};

// Reads TemplateProcessing (its single form), BertProcessing, RobertaProcessing, ByteLevel (which
// frames nothing) and Sequence (each frames what the one before it gave). Ids must be below
// `id_bound`.
Frame parse_post_processor(const Component& component, int32_t id_bound);

}  // namespace wick
