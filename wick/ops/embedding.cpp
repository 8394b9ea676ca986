// Gather forward, scatter-add backward.
#include "wick/ops/embedding.h"

#include "wick/base/error.h"
#include "wick/core/shape_format.h"

namespace wick {

Var embedding(Backend& backend, Tape* tape, const Parameter& table, const Tensor& ids,
              DType dtype) {
  check(table.value.shape().rank() == 2, "embedding: table {} must have two dimensions, not {}",
        table.name, table.value.shape());
  check(ids.dtype() == DType::i32, "embedding: ids must be i32, not {}", name_of(ids.dtype()));
  Tensor y = backend.allocate({ids.elements(), table.value.dim(1)}, dtype);
  backend.gather_rows(table.value, ids, y);
  if (tape == nullptr || !table.trainable()) {
    return {std::move(y)};
  }
  return tape->record(std::move(y), [&backend, ids, grad = table.grad](const Tensor& dy) {
    backend.scatter_add_rows(dy, ids, grad);
  });
}

}  // namespace wick
