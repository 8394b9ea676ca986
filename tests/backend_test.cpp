// Memory and dense products of every back end against the scalar reference.
#include "wick/core/backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "tests/reference/matmul.h"
#include "tests/support/conformance.h"
#include "tests/support/message_of.h"
#include "wick/backend/cpu/huge_page_arena.h"
#include "wick/backend/cpu/memory.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"

namespace wick {
namespace {

using test::Conformance;
using test::poisoned;
using test::upload;
using test::Values;

INSTANTIATE_TEST_SUITE_P(, Conformance, ::testing::ValuesIn(test::conformance_cases()),
                         test::name_of_case);

constexpr std::array kWeightTypes = {DType::f32, DType::bf16, DType::f16};

TEST(Registry, AnUnknownDeviceIsNamed) {
  try {
    make_backend("tpu");
    FAIL();
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("unknown device \"tpu\": this build has cpu"))
        << error.what();
  }
}

TEST(Registry, AGpuIsNamedByItsNumber) {
  for (const char* device : {"cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999"}) {
    const std::string message = test::message_of([&] { make_backend(device); });
    EXPECT_TRUE(message.starts_with(fmt::format("unknown device \"{}\": ", device))) << message;
  }
}

TEST_P(Conformance, MemoryIsCountedAndGivenBack) {
  Backend& backend = *backends_[0];
  const size_t before = backend.memory().in_use_bytes;
  {
    const Tensor a = backend.allocate({1000, 100}, DType::f32);
    const Tensor b = backend.allocate({1000, 100}, DType::bf16);
    EXPECT_GE(backend.memory().in_use_bytes, before + 600000);
  }
  EXPECT_EQ(backend.memory().in_use_bytes, before);
  EXPECT_GE(backend.memory().peak_bytes, before + 600000);
  backend.reset_peak_memory();
  EXPECT_EQ(backend.memory().peak_bytes, before);
}

TEST_P(Conformance, AnAbsurdSizeIsAnErrorThatSaysHowMuch) {
  try {
    backends_[0]->allocate({int64_t{1} << 20, int64_t{1} << 24}, DType::f32);
    FAIL();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("out of memory: 67108864.0 MiB asked for, "), std::string::npos)
        << message;
    EXPECT_NE(message.find(" MiB free"), std::string::npos) << message;
  }
  const int64_t huge = int64_t{1} << 40;
  EXPECT_THROW(backends_[0]->allocate({huge, huge}, DType::f32), Error);
}

TEST(CpuMemory, LargeTensorsBeginAtAPage) {
  // Loops over several arrays are slow where the addresses differ little in their last 12 bits.
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  for (const int64_t count : {16 << 10, (16 << 10) + 1, 256 << 10, 2 << 20}) {
    const Tensor first = backend->allocate({count}, DType::f32);
    const Tensor second = backend->allocate({count}, DType::f32);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first.address()) % 4096, 0U);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(second.address()) % 4096, 0U);
  }
}

TEST(CpuMemory, ScratchOfChangingSizesComesFromOneBlock) {
  // A block that was freed after each use came back from the system page by page: a call of 84 us
  // took 300 once others had left blocks of other sizes.
  cpu::BlockCache cache(cpu::BlockCache::Fit::any);
  const auto taken_once = [&](size_t bytes) {
    const cpu::Block block = cache.take(bytes);
    cache.give_back(block);
    return block.address;
  };
  taken_once(100000);
  taken_once(200000);
  const void* largest = taken_once(400000);
  for (const size_t bytes : {400000, 100000, 400000, 200000, 1000}) {
    EXPECT_EQ(taken_once(bytes), largest) << bytes;
  }
  EXPECT_EQ(cache.use().in_use_bytes, 0U);
}

TEST(CpuMemory, TensorsAreNotMuchSmallerThanTheirBlocks) {
  cpu::BlockCache cache;
  const cpu::Block large = cache.take(400000);
  cache.give_back(large);
  const cpu::Block small = cache.take(100000);
  EXPECT_LT(small.bytes, 150000U);
  EXPECT_NE(small.address, large.address);
  cache.give_back(small);
}

