// A trie search, and the rules for the white space and words around a match.
#include "wick/text/added_tokens.h"

#include <algorithm>

#include "wick/text/component.h"
#include "wick/text/normalizer.h"
#include "wick/text/unicode.h"
#include "wick/text/vocabulary.h"

namespace wick {

namespace {

size_t begin_of_spaces_before(std::string_view text, size_t end) {
  while (end > 0) {
    const unicode::CodePoint c = unicode::decode_before(text, end);
    if (!unicode::is_space(c.value)) {
      break;
    }
    end -= c.length;
  }
  return end;
}

size_t end_of_spaces_at(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const unicode::CodePoint c = unicode::decode_at(text, begin);
    if (!unicode::is_space(c.value)) {
      break;
    }
    begin += c.length;
  }
  return begin;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  const bool free_before =
      begin == 0 || !unicode::is_word(unicode::decode_before(text, begin).value);
  const bool free_behind =
      end == text.size() || !unicode::is_word(unicode::decode_at(text, end).value);
  return free_before && free_behind;
}

}  // namespace

void AddedTokens::add(AddedToken token) {
  if (token.content.empty() || find(token.content) != nullptr) {
    return;
  }
  id_bound_ = std::max(id_bound_, token.id + 1);
  by_id_[token.id] = tokens_.size();
  by_content_[token.content] = tokens_.size();
  tokens_.push_back(std::move(token));
}

void AddedTokens::prepare(const Normalizer* normalizer) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    const auto index = static_cast<int32_t>(i);
    if (!token.normalized) {
      insert(raw_, token.content, index);
    } else {
      insert(normalized_, normalizer != nullptr ? normalizer->apply(token.content) : token.content,
             index);
    }
  }
}

void AddedTokens::insert(Matcher& matcher, std::string_view text, int32_t token) {
  if (text.empty()) {
    return;
  }
  if (matcher.nodes.empty()) {
    matcher.nodes.emplace_back();
  }
  matcher.begins[static_cast<uint8_t>(text[0])] = true;
  int32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t child = matcher.nodes[node].child;
    while (child >= 0 && matcher.nodes[child].byte != byte) {
      child = matcher.nodes[child].sibling;
    }
    if (child < 0) {
      child = static_cast<int32_t>(matcher.nodes.size());
      matcher.nodes.push_back({-1, matcher.nodes[node].child, -1, byte});
      matcher.nodes[node].child = child;
    }
    node = child;
  }
  if (matcher.nodes[node].token < 0) {
    matcher.nodes[node].token = token;
  }
}

AddedTokens::Match AddedTokens::longest_match(const Matcher& matcher, std::string_view text,
                                              size_t begin) {
  Match best{begin, -1};
  int32_t node = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    int32_t child = matcher.nodes[node].child;
    while (child >= 0 && matcher.nodes[child].byte != byte) {
      child = matcher.nodes[child].sibling;
    }
    if (child < 0) {
      break;
    }
    node = child;
    if (matcher.nodes[node].token >= 0) {
      best = {i + 1, matcher.nodes[node].token};
    }
  }
  return best;
}

void AddedTokens::split(std::string_view text, Pass pass, std::vector<Segment>& out) const {
  const Matcher& sought = matcher(pass);
  size_t done = 0;
  for (size_t i = 0; !sought.nodes.empty() && i < text.size();) {
    if (!sought.begins[static_cast<uint8_t>(text[i])]) {
      ++i;
      continue;
    }
    const Match match = longest_match(sought, text, i);
    if (match.token < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[match.token];
    size_t begin = i;
    size_t end = match.end;
    i = match.end;  // a match that is refused still takes its text
    if (token.single_word && !stands_alone(text, begin, end)) {
      continue;
    }
    if (token.lstrip) {
      begin = std::max(begin_of_spaces_before(text, begin), done);
    }
    if (token.rstrip) {
      end = end_of_spaces_at(text, end);
    }
    if (done < begin) {
      out.push_back({done, begin, -1});
    }
    out.push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) {
    out.push_back({done, text.size(), -1});
  }
}

const AddedToken* AddedTokens::find(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

const AddedToken* AddedTokens::find(const std::string& content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? nullptr : &tokens_[found->second];
}

AddedToken parse_added_token(const Component& component, const Vocabulary& vocabulary) {
  AddedToken token;
  token.content = component.string("content");
  token.id = static_cast<int32_t>(component.integer("id", 0, Vocabulary::kMaxId));
  if (const int32_t id = vocabulary.find(token.content); id >= 0) {
    token.id = id;
  }
  token.special = component.boolean("special", false);
  token.single_word = component.boolean("single_word", false);
  token.lstrip = component.boolean("lstrip", false);
  token.rstrip = component.boolean("rstrip", false);
  token.normalized = component.boolean("normalized", !token.special);
  return token;
}

}  // namespace wick
