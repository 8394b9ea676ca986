// The decoder of a tokenizer.json: tokens back to text, one token at a time.
//
// Each step takes tokens and gives tokens to the next; what cannot be decided yet (bytes that may
// still become a character, a run of byte tokens) is held back by the step. Decoding a whole list
// runs the same steps, so it gives what streaming gives by construction.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace wick {

class Component;

class DecodeStep {
 public:
  virtual ~DecodeStep() = default;
  virtual void push(std::string_view token) = 0;
  // No more tokens: gives out what is held back, and ends the next step.
  virtual void end() = 0;

  void set_next(DecodeStep* next) { next_ = next; }

 protected:
  DecodeStep& next() { return *next_; }

 private:
  DecodeStep* next_ = nullptr;
};

// A run of the steps over one list of tokens.
class DecodeRun {
 public:
  explicit DecodeRun(std::vector<std::unique_ptr<DecodeStep>> steps);

  void push(std::string_view token) { steps_.front()->push(token); }
  void end() { steps_.front()->end(); }
  // The text that is decided since the last call.
  std::string take();

 private:
  std::vector<std::unique_ptr<DecodeStep>> steps_;
  std::unique_ptr<std::string> text_;
};

// Immutable: the recipe by which runs are made.
class Detokenizer {
 public:
  // Without a decoder, tokens are joined by spaces.
  Detokenizer();
  explicit Detokenizer(const Component& component);

  DecodeRun start() const;

 private:
  using MakeStep = std::function<std::unique_ptr<DecodeStep>()>;
  // A fused step makes one token of all, in parts; what comes behind it sees parts of one token.
  void add(const Component& component, bool& fused);

  std::vector<MakeStep> steps_;
};

}  // namespace wick
