// PEFT folders: strict reading, and writing whole or not at all.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "wick/base/file.h"
#include "wick/io/safetensors.h"
#include "wick/lora/peft_io.h"

namespace wick {
namespace {

namespace fs = std::filesystem;
using test::message_of;

constexpr const char* kConfig =
    R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]})";
const std::string kQ = "base_model.model.model.layers.0.self_attn.q_proj";
const std::string kV = "base_model.model.model.layers.0.self_attn.v_proj";

class PeftFolder : public testing::Test {
 protected:
  fs::path path() const { return temporary_.path() / "adapter"; }
  std::string weights_path() const { return (path() / "adapter_model.safetensors").string(); }

  void SetUp() override {
    fs::create_directories(path());
    write_config(kConfig);
    tensors_ = {{kQ + ".lora_A.weight", {2, 3}},
                {kQ + ".lora_B.weight", {5, 2}},
                {kV + ".lora_A.weight", {2, 3}},
                {kV + ".lora_B.weight", {4, 2}}};
  }
  void write_config(std::string_view text) {
    write_text_atomically(path() / "adapter_config.json", text);
  }
  // Each tensor counts up from 1.
  void write_weights(const SafetensorsMetadata& metadata = {}, DType dtype = DType::f32) {
    std::vector<SafetensorsItem> items;
    for (const auto& [name, shape] : tensors_) {
      items.push_back({name, dtype, shape, [dtype](std::span<std::byte> to) {
                         for (size_t i = 0; i < to.size() / size_of(dtype); ++i) {
                           const auto value = static_cast<float>(i + 1);
                           const uint16_t half =
                               dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
                           const void* from = dtype == DType::f32 ? static_cast<const void*>(&value)
                                                                  : static_cast<const void*>(&half);
                           std::memcpy(&to[i * size_of(dtype)], from, size_of(dtype));
                         }
                       }});
    }
    write_safetensors(weights_path(), std::move(items), metadata);
  }
  std::string read_message() {
    return message_of([&] { read_peft(path()); });
  }

  test::TemporaryFolder temporary_;
  std::vector<std::pair<std::string, Shape>> tensors_;
};

