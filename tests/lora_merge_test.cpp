// Merged model folders give what base and adapter give together; `wick merge` writes them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "tests/support/golden.h"
#include "tests/support/host_tensor.h"
#include "tests/support/program.h"
#include "tests/support/test_data.h"
#include "wick/backend/registry.h"
#include "wick/lora/attach.h"
#include "wick/lora/merge.h"
#include "wick/lora/peft_io.h"
#include "wick/models/bundle.h"

namespace wick {
namespace {

namespace fs = std::filesystem;
using test::golden_folder;
using test::relative_difference;

std::vector<float> logits_of(Backend& backend, Decoder& decoder, const std::vector<int32_t>& ids) {
  const std::vector<std::vector<int32_t>> sequences = {ids};
  const Var hidden = decoder.hidden(nullptr, make_token_batch(backend, sequences), {});
  return test::to_host(backend, decoder.logits(hidden.value));
}

std::vector<int32_t> greedy(Backend& backend, Decoder& decoder, int tokens) {
  std::vector<int32_t> ids = {5, 17, 3};
  for (int i = 0; i < tokens; ++i) {
    const std::vector<float> logits = logits_of(backend, decoder, ids);
    const auto last = logits.end() - decoder.config().vocab_size;
    ids.push_back(static_cast<int32_t>(std::max_element(last, logits.end()) - last));
  }
  return ids;
}

class MergeProgram : public testing::TestWithParam<std::string> {};

TEST_P(MergeProgram, TheMergedModelSpeaksAsTheAdaptedOne) {
  const fs::path model = golden_folder(GetParam());
  const fs::path adapter = model / "adapter";
  const test::TemporaryFolder folder;
  const fs::path merged = folder.path() / "merged";
  const std::string command = test::wick_program() + " merge --model '" + model.string() +
                              "' --adapter '" + adapter.string() + "' --output '" +
                              merged.string() + "'";
  const auto run = [](const std::string& line) { return std::system(line.c_str()); };
  ASSERT_EQ(run(command + " --dtype f32 2>/dev/null"), 0);

  const auto backend = make_backend("cpu", {.threads = 2});
  const auto adapted = open_decoder(*backend, model);
  const AttachedAdapter attached =
      attach(*backend, adapted->linears(), read_peft(adapter), Trainable::no);
  const auto reopened = open_decoder(*backend, merged);
  EXPECT_EQ(greedy(*backend, *reopened, 40), greedy(*backend, *adapted, 40));

  EXPECT_NE(run(command + " 2>/dev/null"), 0);  // a model is not replaced unasked
  EXPECT_EQ(run(command + " --overwrite --dtype bf16 2>/dev/null"), 0);
  EXPECT_EQ(open_decoder(*backend, merged)->linears()[0]->weight.value.dtype(), DType::bf16);
}

INSTANTIATE_TEST_SUITE_P(Families, MergeProgram, testing::ValuesIn(test::kGoldenFamilies),
                         [](const auto& which) { return which.param; });

TEST(Merge, AnAdaptedHeadIsUntiedFromTheEmbedding) {
  const auto backend = make_backend("cpu", {.threads = 2});
  const fs::path model = golden_folder("llama2");
  const auto decoder = open_decoder(*backend, model);
  ASSERT_TRUE(decoder->tied());
  AdapterConfig config;
  config.target_modules = ModuleSelection::parse("lm_head");
  const AttachedAdapter attached = attach_new(*backend, decoder->linears(), config, 1);
  LinearLayer& head = *attached.layers.at(0);
  const Tensor& b = head.lora->b.value;
  backend->copy(test::to_device(*backend, test::draw(b.elements(), 1), b.shape()), b);
  const std::vector<int32_t> ids = {3, 1, 4, 1, 5};
  const std::vector<float> expected = logits_of(*backend, *decoder, ids);

  merge_into(*backend, head, DType::f32);
  const test::TemporaryFolder folder;
  save_model_folder(folder.path() / "merged", model, *decoder);
  const auto reopened = open_decoder(*backend, folder.path() / "merged");
  EXPECT_FALSE(reopened->tied());
  EXPECT_LT(relative_difference(logits_of(*backend, *reopened, ids), expected), 1e-5);
}

}  // namespace
}  // namespace wick
