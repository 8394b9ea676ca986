// Merging by one product on the back end.
#include "wick/lora/merge.h"

#include <span>
#include <vector>

#include "wick/base/error.h"

namespace wick {

void merge_into(Backend& backend, LinearLayer& layer, DType stored) {
  if (!layer.lora) {
    return;
  }
  const LoraSlot& lora = *layer.lora;
  check(lora.b.value.dtype() == DType::f32,
        "{}: its adapter was rounded to {} for inference; attach it anew to merge it", layer.name,
        name_of(lora.b.value.dtype()));
  std::vector<float> b(static_cast<size_t>(lora.b.value.elements()));
  backend.download(lora.b.value, std::as_writable_bytes(std::span(b)));
  for (float& value : b) {
    value *= lora.scaling;
  }
  const Tensor scaled = backend.allocate(lora.b.value.shape(), DType::f32);
  backend.upload(std::as_bytes(std::span(b)), scaled);

  const Tensor sum = backend.allocate(layer.weight.value.shape(), DType::f32);
  backend.cast(layer.weight.value, sum);
  backend.matmul(scaled, lora.a.value, {.form = MatmulForm::nn, .accumulate = true}, sum);
  if (stored == DType::f32) {
    layer.weight.value = sum;
  } else {
    layer.weight.value = backend.allocate(sum.shape(), stored);
    backend.cast(sum, layer.weight.value);
  }
  layer.lora.reset();
}

}  // namespace wick
