// Adapters written here load in PEFT itself, whole, and give the same logits there. Runs where
// the Python of support/python.h has torch and peft: ./run peft sees to it.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/support/golden.h"
#include "tests/support/host_tensor.h"
#include "tests/support/python.h"
#include "tests/support/test_data.h"
#include "wick/backend/registry.h"
#include "wick/io/npy.h"
#include "wick/io/weight_source.h"
#include "wick/lora/attach.h"
#include "wick/lora/peft_io.h"
#include "wick/models/decoder.h"

namespace wick {
namespace {

// One of each kind of config that is written.
AdapterConfig config_of(const std::string& family) {
  AdapterConfig config;
  config.rank = 4;
  config.alpha = 8;
  config.target_modules = ModuleSelection::all_linear();
  config.base_model_name_or_path = "some/base";
  if (family == "llama2") {
    config.target_modules = ModuleSelection::parse("q_proj,v_proj,lm_head");
  } else if (family == "mistral") {
    config.use_rslora = true;
    config.rank_pattern = {{"layers.0.mlp.down_proj", 6}, {"down_proj", 3}};
    config.alpha_pattern = {{"self_attn\\.[qk]_proj", 2.5}};
  } else if (family == "qwen2") {
    config.target_modules = {ModuleSelection::Kind::expression, {}, ".*\\.(up|down)_proj"};
    config.dropout = 0.1;
  } else if (family == "qwen3") {
    config.layers_to_transform = {1};
    config.exclude_modules.names = {"v_proj"};
  }
  return config;
}

// Writes an adapter with random factors and its logits; gives what check_peft.py is to be told.
std::string write_case(const std::string& family, const std::filesystem::path& folder) {
  const auto backend = make_backend("cpu", {.threads = 2});
  const std::filesystem::path model = test::golden_folder(family);
  Decoder decoder(*backend, parse_model_config(model / "config.json"), *open_weights(model));
  const AttachedAdapter attached = attach_new(*backend, decoder.linears(), config_of(family), 1);
  uint64_t stream = 0;
  for (const LinearLayer* layer : attached.layers) {
    const Tensor& b = layer->lora->b.value;
    backend->copy(test::to_device(*backend, test::draw(b.elements(), ++stream, 0.3F), b.shape()),
                  b);
  }
  write_peft(folder / family, attached.to_adapter(*backend));

  const std::vector<std::vector<int32_t>> ids = {
      test::golden_ids(SafetensorsFile(model / "golden.safetensors"), "ids.0")};
  const Var hidden = decoder.hidden(nullptr, make_token_batch(*backend, ids), {});
  const Tensor logits = decoder.logits(hidden.value);
  const std::filesystem::path npy = folder / (family + ".npy");
  write_npy(npy, logits.shape(), test::to_host(*backend, logits));
  std::string list;
  for (const int32_t id : ids[0]) {
    list += (list.empty() ? "" : ",") + std::to_string(id);
  }
  return " '" + model.string() + "' '" + (folder / family).string() + "' '" + npy.string() + "' " +
         list;
}

TEST(LoraPython, AdaptersWrittenHereWorkInPeft) {
  if (!test::python_has("torch, transformers, peft")) {
    GTEST_SKIP() << test::python()
                 << " lacks one of torch, transformers, peft: ./run peft installs them";
  }
  const test::TemporaryFolder folder;
  std::string command = test::python() + " '" WICK_SOURCE_DIR "/tools/check_peft.py'";
  for (const std::string& family : test::kGoldenFamilies) {
    command += write_case(family, folder.path());
  }
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace wick
