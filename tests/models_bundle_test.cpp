// Opening and writing model folders.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/backend/registry.h"
#include "wick/base/file.h"
#include "wick/io/json_file.h"
#include "wick/io/weight_source.h"
#include "wick/models/bundle.h"

namespace wick {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using test::message_of;

class BundleTest : public testing::Test {
 protected:
  void SetUp() override {
    backend_ = make_backend("cpu", {.threads = 1});
    source_ = test::write_tiny_model(folder_.path() / "source", "qwen2", 1);
  }

  // Logits of a fixed text, all rows.
  std::vector<float> logits(Decoder& decoder) {
    const std::vector<std::vector<int32_t>> ids = {{72, 101, 108, 108, 111, 256}};
    const Var hidden = decoder.hidden(nullptr, make_token_batch(*backend_, ids), {});
    const Tensor rows = decoder.logits(hidden.value);
    std::vector<float> values(static_cast<size_t>(rows.elements()));
    backend_->download(rows, std::as_writable_bytes(std::span(values)));
    return values;
  }
  std::vector<std::string> names_in(const fs::path& folder) {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  void change_config(const Json& changes) {
    Json json = read_json_object(source_ / "config.json");
    json.update(changes);
    write_text_atomically(source_ / "config.json", json.dump());
  }
  std::string open_error(const fs::path& folder) {
    return message_of([&] { open_bundle(*backend_, folder); });
  }

  const test::TemporaryFolder folder_;
  std::unique_ptr<Backend> backend_;
  fs::path source_;
};

// ---- opening

TEST_F(BundleTest, OpensEveryFamily) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    const fs::path folder = test::write_tiny_model(folder_.path() / family, family, 3);
    const Bundle bundle = open_bundle(*backend_, folder);
    EXPECT_EQ(bundle.config.family, family);
    EXPECT_EQ(bundle.tokenizer.encode("Hi<|im_end|>", false),
              (std::vector<int32_t>{72, 105, test::kTinyTurnEnd}));
    EXPECT_EQ(bundle.tokenizer.eos_id(), test::kTinyEndOfText);
    EXPECT_EQ(logits(*bundle.decoder).size(), 6U * test::kTinyVocabulary);
  }
}

TEST_F(BundleTest, RandomWeightsNeedNoWeightFile) {
  fs::remove(source_ / "model.safetensors");
  const Bundle one = open_bundle(*backend_, source_, {.random_weights = true, .seed = 7});
  const Bundle same = open_bundle(*backend_, source_, {.random_weights = true, .seed = 7});
  const Bundle other = open_bundle(*backend_, source_, {.random_weights = true, .seed = 8});
  EXPECT_EQ(logits(*one.decoder), logits(*same.decoder));
  EXPECT_NE(logits(*one.decoder), logits(*other.decoder));
}

TEST_F(BundleTest, OpensAModelWithoutTokenizerForIds) {
  fs::remove(source_ / "tokenizer.json");
  EXPECT_EQ(open_decoder(*backend_, source_)->config().family, "qwen2");
  EXPECT_TRUE(open_error(source_).starts_with(source_.string() + ": no tokenizer.json "));
}

TEST_F(BundleTest, NamesTheFolderThatIsNoModel) {
  const std::string root = folder_.path().string();
  EXPECT_EQ(open_error(folder_.path() / "nowhere"), root + "/nowhere: no such folder");
  EXPECT_EQ(
      open_error(source_ / "config.json"),
      (source_ / "config.json").string() + ": not a folder; a model is a folder with config.json");
  EXPECT_EQ(open_error(folder_.path()),
            root + ": has no config.json: not a Hugging Face model folder");
  write_text_atomically(folder_.path() / "adapter_config.json", "{}");
  EXPECT_EQ(open_error(folder_.path()),
            root + ": holds an adapter, not a model: give the adapter's base model here");
}

