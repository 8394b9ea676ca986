// The pipeline put together: reading a tokenizer.json, encoding, decoding.
#include "wick/text/tokenizer.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <mutex>
#include <utility>

#include "wick/base/error.h"
#include "wick/text/added_tokens.h"
#include "wick/text/bpe.h"
#include "wick/text/component.h"
#include "wick/text/detokenizer.h"
#include "wick/text/normalizer.h"
#include "wick/text/post_processor.h"
#include "wick/text/pretokenizer.h"
#include "wick/text/tokenizer_config.h"
#include "wick/text/tokenizer_json.h"
#include "wick/text/unicode.h"
#include "wick/text/vocabulary.h"
#include "wick/text/word_cache.h"
#include "wick/text/wordpiece.h"

namespace wick {

namespace {

// Word caches at rest. An encoder borrows one, so the words of earlier texts are known to later
// ones and no two threads share a cache.
class CachePool {
 public:
  std::unique_ptr<WordCache> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) {
      return std::make_unique<WordCache>();
    }
    std::unique_ptr<WordCache> cache = std::move(idle_.back());
    idle_.pop_back();
    return cache;
  }
  void give_back(std::unique_ptr<WordCache> cache) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(cache));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<WordCache>> idle_;
};

std::string model_type(const Component& model, const TokenizerJson& file) {
  if (model.has("type")) {
    return model.type();
  }
  // Older files leave it out; the fields tell.
  return file.has_merges                          ? "BPE"
         : file.vocab_is_list                     ? "Unigram"
         : model.has("continuing_subword_prefix") ? "WordPiece"
                                                  : "WordLevel";
}

Bpe::Options parse_bpe_options(const Component& model, bool raw_bytes) {
  Bpe::Options options;
  options.raw_bytes = raw_bytes;
  options.ignore_merges = model.boolean("ignore_merges", false);
  options.byte_fallback = model.boolean("byte_fallback", false);
  options.fuse_unk = model.boolean("fuse_unk", false);
  options.unk_token = model.string("unk_token", "");
  options.continuing_prefix = model.string("continuing_subword_prefix", "");
  options.word_suffix = model.string("end_of_word_suffix", "");
  return options;
}

}  // namespace

