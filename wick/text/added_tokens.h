// Added tokens: strings such as "<|im_end|>" that are cut out of a text before anything else sees
// it, and are one id each.
//
// There are two passes: tokens that are not `normalized` are sought in the text as it came, the
// others in the normalised text between those. At each place the longest wins.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace wick {

class Component;
class Normalizer;
class Vocabulary;

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;      // left out by `skip_special_tokens`
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = false;   // sought in the normalised text
};

// Part of a text: an added token, or what lies between (id -1).
struct Segment {
  size_t begin;
  size_t end;
  int32_t id;
};

class AddedTokens {
 public:
  enum class Pass { kRaw, kNormalized };

  // A token that is there already, or is empty, is left out.
  void add(AddedToken token);
  // Prepares `split`; to be called once, behind the last `add`.
  void prepare(const Normalizer* normalizer);

  bool empty(Pass pass) const { return matcher(pass).nodes.empty(); }
  // Appends the segments of the text, in order.
  void split(std::string_view text, Pass pass, std::vector<Segment>& out) const;

  const AddedToken* find(int32_t id) const;
  const AddedToken* find(const std::string& content) const;
  // One more than the largest id; 0 if there are none.
  int32_t id_bound() const { return id_bound_; }

 private:
  // A trie over bytes: the children of a node are a linked list.
  struct Node {
    int32_t child = -1;
    int32_t sibling = -1;
    int32_t token = -1;  // index into tokens_
    uint8_t byte = 0;
  };
  struct Matcher {
    std::vector<Node> nodes;  // nodes[0] is the root
    bool begins[256] = {};
  };
  struct Match {
    size_t end;
    int32_t token;
  };

  const Matcher& matcher(Pass pass) const { return pass == Pass::kRaw ? raw_ : normalized_; }
  static void insert(Matcher& matcher, std::string_view text, int32_t token);
  static Match longest_match(const Matcher& matcher, std::string_view text, size_t begin);

  std::vector<AddedToken> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  std::unordered_map<std::string, size_t> by_content_;
  Matcher raw_;
  Matcher normalized_;
  int32_t id_bound_ = 0;
};

// Where the model's vocabulary has the token under another id, that id holds.
AddedToken parse_added_token(const Component& component, const Vocabulary& vocabulary);

}  // namespace wick