TEST_F(BundleTest, NamesTheTensorThatIsMissingOrShapedOtherwise) {
  const std::string file = (source_ / "model.safetensors").string();
  change_config({{"num_hidden_layers", 3}});
  EXPECT_EQ(open_error(source_),
            file + ": the tensor \"model.layers.2.input_layernorm.weight\" [32] is missing");
  change_config({{"num_hidden_layers", 2}, {"intermediate_size", 50}});
  EXPECT_EQ(open_error(source_),
            file +
                ": tensor \"model.layers.0.mlp.gate_proj.weight\" has shape [48, 32], the model "
                "needs [50, 32]");
}

TEST_F(BundleTest, RefusesATokenizerLargerThanTheModel) {
  change_config({{"vocab_size", 200}});
  EXPECT_EQ(open_error(source_), source_.string() +
                                     ": tokenizer.json has ids up to 258, but config.json gives "
                                     "the model a vocabulary of 200");
}

TEST_F(BundleTest, RefusesATruncatedWeightFile) {
  const fs::path file = source_ / "model.safetensors";
  fs::resize_file(file, fs::file_size(file) - 100);
  const std::string message = open_error(source_);
  EXPECT_TRUE(message.starts_with(file.string() + ": tensor ")) << message;
  EXPECT_TRUE(message.ends_with("bytes of data; was the file cut off?")) << message;
}

// ---- writing

TEST_F(BundleTest, ASavedModelIsTheSameModel) {
  const Bundle bundle = open_bundle(*backend_, source_);
  write_text_atomically(source_ / "generation_config.json", R"({"eos_token_id": [256, 258]})");
  change_config({{"some_key_of_others", {1, 2}}});
  const fs::path output = folder_.path() / "deep" / "output/";
  save_model_folder(output, source_, *bundle.decoder);
  EXPECT_EQ(names_in(output),
            (std::vector<std::string>{"config.json", "generation_config.json", "model.safetensors",
                                      "tokenizer.json", "tokenizer_config.json"}));
  EXPECT_EQ(names_in(folder_.path() / "deep"), std::vector<std::string>{"output"});
  EXPECT_EQ(read_json_object(output / "config.json"), read_json_object(source_ / "config.json"));
  const Bundle saved = open_bundle(*backend_, output);
  EXPECT_EQ(logits(*saved.decoder), logits(*bundle.decoder));
  EXPECT_EQ(saved.config.eos_ids, (std::vector<int32_t>{256, 258}));
}

