// Runs a recipe once.
#include "wick/autograd/recompute.h"

namespace wick {

const Tensor& Recipe::get() {
  if (rebuild_) {
    result_ = rebuild_();
    rebuild_ = nullptr;
  }
  return result_;
}

}  // namespace wick
