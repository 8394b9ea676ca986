// What a backward step keeps of its forward inputs: the tensor itself, or the recipe that rebuilds
// it.
//
// A recipe is shared by all that keep the same value: it runs once, at the first `get`, and its
// result lives until the last keeper is dropped. The recipe holds only inputs that are kept
// anyway, so a normed input or a gated activation costs no memory between forward and backward.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "wick/core/tensor.h"

namespace wick {

class Recipe {
 public:
  explicit Recipe(std::function<Tensor()> rebuild) : rebuild_(std::move(rebuild)) {}
  const Tensor& get();

 private:
  std::function<Tensor()> rebuild_;  // dropped, with what it holds, once it has run
  Tensor result_;
};

class Kept {
 public:
  Kept() = default;
  Kept(Tensor value, std::shared_ptr<Recipe> recipe)
      : value_(recipe ? Tensor() : std::move(value)), recipe_(std::move(recipe)) {}
  const Tensor& get() const { return recipe_ ? recipe_->get() : value_; }

 private:
  Tensor value_;
  std::shared_ptr<Recipe> recipe_;
};

}  // namespace wick
