// What the CUDA back end promises beyond the seam. The first tests need no device.
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tests/support/conformance.h"
#include "tests/support/message_of.h"
#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/ranges.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/base/random.h"

namespace wick {
namespace {

using cuda::Ranges;
using test::message_of;

constexpr size_t kUnit = Ranges::kAlignment;

TEST(Ranges, TakesTheSmallestRunThatIsLongEnough) {
  Ranges ranges(100 * kUnit);
  EXPECT_EQ(ranges.take(4 * kUnit), 0);
  EXPECT_EQ(ranges.take(1 * kUnit), 4 * kUnit);
  EXPECT_EQ(ranges.take(2 * kUnit), 5 * kUnit);
  EXPECT_EQ(ranges.take(1 * kUnit), 7 * kUnit);
  ranges.give_back(0, 4 * kUnit);
  ranges.give_back(5 * kUnit, 2 * kUnit);
  EXPECT_EQ(ranges.take(2 * kUnit), 5 * kUnit);
  EXPECT_EQ(ranges.take(3 * kUnit), 0);
  EXPECT_EQ(ranges.take(92 * kUnit), 8 * kUnit);
  EXPECT_EQ(ranges.take(2 * kUnit), std::nullopt);
}

TEST(Ranges, FreeNeighboursJoin) {
  Ranges ranges(3 * kUnit);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(ranges.take(kUnit), i * kUnit);
  }
  EXPECT_EQ(ranges.take(kUnit), std::nullopt);
  ranges.give_back(2 * kUnit, kUnit);
  ranges.give_back(0, kUnit);
  EXPECT_EQ(ranges.take(2 * kUnit), std::nullopt);
  ranges.give_back(kUnit, kUnit);
  EXPECT_TRUE(ranges.empty());
  EXPECT_EQ(ranges.take(3 * kUnit), 0);
}

// Takes and gives back as the seed says, then gives back what is left. Returns where blocks went.
std::vector<size_t> places(Ranges& ranges, uint64_t seed) {
  const Random random(seed, 0);
  std::vector<size_t> all;
  std::map<size_t, size_t> taken;  // bytes by offset
  for (uint64_t i = 0; i < 2000; ++i) {
    if (!taken.empty() && random.below(2 * i, 5) < 2) {
      const auto which = std::next(taken.begin(), random.below(2 * i + 1, taken.size()));
      ranges.give_back(which->first, which->second);
      taken.erase(which);
      continue;
    }
    const size_t bytes = (1 + random.below(2 * i + 1, 40)) * kUnit;
    const std::optional<size_t> offset = ranges.take(bytes);
    EXPECT_TRUE(offset);
    const auto after = taken.lower_bound(*offset);
    EXPECT_TRUE(after == taken.end() || *offset + bytes <= after->first);
    EXPECT_TRUE(after == taken.begin() ||
                std::prev(after)->first + std::prev(after)->second <= *offset);
    taken[*offset] = bytes;
    all.push_back(*offset);
  }
  for (const auto& [offset, bytes] : taken) {
    ranges.give_back(offset, bytes);
  }
  EXPECT_TRUE(ranges.empty());
  return all;
}

TEST(Ranges, TheSameRequestsGoToTheSamePlacesWhateverRanBetween) {
  Ranges ranges(size_t{1} << 30);
  const std::vector<size_t> first = places(ranges, 1);
  EXPECT_NE(places(ranges, 2), first);
  EXPECT_EQ(places(ranges, 1), first);
}

TEST(CudaErrors, ThoseThatEndTheUseOfADeviceAreTold) {
  EXPECT_NO_THROW(cuda::check_cuda(cudaSuccess, "attention"));
  for (const cudaError_t status :
       {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorECCUncorrectable}) {
    EXPECT_THROW(cuda::check_cuda(status, "attention"), DeviceLost);
  }
  EXPECT_EQ(message_of([] { cuda::check_cuda(cudaErrorInvalidValue, "attention"); }),
            "cuda: attention: invalid argument (cudaErrorInvalidValue)");
}

bool has_device() {
  return backend_names().back() == "cuda";
}

TEST(CudaDevice, ItsAbsenceIsAnErrorThatSaysWhy) {
  if (has_device()) {
    GTEST_SKIP() << "there is a CUDA device";
  }
  for (const char* device : {"cuda", "cuda:1"}) {
    const std::string message = message_of([&] { make_backend(device); });
    EXPECT_TRUE(message.starts_with("cuda: no device answers: ")) << message;
  }
  EXPECT_EQ(make_backend("auto")->name(), "cpu");
}

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) {
      GTEST_SKIP() << "no CUDA device answers";
    }
    backend_ = make_backend("cuda");
  }

  // Takes all memory of the device; the message of the error that ends it.
  std::string exhaust(std::vector<Tensor>& taken) {
    return message_of([&] {
      for (;;) {
        taken.push_back(backend_->allocate({int64_t{1} << 28}, DType::f32));  // 1 GiB
      }
    });
  }

  void expect_usable() {
    const Tensor x = test::upload(*backend_, {1, 2, 3}, {3});
    const Tensor y = test::poisoned(*backend_, {3});
    backend_->add(x, x, y);
    EXPECT_EQ(test::download(*backend_, y), (test::Values{2, 4, 6}));
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaTest, AutoTakesIt) {
  EXPECT_EQ(make_backend("auto")->name(), "cuda");
}