struct Tokenizer::Impl {
  Impl(TokenizerJson json, const TokenizerConfig& config);
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void encode(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_words(std::string_view text, bool at_start, WordCache& cache,
                    std::vector<int32_t>& ids) const;
  std::optional<int32_t> find(const std::string& token) const;
  // The token with this id; none where there is no such id.
  std::optional<std::string_view> text(int32_t id) const;
  int32_t id_bound() const { return std::max(vocabulary.size(), added.id_bound()); }

  std::string path;
  Vocabulary vocabulary;
  AddedTokens added;
  std::unique_ptr<const Normalizer> normalizer;      // may be null
  std::unique_ptr<const PreTokenizer> pretokenizer;  // may be null
  std::unique_ptr<const WordModel> model;
  Frame frame;
  Detokenizer detokenizer;
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
  std::string chat_template;
  mutable CachePool caches;

 private:
  void read_model(const Component& root, const TokenizerJson& json);
  void read_added_tokens(const Component& root, const TokenizerConfig& config);
  void read_frame(const Component& root, const TokenizerConfig& config);
};

Tokenizer::Impl::Impl(TokenizerJson json, const TokenizerConfig& config)
    : path(json.path), vocabulary(std::move(json.vocabulary)) {
  const Component root(json.root, path);
  read_model(root, json);
  if (root.has("normalizer")) {
    normalizer = parse_normalizer(root.object("normalizer"));
  }
  read_added_tokens(root, config);
  if (root.has("decoder")) {
    detokenizer = Detokenizer(root.object("decoder"));
  }
  read_frame(root, config);
  bos = config.bos ? find(*config.bos) : std::nullopt;
  eos = config.eos ? find(*config.eos) : std::nullopt;
  chat_template = config.chat_template;
}

void Tokenizer::Impl::read_model(const Component& root, const TokenizerJson& json) {
  const Component model_part = root.object("model");
  const std::string type = model_type(model_part, json);
  const bool is_bpe = type == "BPE";
  if (!is_bpe && type != "WordPiece") {
    fail("{}: model: the model \"{}\" is not known; known are BPE, WordPiece", path, type);
  }
  check(vocabulary.size() > 0, "{}: model.vocab is missing or empty", path);
  bool raw_bytes = false;
  if (root.has("pre_tokenizer")) {
    const Component part = root.object("pre_tokenizer");
    // Fallback would write the byte alphabet's characters in bytes, so it needs to see them.
    raw_bytes = is_bpe && ends_with_byte_level(part) && !model_part.boolean("byte_fallback", false);
    pretokenizer =
        parse_pretokenizer(part, raw_bytes ? LastByteLevel::kRaw : LastByteLevel::kMapped);
  }
  if (is_bpe) {
    model = std::make_unique<Bpe>(vocabulary, json.merges, parse_bpe_options(model_part, raw_bytes),
                                  path);
  } else {
    model = std::make_unique<WordPiece>(vocabulary, model_part);
  }
}

void Tokenizer::Impl::read_added_tokens(const Component& root, const TokenizerConfig& config) {
  for (const Component& token : root.objects("added_tokens")) {
    added.add(parse_added_token(token, vocabulary));
  }
  // Special tokens that only the configuration names are special all the same.
  for (const std::string& content : config.special_tokens) {
    if (const int32_t id = vocabulary.find(content); id >= 0) {
      added.add({.content = content, .id = id, .special = true});
    }
  }
  added.prepare(normalizer.get());
}

void Tokenizer::Impl::read_frame(const Component& root, const TokenizerConfig& config) {
  if (root.has("post_processor")) {
    frame = parse_post_processor(root.object("post_processor"), id_bound());
  }
  const auto override_with = [&](std::vector<int32_t>& ids, const std::optional<bool>& wanted,
                                 const std::optional<std::string>& token, const char* name) {
    if (!wanted) {
      return;
    }
    ids.clear();
    if (*wanted) {
      const std::optional<int32_t> id = token ? find(*token) : std::nullopt;
      check(id.has_value(), "{}: add_{}_token is true, but the {}_token \"{}\" is not in {}",
            config.path, name, name, token.value_or(""), path);
      ids.push_back(*id);
    }
  };
  override_with(frame.before, config.add_bos, config.bos, "bos");
  override_with(frame.behind, config.add_eos, config.eos, "eos");
}

std::optional<int32_t> Tokenizer::Impl::find(const std::string& token) const {
  if (const AddedToken* found = added.find(token)) {
    return found->id;
  }
  const int32_t id = vocabulary.find(token);
  return id >= 0 ? std::optional(id) : std::nullopt;
}

std::optional<std::string_view> Tokenizer::Impl::text(int32_t id) const {
  if (const AddedToken* found = added.find(id)) {
    return found->content;
  }
  return vocabulary.has(id) ? std::optional(vocabulary.text(id)) : std::nullopt;
}

void Tokenizer::Impl::encode(std::string_view text, std::vector<int32_t>& ids) const {
  std::unique_ptr<WordCache> cache = caches.take();
  std::vector<Segment> raw;
  std::vector<Segment> inner;
  added.split(text, AddedTokens::Pass::kRaw, raw);
  for (const Segment& segment : raw) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    std::string_view part = text.substr(segment.begin, segment.end - segment.begin);
    const bool at_start =
        segment.begin == 0 && (normalizer == nullptr || !normalizer->drops_start(part));
    std::string normalized;
    if (normalizer != nullptr && !normalizer->keeps(part)) {
      normalized = normalizer->apply(part);
      part = normalized;
    }
    inner.clear();
    added.split(part, AddedTokens::Pass::kNormalized, inner);
    for (const Segment& piece : inner) {
      if (piece.id >= 0) {
        ids.push_back(piece.id);
      } else {
        encode_words(part.substr(piece.begin, piece.end - piece.begin),
                     at_start && piece.begin == 0, *cache, ids);
      }
    }
  }
  caches.give_back(std::move(cache));
}