TEST_F(BundleTest, ShardsHoldTheSameModel) {
  const Bundle bundle = open_bundle(*backend_, source_);
  const fs::path output = folder_.path() / "output";
  save_model_folder(output, source_, *bundle.decoder, {.max_shard_bytes = 30'000});
  const Json index = read_json_object(output / "model.safetensors.index.json");
  uint64_t total = 0;
  std::set<std::string> shards;
  const auto weights = open_weights(output);
  for (const std::string& name : weights->names()) {
    shards.insert(index["weight_map"][name]);
    total += static_cast<uint64_t>(weights->info(name).shape.elements()) * 4;
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_EQ(shards.size(), 5U);
  EXPECT_TRUE(shards.contains("model-00005-of-00005.safetensors"));
  EXPECT_EQ(logits(*open_decoder(*backend_, output)), logits(*bundle.decoder));
}

TEST_F(BundleTest, WeightsAreRoundedToTheChosenType) {
  const Bundle bundle = open_bundle(*backend_, source_);
  const fs::path output = folder_.path() / "output";
  save_model_folder(output, source_, *bundle.decoder, {.dtype = DType::bf16});
  EXPECT_EQ(read_json_object(output / "config.json")["torch_dtype"], "bfloat16");
  const auto before = open_weights(source_);
  const auto after = open_weights(output);
  ASSERT_EQ(before->names(), after->names());
  for (const std::string& name : after->names()) {
    const Shape shape = after->info(name).shape;
    const Tensor wide = before->load(*backend_, name, shape);
    const Tensor narrow = after->load(*backend_, name, shape);
    ASSERT_EQ(narrow.dtype(), DType::bf16);
    for (int64_t i = 0; i < shape.elements(); ++i) {
      ASSERT_EQ(narrow.data<uint16_t>()[i], f32_to_bf16(wide.data<float>()[i])) << name;
    }
  }
}

TEST_F(BundleTest, ATiedHeadStaysTied) {
  const fs::path tied =
      test::write_tiny_model(folder_.path() / "tied", {.family = "llama", .tied = true});
  const auto decoder = open_decoder(*backend_, tied);
  save_model_folder(folder_.path() / "output", tied, *decoder);
  EXPECT_FALSE(open_weights(folder_.path() / "output")->has("lm_head.weight"));
  EXPECT_EQ(logits(*open_decoder(*backend_, folder_.path() / "output")), logits(*decoder));
}

TEST_F(BundleTest, AModelIsNotReplacedUnlessAsked) {
  const auto decoder = open_decoder(*backend_, source_);
  EXPECT_EQ(
      message_of([&] { save_model_folder(source_, source_, *decoder); }),
      source_.string() + ": holds a model already; nothing was written (--overwrite replaces it)");
  EXPECT_EQ(message_of([&] { save_model_folder(source_ / "config.json", source_, *decoder); }),
            (source_ / "config.json").string() + ": is a file, not a folder");
}

TEST_F(BundleTest, ReplacingKeepsOtherFilesAndDropsOldShards) {
  const auto decoder = open_decoder(*backend_, source_);
  const fs::path output = folder_.path() / "output";
  fs::create_directories(output);
  write_text_atomically(output / "metrics.jsonl", "{}\n");
  save_model_folder(output, source_, *decoder, {.max_shard_bytes = 50'000});
  EXPECT_TRUE(fs::exists(output / "model.safetensors.index.json"));
  const std::vector<std::string> single = {"config.json", "metrics.jsonl", "model.safetensors",
                                           "tokenizer.json", "tokenizer_config.json"};
  save_model_folder(output, source_, *decoder, {.overwrite = true});
  EXPECT_EQ(names_in(output), single);
  save_model_folder(output, source_, *decoder, {.overwrite = true, .max_shard_bytes = 50'000});
  EXPECT_FALSE(fs::exists(output / "model.safetensors"));
  EXPECT_EQ(logits(*open_decoder(*backend_, output)), logits(*decoder));
}

TEST_F(BundleTest, AModelCanReplaceTheOneItWasReadFrom) {
  const auto decoder = open_decoder(*backend_, source_);
  const std::vector<float> before = logits(*decoder);
  save_model_folder(source_, source_, *decoder, {.overwrite = true});
  EXPECT_EQ(logits(*decoder), before);
  EXPECT_EQ(logits(*open_decoder(*backend_, source_)), before);
}

TEST_F(BundleTest, AFullDiskLeavesNothingBehind) {
  const auto decoder = open_decoder(*backend_, source_);
  const fs::path fresh = folder_.path() / "fresh";
  const std::vector<std::string> before = names_in(source_);
  // A file size limit in a child process stands in for the full disk.
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{20'000, 20'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    static_cast<void>(::signal(SIGXFSZ, SIG_IGN));
    const auto fails = [&](const fs::path& folder, const SaveOptions& options) {
      return message_of([&] { save_model_folder(folder, source_, *decoder, options); })
          .ends_with("model.safetensors: cannot write: File too large");
    };
    ::_exit(fails(fresh, {}) && fails(source_, {.overwrite = true}) ? 7 : 8);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(names_in(folder_.path()), std::vector<std::string>{"source"});
  EXPECT_EQ(names_in(source_), before);
  EXPECT_EQ(logits(*open_decoder(*backend_, source_)), logits(*decoder));
}

}  // namespace
}  // namespace wick