TEST_F(CudaTest, DevicesAreNamedAsTheyAreChosen) {
  int gpus = 0;
  for (const DeviceDescription& device : describe_devices()) {
    EXPECT_EQ(make_backend(device.name)->name(), device.name.substr(0, device.name.find(':')));
    gpus += device.name.starts_with("cuda:") ? 1 : 0;
  }
  EXPECT_GT(gpus, 0);
  const std::string wrong = fmt::format("cuda:{}", gpus);
  const std::string message = message_of([&] { make_backend(wrong); });
  EXPECT_TRUE(
      message.starts_with(fmt::format("there is no device {}: this machine has cuda:0 (", wrong)))
      << message;
  make_backend("cuda:0");  // the tests that follow are this thread's too
}

TEST_F(CudaTest, AReadbackHoldsWhatWasThereWhenItWasBegun) {
  const Tensor x = test::upload(*backend_, {1, 2, 3}, {3});
  const std::unique_ptr<Readback> readback = backend_->make_readback(x.bytes());
  for (const float value : {4.0F, 5.0F}) {
    const test::Values before = test::download(*backend_, x);
    readback->begin(x);
    backend_->fill(value, x);
    std::vector<float> host(3);
    readback->take(std::as_writable_bytes(std::span(host)));
    EXPECT_EQ(test::Values(host.begin(), host.end()), before);
  }
}

TEST_F(CudaTest, ReadbacksOfOneTimeKeepApartAndThoseOfAnotherMayFollowInTheirPlace) {
  const Tensor x = backend_->allocate({4}, DType::f32);
  const Tensor y = backend_->allocate({4}, DType::f32);
  for (int round = 0; round < 3; ++round) {
    backend_->fill(static_cast<float>(round), x);
    backend_->fill(static_cast<float>(-round), y);
    const std::unique_ptr<Readback> of_x = backend_->make_readback(x.bytes());
    const std::unique_ptr<Readback> of_y = backend_->make_readback(y.bytes());
    of_x->begin(x);
    of_y->begin(y);
    std::vector<float> xs(4);
    std::vector<float> ys(4);
    of_x->take(std::as_writable_bytes(std::span(xs)));
    of_y->take(std::as_writable_bytes(std::span(ys)));
    EXPECT_EQ(xs, std::vector<float>(4, static_cast<float>(round)));
    EXPECT_EQ(ys, std::vector<float>(4, static_cast<float>(-round)));
  }
}

TEST_F(CudaTest, OutOfMemoryIsAnErrorAndTheBackEndLivesOn) {
  std::vector<Tensor> taken;
  const std::string message = exhaust(taken);
  EXPECT_TRUE(message.starts_with("out of memory: 1024.0 MiB asked for, ")) << message;
  EXPECT_NE(message.find(" MiB in use by tensors; a smaller --batch-tokens"), std::string::npos)
      << message;
  EXPECT_GT(taken.size(), 1);
  taken.clear();
  expect_usable();
}

TEST_F(CudaTest, OutOfMemoryInRecordedWorkIsAnErrorAndTheBackEndLivesOn) {
  const std::unique_ptr<Recorder> recorder = backend_->make_recorder();
  for (const uint64_t key : {1, 1, 2}) {
    std::vector<Tensor> taken;
    EXPECT_THROW(recorder->run(key,
                               [&] {
                                 const std::string message = exhaust(taken);
                                 taken.clear();
                                 fail("{}", message);
                               }),
                 Error);
    expect_usable();
  }
}

TEST_F(CudaTest, MemoryThatIsCachedServesOtherSizes) {
  std::vector<Tensor> taken;
  exhaust(taken);
  const size_t pieces = taken.size();
  taken.clear();
  // As one piece, which fits only if the cache gives its pieces back.
  const auto elements = static_cast<int64_t>(pieces - 1) << 28;
  EXPECT_TRUE(backend_->allocate({elements}, DType::f32));
}

TEST_F(CudaTest, LargeUploadsAndDownloadsArriveWhole) {
  const int64_t count = (int64_t{20} << 20) / 4 + 3;  // more than the ring of staging memory
  std::vector<int32_t> sent(count);
  for (int64_t i = 0; i < count; ++i) {
    sent[i] = static_cast<int32_t>(i * 2654435761);
  }
  const Tensor there = test::upload_ids(*backend_, sent, {count});
  std::vector<int32_t> back(count);
  backend_->download(there, std::as_writable_bytes(std::span(back)));
  EXPECT_EQ(back, sent);
}

TEST_F(CudaTest, UploadsDoNotNeedTheirSourceAfterwards) {
  std::vector<Tensor> there;
  std::vector<int32_t> source(1000);
  for (int32_t round = 0; round < 3000; ++round) {
    std::ranges::fill(source, round);
    there.push_back(test::upload_ids(*backend_, source, {1000}));
  }
  for (size_t round = 0; round < there.size(); ++round) {
    ASSERT_EQ(test::download(*backend_, there[round]),
              test::Values(1000, static_cast<double>(round)));
  }
}

}  // namespace
}  // namespace wick