void Tokenizer::Impl::encode_words(std::string_view text, bool at_start, WordCache& cache,
                                   std::vector<int32_t>& ids) const {
  if (pretokenizer == nullptr) {
    model->encode(text, cache, ids);
    return;
  }
  Pieces words;
  pretokenizer->apply({text, at_start}, words);
  for (const Piece& word : words.list) {
    model->encode(word.text, cache, ids);
  }
}

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer Tokenizer::from_folder(const std::filesystem::path& model_folder) {
  const auto path = model_folder / "tokenizer.json";
  check(std::filesystem::exists(path),
        "{}: no tokenizer.json in this folder; convert the model's "
        "tokenizer to it (transformers: save_pretrained of the fast tokenizer)",
        model_folder.string());
  return Tokenizer(
      std::make_shared<const Impl>(read_tokenizer_json(path), read_tokenizer_config(model_folder)));
}

Tokenizer Tokenizer::from_file(const std::filesystem::path& tokenizer_json) {
  return Tokenizer(
      std::make_shared<const Impl>(read_tokenizer_json(tokenizer_json), TokenizerConfig{}));
}

Tokenizer Tokenizer::from_json(std::string_view text, std::string name) {
  return Tokenizer(
      std::make_shared<const Impl>(parse_tokenizer_json(text, std::move(name)), TokenizerConfig{}));
}

std::vector<int32_t> Tokenizer::encode(std::string_view utf8, bool add_special_tokens) const {
  const size_t bad = unicode::find_invalid_utf8(utf8);
  check(bad == utf8.size(), "tokenizer: the text is not UTF-8 at byte {} of {}", bad, utf8.size());
  std::vector<int32_t> ids;
  ids.reserve(utf8.size() / 4 + 8);
  if (add_special_tokens) {
    ids = impl_->frame.before;
  }
  impl_->encode(utf8, ids);
  if (add_special_tokens) {
    ids.insert(ids.end(), impl_->frame.behind.begin(), impl_->frame.behind.end());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  DecodeRun run = impl_->detokenizer.start();
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::optional<std::string_view> token = impl_->text(ids[i]);
    check(token.has_value(), "tokenizer: ids[{}] is {}, which is no token; {} has ids 0 to {}", i,
          ids[i], impl_->path, vocab_size() - 1);
    if (!skip_special_tokens || !is_special(ids[i])) {
      run.push(*token);
    }
  }
  run.end();
  return run.take();
}

int32_t Tokenizer::vocab_size() const {
  return impl_->id_bound();
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  return impl_->find(std::string(token));
}

std::string Tokenizer::id_to_token(int32_t id) const {
  const std::optional<std::string_view> token = impl_->text(id);
  check(token.has_value(), "tokenizer: {} is no token; {} has ids 0 to {}", id, impl_->path,
        vocab_size() - 1);
  return std::string(*token);
}

std::optional<int32_t> Tokenizer::bos_id() const {
  return impl_->bos;
}

std::optional<int32_t> Tokenizer::eos_id() const {
  return impl_->eos;
}

bool Tokenizer::is_special(int32_t id) const {
  const AddedToken* token = impl_->added.find(id);
  return token != nullptr && token->special;
}

const std::string& Tokenizer::chat_template() const {
  return impl_->chat_template;
}

struct StreamingDecoder::State {
  Tokenizer tokenizer;
  bool skip_special_tokens;
  DecodeRun run;
};

StreamingDecoder::StreamingDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : state_(std::make_unique<State>(
          State{tokenizer, skip_special_tokens, tokenizer.impl_->detokenizer.start()})) {}

StreamingDecoder::~StreamingDecoder() = default;
StreamingDecoder::StreamingDecoder(StreamingDecoder&&) noexcept = default;
StreamingDecoder& StreamingDecoder::operator=(StreamingDecoder&&) noexcept = default;

std::string StreamingDecoder::push(int32_t id) {
  const std::optional<std::string_view> token = state_->tokenizer.impl_->text(id);
  if (token && !(state_->skip_special_tokens && state_->tokenizer.is_special(id))) {
    state_->run.push(*token);
  }
  return state_->run.take();
}

std::string StreamingDecoder::finish() {
  state_->run.end();
  return state_->run.take();
}

}  // namespace wick