TEST(CpuMemory, BlocksThatShareHugePagesAreApartAndGoBackToTheSystem) {
  constexpr size_t kBytes = size_t{1} << 20;
  constexpr size_t kBlocks = cpu::HugePageArena::kRegionBytes / kBytes + 3;  // more than a region
  cpu::HugePageArena arena;
  std::vector<std::byte*> blocks;
  for (size_t i = 0; i < kBlocks; ++i) {
    blocks.push_back(static_cast<std::byte*>(arena.take(kBytes)));
    ASSERT_NE(blocks.back(), nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(blocks.back()) % 4096, 0U);
    std::fill_n(blocks.back(), kBytes, static_cast<std::byte>(i + 1));
  }
  for (size_t i = 0; i < kBlocks; ++i) {
    const auto is_own = [&](std::byte value) { return value == static_cast<std::byte>(i + 1); };
    EXPECT_TRUE(std::all_of(blocks[i], blocks[i] + kBytes, is_own)) << i;
  }
  arena.give_back(blocks[1], kBytes);
  EXPECT_NE(arena.take(2 * kBytes), blocks[1]);
  EXPECT_EQ(arena.take(kBytes), blocks[1]);
  // Fresh pages of the system, so the old ones were not kept.
  EXPECT_TRUE(std::all_of(blocks[1], blocks[1] + kBytes,
                          [](std::byte value) { return value == std::byte{0}; }));
}

TEST_P(Conformance, TensorsOutliveTheirBackend) {
  const Tensor survivor = backends_[0]->allocate({100}, DType::f32);
  backends_[0].reset();
}

TEST_P(Conformance, AdoptedBytesAreReadWhateverTheirAlignment) {
  for (const DType dtype : kWeightTypes) {
    const Values wanted = random(12, dtype);
    for (const size_t offset : {0, 1, 2, 3, 4}) {
      Backend& backend = *backends_[0];
      const Tensor source = upload(backend, wanted, {3, 4}, dtype);
      auto file = std::make_shared<std::vector<std::byte>>(offset + source.bytes());
      backend.download(source, std::span(*file).subspan(offset));
      const Tensor adopted = backend.adopt(std::span(*file).subspan(offset), file, {3, 4}, dtype);
      file.reset();
      const Tensor copied = poisoned(backend, {3, 4}, dtype);
      backend.copy(adopted, copied);
      EXPECT_EQ(test::download(backend, copied), wanted);
      const Tensor wide = poisoned(backend, {3, 4});
      backend.cast(adopted, wide);
      EXPECT_EQ(test::download(backend, wide), wanted);
    }
  }
}

TEST(CpuMemory, AdoptedBytesAreCopiedWhereTheyAreReadOftenAndThereIsRoom) {
  // Several pieces of the copy and a part of one.
  const auto file = std::make_shared<std::vector<float>>((9 << 20) / sizeof(float) + 5);
  std::iota(file->begin(), file->end(), 1.0F);
  const Shape shape{static_cast<int64_t>(file->size())};
  for (const bool copy : {false, true}) {
    const auto backend = make_backend("cpu", {.copy_adopted = copy});
    const Tensor adopted = backend->adopt(std::as_bytes(std::span(*file)), file, shape, DType::f32);
    EXPECT_EQ(adopted.address() != file->data(), copy);
    EXPECT_EQ(std::memcmp(adopted.address(), file->data(), adopted.bytes()), 0);
  }
}

struct MatmulShape {
  int64_t M, N, K;
};

// Beside odd sizes: more than one block of depth, more rows than are packed at a time, and several
// blocks of a library's product.
constexpr std::array<MatmulShape, 12> kMatmulShapes = {{{0, 5, 3},
                                                        {4, 0, 3},
                                                        {3, 5, 0},
                                                        {1, 1, 1},
                                                        {1, 131, 67},
                                                        {3, 37, 1031},
                                                        {7, 64, 16},
                                                        {17, 97, 53},
                                                        {131, 67, 96},
                                                        {29, 131, 1031},
                                                        {270, 290, 33},
                                                        {7950, 12, 3}}};