TEST_F(PeftFolder, ReadsEveryStorageType) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    write_weights({}, dtype);
    const Adapter adapter = read_peft(path());
    ASSERT_EQ(adapter.entries.size(), 2);
    const AdapterEntry& entry = adapter.entries[0];
    EXPECT_EQ(entry.module, "model.layers.0.self_attn.q_proj");
    EXPECT_EQ(entry.rank, 2);
    EXPECT_EQ(entry.in, 3);
    EXPECT_EQ(entry.out, 5);
    EXPECT_EQ(entry.a, (std::vector<float>{1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(entry.b, (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  }
}

TEST_F(PeftFolder, ThatIsNoneIsNamed) {
  EXPECT_EQ(message_of([] { read_peft("/no/such/adapter"); }),
            "/no/such/adapter: no such folder; an adapter is a folder with adapter_config.json and "
            "adapter_model.safetensors");
  EXPECT_FALSE(holds_adapter("/no/such/adapter"));
  EXPECT_EQ(read_message(),
            path().string() + ": holds no adapter: adapter_model.safetensors is missing");
  EXPECT_TRUE(holds_adapter(path()));
  write_text_atomically(path() / "adapter_model.bin", "pickle");
  EXPECT_EQ(read_message(),
            path().string() +
                ": only adapter_model.bin is there, a pickle file, which can run code and is not "
                "read; save the adapter again with PEFT (save_pretrained writes "
                "adapter_model.safetensors by default)");
  fs::remove(path() / "adapter_config.json");
  EXPECT_EQ(read_message(), path().string() + ": holds no adapter: adapter_config.json is missing");
}

TEST_F(PeftFolder, MissingHalvesAreNamed) {
  tensors_.erase(tensors_.begin() + 1);
  write_weights();
  EXPECT_EQ(read_message(), weights_path() + ": missing tensors, whose other halves are there: " +
                                kQ + ".lora_B.weight; copy the adapter again");
}

TEST_F(PeftFolder, UnexpectedTensorsAreNamed) {
  tensors_.push_back({"base_model.model.lm_head.weight", {4, 3}});
  for (int i = 0; i < 6; ++i) {
    tensors_.push_back({kQ + ".lora_B.bias" + std::to_string(i), {5}});
  }
  write_weights();
  EXPECT_EQ(read_message(),
            weights_path() +
                ": tensors that are no LoRA factors of linear layers: "
                "base_model.model.lm_head.weight, " +
                kQ + ".lora_B.bias0, " + kQ + ".lora_B.bias1, " + kQ + ".lora_B.bias2, " + kQ +
                ".lora_B.bias3, and 2 more; wick reads "
                "\"base_model.model.<module>.lora_A.weight\" and \".lora_B.weight\" only: merge "
                "the adapter into its base with PEFT instead");
}

TEST_F(PeftFolder, UntargetedModulesAreNamed) {
  write_config(R"({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]})");
  write_weights();
  EXPECT_EQ(read_message(),
            weights_path() +
                ": has factors of modules that target_modules of adapter_config.json "
                "does not name: model.layers.0.self_attn.v_proj; the two files are "
                "not of one adapter");
}

TEST_F(PeftFolder, WrongShapesAreNamed) {
  tensors_[0].second = {3, 3};
  tensors_[3].second = {8};
  write_weights();
  EXPECT_EQ(read_message(),
            weights_path() + ": tensors whose shape does not fit adapter_config.json: " + kQ +
                ".lora_A.weight [3, 3] (its rank should be 2), " + kV +
                ".lora_B.weight [8] (its rank should be 2); the two files are not of one adapter");
}

TEST_F(PeftFolder, WithoutTensorsHoldsNoAdapter) {
  tensors_.clear();
  write_weights();
  EXPECT_EQ(read_message(), weights_path() + ": holds no tensors, so no adapter");
}

TEST_F(PeftFolder, PairsTornByACrashAreFound) {
  write_weights({{"format", "pt"}, {"rank", "2"}, {"alpha", "4"}});
  EXPECT_EQ(read_message(), "(no error)");
  write_weights({{"format", "pt"}, {"rank", "2"}, {"alpha", "16"}});
  EXPECT_EQ(read_message(),
            weights_path() +
                ": was saved with alpha \"16\", but adapter_config.json beside it says \"4\"; the "
                "two files are not of one save: take both from one place, or an earlier "
                "checkpoint");
}

Adapter small_adapter(float value) {
  Adapter adapter;
  adapter.config.rank = 1;
  adapter.config.alpha = 2;
  adapter.config.target_modules.names = {"q_proj"};
  adapter.config.base_model_name_or_path = "some/base";
  adapter.base_hash = "0123456789abcdef";
  adapter.entries = {{"model.layers.0.self_attn.q_proj", 1, 2, 3, {1, 2}, {value, 4, 5}}};
  return adapter;
}

TEST_F(PeftFolder, TheHeaderRepeatsWhatMatters) {
  write_peft(path() / "new", small_adapter(3));  // makes the folder
  const SafetensorsFile file(path() / "new" / "adapter_model.safetensors");
  SafetensorsMetadata metadata = file.metadata();
  EXPECT_FALSE(metadata["wick_version"].empty());
  metadata.erase("wick_version");
  EXPECT_EQ(metadata, (SafetensorsMetadata{{"alpha", "2"},
                                           {"alpha_pattern", ""},
                                           {"base_config_hash", "0123456789abcdef"},
                                           {"base_model", "some/base"},
                                           {"format", "pt"},
                                           {"rank", "1"},
                                           {"scaling", "alpha/rank"}}));
  EXPECT_EQ(read_peft(path() / "new").base_hash, "0123456789abcdef");
}

TEST_F(PeftFolder, AFullDiskLeavesTheOldAdapterWhole) {
  const fs::path folder = path() / "new";
  write_peft(folder, small_adapter(3));
  // As in base_test: a limit on file sizes stands in for the full disk. The weights (about 500
  // bytes) are written before the config (over 1,000 bytes) fails.
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{800, 800};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    static_cast<void>(::signal(SIGXFSZ, SIG_IGN));
    const std::string message = message_of([&] { write_peft(folder, small_adapter(7)); });
    ::_exit(message.find("adapter_config.json: cannot write") != std::string::npos ? 7 : 8);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(read_peft(folder).entries[0].b[0], 3.0F);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 2);  // nothing is left lying about
}

TEST_F(PeftFolder, AnotherBaseIsNoticed) {
  const fs::path base = temporary_.path() / "base";
  fs::create_directories(base);
  write_text_atomically(base / "config.json", "{}");
  Adapter adapter = small_adapter(3);
  EXPECT_EQ(base_warning(adapter, base),
            "the adapter was trained on \"some/base\", whose config.json differs from that in " +
                base.string() + "; results may be wrong");
  adapter.base_hash = base_config_hash(base);
  EXPECT_EQ(base_warning(adapter, base), "");
  EXPECT_EQ(adapter.base_hash, "08f44b07b5901a25");  // FNV-1a of "{}": fixed for all time
}

TEST(Adapter, ThatChangesNothingSaysWhy) {
  Adapter adapter = small_adapter(3);
  EXPECT_EQ(adapter.why_inert(), "");
  adapter.config.alpha = 0;
  EXPECT_EQ(adapter.why_inert(), "its alpha is 0");
  adapter.config.alpha = 1;
  adapter.entries[0].a = {0, 0};
  EXPECT_EQ(adapter.why_inert(), "every product of A and B is zero");
  adapter.entries[0].b = {0, 0, 0};
  EXPECT_EQ(adapter.why_inert(), "every B is zero, as before the first training step");
  adapter.entries.clear();
  EXPECT_EQ(adapter.why_inert(), "it has no factors");
}

}  // namespace
}  // namespace wick
