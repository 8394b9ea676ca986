// Uses the installed library as an outsider would: a back end, a product, a tokenizer, an error.
#include <array>
#include <cstdio>
#include <filesystem>
#include <span>

#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/text/tokenizer.h"

namespace {

// x W^T of [1, 2] and [1, 2] by the back end; 1 * 3 + 2 * 4 = 11.
float product(wick::Backend& backend) {
  const std::array<float, 2> x = {1.0F, 2.0F};
  const std::array<float, 2> w = {3.0F, 4.0F};
  const wick::Tensor a = backend.allocate({1, 2}, wick::DType::f32);
  const wick::Tensor b = backend.allocate({1, 2}, wick::DType::f32);
  const wick::Tensor c = backend.allocate({1, 1}, wick::DType::f32);
  backend.upload(std::as_bytes(std::span(x)), a);
  backend.upload(std::as_bytes(std::span(w)), b);
  backend.matmul(a, b, {}, c);
  float result = 0.0F;
  backend.download(c, std::as_writable_bytes(std::span(&result, 1)));
  return result;
}

bool absent_tokenizer_is_an_error() {
  try {
    wick::Tokenizer::from_folder("no/such/folder");
  } catch (const wick::Error&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  const auto backend = wick::make_backend("cpu");
  const bool good = product(*backend) == 11.0F && absent_tokenizer_is_an_error();
  std::puts(good ? "wick is installed and works" : "wick gave a wrong answer");
  return good ? 0 : 1;
}