// oneDNN would start a team of threads of its own, beside the pool's and spinning.
TEST(CpuMatmul, ProductsByTheLibraryStartNoThreads) {
  const std::filesystem::path tasks = "/proc/self/task";
  if (!std::filesystem::exists(tasks)) {
    GTEST_SKIP() << "counts the threads in /proc";
  }
  const auto threads = [&] {
    return std::distance(std::filesystem::directory_iterator(tasks), {});
  };
  const auto backend = make_backend("cpu", {1});
  const Tensor a = upload(*backend, Values(size_t{256} * 256, 1.0), {256, 256});
  const Tensor c = poisoned(*backend, {256, 256});
  const auto before = threads();
  for (const MatmulForm form : {MatmulForm::nn, MatmulForm::tn}) {
    backend->matmul(a, a, {form}, c);
    EXPECT_EQ(test::download(*backend, c)[0], 256.0);
  }
  const auto medium =
      make_backend("cpu", {.threads = 1, .matmul_precision = MatmulPrecision::medium});
  const Tensor b = upload(*medium, Values(size_t{256} * 256, 1.0), {256, 256}, DType::bf16);
  for (const MatmulForm form : {MatmulForm::nt, MatmulForm::nn}) {
    medium->matmul(a, b, {form}, c);
    EXPECT_EQ(test::download(*medium, c)[0], 256.0);
  }
  EXPECT_EQ(threads(), before);
}

TEST_P(Conformance, Matmul) {
  for (const auto [M, N, K] : kMatmulShapes) {
    for (const MatmulForm form : {MatmulForm::nt, MatmulForm::nn, MatmulForm::tn}) {
      for (const DType dtype : kWeightTypes) {
        for (const int mode : {0, 1, 2}) {  // plain; bias; accumulate and bias
          SCOPED_TRACE(fmt::format("M {} N {} K {} form {} {} mode {}", M, N, K,
                                   static_cast<int>(form), name_of(dtype), mode));
          const DType type = activations();
          const Values a = random(M * K, type);
          const Values b = random(K * N, dtype);
          const Values bias = random(N, dtype);
          const Values before = random(M * N, type);
          Values expected = before;
          reference::matmul(a.data(), b.data(), mode > 0 ? bias.data() : nullptr, form, mode == 2,
                            {M, N, K}, expected.data());
          const Shape a_shape = form == MatmulForm::tn ? Shape{K, M} : Shape{M, K};
          const Shape b_shape = form == MatmulForm::nt ? Shape{N, K} : Shape{K, N};
          expect_outputs(
              [&](Backend& backend) {
                const Tensor c = mode == 2 ? upload(backend, before, {M, N}, type)
                                           : poisoned(backend, {M, N}, type);
                const Tensor wide =
                    mode == 2 ? upload(backend, before, {M, N}) : poisoned(backend, {M, N});
                const Tensor device_bias = upload(backend, bias, {N}, dtype);
                MatmulArgs args{.form = form, .accumulate = mode == 2};
                args.bias = mode > 0 ? &device_bias : nullptr;
                const Tensor device_a = upload(backend, a, a_shape, type);
                const Tensor device_b = upload(backend, b, b_shape, dtype);
                backend.matmul(device_a, device_b, args, c);
                backend.matmul(device_a, device_b, args, wide);
                return std::vector{c, wide};
              },
              {expected, expected});
        }
      }
    }
  }
}

TEST_P(Conformance, AddColumnSums) {
  for (const auto& [T, N] : {std::pair<int64_t, int64_t>{0, 3}, {1, 1}, {13, 67}, {70, 301}}) {
    const Values x = random(T * N, activations());
    const Values before = random(N);
    Values expected = before;
    reference::add_column_sums(x.data(), T, N, expected.data());
    expect_outputs(
        [&, t = T, n = N](Backend& backend) {
          const Tensor out = upload(backend, before, {n});
          backend.add_column_sums(upload(backend, x, {t, n}, activations()), out);
          return std::vector{out};
        },
        {expected});
  }
}

}  // namespace
}  // namespace wick
