// Text to token ids and back, as a Hugging Face `tokenizer.json` describes it.
//
// The pipeline: added tokens are cut out of the text, the rest is normalised, cut into words
// (pre-tokenizer), turned into ids (BPE or WordPiece) and framed by special tokens
// (post-processor). A component that is not known is an error when the file is read, never a wrong
// id later.
//
// A Tokenizer is immutable once made, cheap to copy (copies share one vocabulary), and every const
// member may be called from several threads at once. Text is UTF-8; text that is not is an error
// that names the byte offset.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace wick {

class Tokenizer {
 public:
  // Reads `tokenizer.json` of a model folder, and, where they are, `tokenizer_config.json`,
  // `special_tokens_map.json` and the chat template files.
  static Tokenizer from_folder(const std::filesystem::path& model_folder);
  // Reads one `tokenizer.json`; there is then no bos or eos id and no chat template.
  static Tokenizer from_file(const std::filesystem::path& tokenizer_json);
  // The same from its text; `name` stands for the path in errors.
  static Tokenizer from_json(std::string_view text, std::string name);

  // `add_special_tokens` frames the ids as the post-processor says (bos, eos, [CLS], ...).
  std::vector<int32_t> encode(std::string_view utf8, bool add_special_tokens) const;
  // Bytes that do not form UTF-8 become U+FFFD. An id that is no token is an error.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // One more than the largest id, added tokens included; a model's table may be larger.
  int32_t vocab_size() const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  // The token as it stands in the vocabulary ("Ġthe", "▁the", "##ing"), not its text.
  std::string id_to_token(int32_t id) const;

  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  bool is_special(int32_t id) const;
  // The Jinja text, empty where the folder has none.
  const std::string& chat_template() const;

 private:
  friend class StreamingDecoder;
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

// Decodes ids one at a time. What `push` and `finish` return, joined, is what `decode` gives for
// all the ids at once; bytes that may still become a character are held back until they do.
//
// An id beyond the vocabulary has no text and gives nothing: a model's table may be padded.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  ~StreamingDecoder();
  StreamingDecoder(StreamingDecoder&&) noexcept;
  StreamingDecoder& operator=(StreamingDecoder&&) noexcept;

  std::string push(int32_t id);
  // What was held back; the decoder is then as new.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace wick
