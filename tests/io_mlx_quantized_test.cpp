// Weights that MLX has quantised: values that a reader can check by hand, every format that MLX has
// against MLX itself, every refusal.
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/support/golden.h"
#include "tests/support/host_tensor.h"
#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "wick/backend/registry.h"
#include "wick/base/file.h"
#include "wick/io/json_file.h"
#include "wick/io/mlx_quantized.h"
#include "wick/models/bundle.h"

namespace wick {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using test::message_of;

// A tensor as it lies in a file, of any type.
struct Stored {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

template <class T>
Stored stored(const char* dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
  return {dtype,
          std::move(shape),
          {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)}};
}

Stored words(std::vector<int64_t> shape, const std::vector<uint32_t>& values) {
  return stored("U32", std::move(shape), values);
}

Stored floats(std::vector<int64_t> shape, const std::vector<float>& values) {
  return stored("F32", std::move(shape), values);
}

Stored halves(const char* dtype, std::vector<int64_t> shape, const std::vector<uint16_t>& values) {
  return stored(dtype, std::move(shape), values);
}

// write_safetensors writes wick's own number types only, and U32 is none.
void write_file(const fs::path& path, const std::map<std::string, Stored>& tensors) {
  Json header = Json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  write_text_atomically(path, file + text + data);
}

// A folder with one quantised matrix `m.weight` [2, 32]; tests change what they need.
class MlxQuantizedTest : public testing::Test {
 protected:
  std::unique_ptr<WeightSource> open() {
    write_text_atomically(config_, Json{{"quantization", quantization_}}.dump());
    write_file(file_, tensors_);
    return open_weights(folder_.path());
  }
  std::string open_error() {
    return message_of([&] { open(); });
  }
  std::string error_with(const std::string& name, Stored tensor) {
    std::swap(tensors_[name], tensor);
    std::string message = open_error();
    std::swap(tensors_[name], tensor);
    return message;
  }
  std::string error_without(const std::string& name) {
    const Stored tensor = tensors_.at(name);
    tensors_.erase(name);
    std::string message = open_error();
    tensors_[name] = tensor;
    return message;
  }
  std::vector<float> load(const char* name, const Shape& shape) {
    return test::to_host(*backend_, open()->load(*backend_, name, shape));
  }
  // "FILE: tensor "
  std::string tensor() const { return file_.string() + ": tensor "; }

  const test::TemporaryFolder folder_;
  const fs::path config_ = folder_.path() / "config.json";
  const fs::path file_ = folder_.path() / "model.safetensors";
  const std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  Json quantization_ = {{"bits", 4}, {"group_size", 32}};
  std::map<std::string, Stored> tensors_ = {
      {"m.weight", words({2, 4}, {0x76543210, 0xFEDCBA98, 0, 0xF, 1, 0, 0, 0x80000000})},
      {"m.scales", floats({2, 1}, {0.5F, 2})},
      {"m.biases", floats({2, 1}, {-1, 0.25F})},
      {"m.bias", floats({2}, {7, 8})},
  };
};

// ---- values

TEST_F(MlxQuantizedTest, AValueIsItsBitsTimesScalePlusBias) {
  std::vector<float> expected(64, -1);  // scale 0.5, bias -1
  for (size_t i = 0; i < 16; ++i) {
    expected[i] = 0.5F * static_cast<float>(i) - 1;
  }
  expected[24] = 0.5F * 15 - 1;
  std::fill(expected.begin() + 32, expected.end(), 0.25F);  // scale 2, bias 0.25
  expected[32] = 2.25F;
  expected[63] = 16.25F;
  EXPECT_EQ(load("m.weight", {2, 32}), expected);
}

TEST_F(MlxQuantizedTest, EachGroupOfARowHasItsScaleAndBias) {
  tensors_["m.weight"] = words({1, 4}, {3, 0, 1, 0xC0000000});  // 2 bits: 64 values
  tensors_["m.scales"] = floats({1, 2}, {1, 10});
  tensors_["m.biases"] = floats({1, 2}, {0, 100});
  quantization_["bits"] = 2;
  std::vector<float> expected(64, 0);
  expected[0] = 3;
  std::fill(expected.begin() + 32, expected.end(), 100.0F);
  expected[32] = 110;
  expected[63] = 130;
  EXPECT_EQ(load("m.weight", {1, 64}), expected);
}

TEST_F(MlxQuantizedTest, ValuesOfOddWidthsGoAcrossWords) {
  // 3 bits: value 10 has bits 30 to 32, the lowest two at the end of the first word.
  tensors_["m.weight"] = words({1, 3}, {0x80000000, 1, 0xE0000000});
  tensors_["m.scales"] = floats({1, 1}, {1});
  tensors_["m.biases"] = floats({1, 1}, {0});
  quantization_["bits"] = 3;
  std::vector<float> expected(32, 0);
  expected[10] = 0b110;
  expected[31] = 7;
  EXPECT_EQ(load("m.weight", {1, 32}), expected);
}

TEST_F(MlxQuantizedTest, WeightsHaveTheTypeOfTheirScalesRoundedOnce) {
  tensors_["m.weight"] = words({1, 4}, {0xF1, 0, 0, 0});
  tensors_["m.scales"] = halves("BF16", {1, 1}, {f32_to_bf16(1.0078125F)});  // 1 + 2^-7
  tensors_["m.biases"] = halves("BF16", {1, 1}, {f32_to_bf16(0)});
  const auto weights = open();
  EXPECT_EQ(weights->info("m.weight").dtype, DType::bf16);
  const Tensor bf16 = weights->load(*backend_, "m.weight", {1, 32});
  EXPECT_EQ(bf16.data<uint16_t>()[0], f32_to_bf16(1.0078125F));
  EXPECT_EQ(bf16.data<uint16_t>()[1], f32_to_bf16(15.125F));  // of 15.1171875
  tensors_["m.scales"] = halves("F16", {1, 1}, {f32_to_f16(1.0078125F)});
  tensors_["m.biases"] = halves("F16", {1, 1}, {f32_to_f16(0)});
  const Tensor f16 = open()->load(*backend_, "m.weight", {1, 32});
  EXPECT_EQ(f16.data<uint16_t>()[1], f32_to_f16(15.1171875F));
}

TEST_F(MlxQuantizedTest, MatricesLargerThanTheStagingAreaAreWhole) {
  constexpr int64_t kRows = 9;
  constexpr int64_t kColumns = 1 << 16;
  std::vector<uint32_t> packed(static_cast<size_t>(kRows * kColumns / 8));
  std::vector<float> scales(static_cast<size_t>(kRows * kColumns / 128), 1);
  std::vector<float> biases(scales.size());
  for (size_t i = 0; i < packed.size(); ++i) {
    packed[i] = 0x11111111U * static_cast<uint32_t>(i % 13);
  }
  for (size_t i = 0; i < biases.size(); ++i) {
    biases[i] = static_cast<float>(16 * i);
  }
  quantization_["group_size"] = 128;
  tensors_["m.weight"] = words({kRows, kColumns / 8}, packed);
  tensors_["m.scales"] = floats({kRows, kColumns / 128}, scales);
  tensors_["m.biases"] = floats({kRows, kColumns / 128}, biases);
  const std::vector<float> values = load("m.weight", {kRows, kColumns});
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t expected = i / 8 % 13 + i / 128 * 16;
    ASSERT_EQ(values[i], static_cast<float>(expected)) << i;
  }
}

TEST_F(MlxQuantizedTest, ScalesAndBiasesAreNoWeights) {
  const auto weights = open();
  EXPECT_EQ(weights->names(), (std::vector<std::string>{"m.bias", "m.weight"}));
  EXPECT_FALSE(weights->has("m.scales"));
  EXPECT_EQ(weights->info("m.weight").shape, (Shape{2, 32}));
  EXPECT_EQ(load("m.bias", {2}), (std::vector<float>{7, 8}));
  EXPECT_EQ(message_of([&] { weights->info("m.scales"); }),
            file_.string() + ": has no tensor \"m.scales\"");
  EXPECT_EQ(message_of([&] {
              weights->load(*backend_, "m.weight", {2, 64});
            }),
            tensor() + "\"m.weight\" has shape [2, 32], the model needs [2, 64]");
}

TEST_F(MlxQuantizedTest, ModulesMayHaveAFormatOfTheirOwn) {
  quantization_ = {{"bits", 8}, {"group_size", 64}, {"mode", "affine"}};
  quantization_["m"] = {{"bits", 4}, {"group_size", 32}};
  quantization_["plain"] = false;
  tensors_["plain.weight"] = floats({1, 2}, {1, 2});
  tensors_["unlisted.weight"] = floats({1}, {3});
  const auto weights = open();
  EXPECT_EQ(weights->info("m.weight").shape, (Shape{2, 32}));
  EXPECT_EQ(load("plain.weight", {1, 2}), (std::vector<float>{1, 2}));
  EXPECT_EQ(load("unlisted.weight", {1}), (std::vector<float>{3}));
}

TEST(MlxQuantized, EveryFormatGivesTheValuesOfMlx) {
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto weights = open_weights(test::golden_folder("mlx_formats"));
  const SafetensorsFile golden(test::golden_folder("mlx_formats") / "golden.safetensors");
  EXPECT_EQ(weights->names().size(), 19U);
  for (const std::string& name : weights->names()) {
    const Tensor found = weights->load(*backend, name, golden.shape(name));
    const Tensor wide = backend->allocate(found.shape(), DType::f32);
    backend->cast(found, wide);
    const double unit = found.dtype() == DType::f32    ? 0x1p-23
                        : found.dtype() == DType::bf16 ? 0x1p-8
                                                       : 0x1p-11;
    EXPECT_LE(test::relative_difference(test::to_host(*backend, wide), golden.floats(name)), unit)
        << name;
  }
}

// ---- tensors that do not fit each other

TEST_F(MlxQuantizedTest, RefusesModulesThatAreNotWhole) {
  EXPECT_EQ(error_without("m.scales"),
            tensor() + "\"m.weight\" is quantised, but \"m.scales\" is missing");
  EXPECT_EQ(error_without("m.biases"),
            tensor() + "\"m.weight\" is quantised, but \"m.biases\" is missing");
  EXPECT_EQ(error_with("m.weight", floats({2, 4}, std::vector<float>(8))),
            tensor() + "\"m.weight\" has dtype F32; of a quantised module it is U32");
  EXPECT_EQ(error_with("m.scales", words({2, 1}, {1, 2})),
            tensor() + "\"m.scales\" has dtype U32; scales and biases are F32, F16 or BF16");
  EXPECT_EQ(error_with("m.biases", halves("BF16", {2, 1}, {1, 2})),
            tensor() + "\"m.biases\" has dtype BF16, its scales have F32");
}

TEST_F(MlxQuantizedTest, RefusesShapesThatDoNotFit) {
  EXPECT_EQ(error_with("m.weight", words({8}, std::vector<uint32_t>(8))),
            tensor() + "\"m.weight\" has shape [8]; quantised weights are matrices");
  EXPECT_EQ(error_with("m.weight", words({0, 4}, {})),
            tensor() + "\"m.weight\" has shape [0, 4]; quantised weights are matrices");
  EXPECT_EQ(error_with("m.weight", words({2, 3}, std::vector<uint32_t>(6))),
            tensor() +
                "\"m.weight\" has shape [2, 3], which does not hold whole groups of 32 "
                "values of 4 bits");
  EXPECT_EQ(error_with("m.weight", words({2, 8}, std::vector<uint32_t>(16))),
            tensor() +
                "\"m.scales\" has shape [2, 1]; with 4 bits and group_size 32 the weight's "
                "[2, 8] needs [2, 2]");
  EXPECT_EQ(error_with("m.scales", floats({1, 1}, {1})),
            tensor() +
                "\"m.scales\" has shape [1, 1]; with 4 bits and group_size 32 the weight's "
                "[2, 4] needs [2, 1]");
  EXPECT_EQ(error_with("m.biases", floats({2}, {1, 2})),
            tensor() +
                "\"m.biases\" has shape [2]; with 4 bits and group_size 32 the weight's "
                "[2, 4] needs [2, 1]");
}

TEST_F(MlxQuantizedTest, RefusesTensorsThatConfigContradicts) {
  quantization_["m"] = false;
  EXPECT_EQ(open_error(), file_.string() +
                              ": \"m.weight\" holds quantised values, but the entry of \"m\" in "
                              "config.json is false");
  quantization_.erase("m");
  quantization_["p"] = true;
  tensors_["p.weight"] = floats({1, 4}, {1, 2, 3, 4});
  EXPECT_EQ(open_error(), tensor() + "\"p.weight\" is quantised, but \"p.scales\" is missing");
}

// ---- config.json

std::string config_error(const Json& quantization, const char* key = "quantization") {
  return message_of([&] { read_mlx_quantization({{key, quantization}}, "f"); });
}

TEST(MlxQuantizedConfig, BothKeysMayHoldTheBlock) {
  const Json block = {{"bits", 8}, {"group_size", 64}};
  EXPECT_FALSE(read_mlx_quantization(Json::object(), "f").has_value());
  EXPECT_FALSE(read_mlx_quantization({{"quantization", nullptr}}, "f").has_value());
  EXPECT_EQ(read_mlx_quantization({{"quantization_config", block}}, "f")->format.bits, 8);
  const Json both = {{"quantization", block}, {"quantization_config", block}};
  EXPECT_EQ(read_mlx_quantization(both, "f")->format.group_size, 64);
  Json differing = both;
  differing["quantization"]["bits"] = 4;
  EXPECT_EQ(
      message_of([&] { read_mlx_quantization(differing, "f"); }),
      "f: \"quantization\" and \"quantization_config\" differ; MLX writes the same into both");
}

TEST(MlxQuantizedConfig, RefusesNumbersOutOfRange) {
  EXPECT_EQ(config_error({{"bits", 7}, {"group_size", 32}}),
            "f: \"quantization\": \"bits\" is 7; MLX knows 2, 3, 4, 5, 6, 8");
  EXPECT_EQ(config_error({{"bits", "4"}, {"group_size", 32}}),
            "f: \"quantization\": \"bits\" is \"4\"; MLX knows 2, 3, 4, 5, 6, 8");
  EXPECT_EQ(config_error({{"bits", 4}, {"group_size", 0}}),
            "f: \"quantization\": \"group_size\" is 0; MLX knows 32, 64, 128");
  EXPECT_EQ(config_error({{"bits", 4}}), "f: \"quantization\": \"group_size\" is missing");
  EXPECT_EQ(config_error({{"group_size", 64}}), "f: \"quantization\": \"bits\" is missing");
  EXPECT_EQ(config_error({{"bits", 4}, {"group_size", 32}, {"m", {{"bits", 1}}}}),
            "f: \"quantization\": \"m\": \"bits\" is 1; MLX knows 2, 3, 4, 5, 6, 8");
  EXPECT_EQ(config_error({{"bits", 4}, {"group_size", 32}, {"m", 4}}),
            "f: \"quantization\": \"m\" is 4; a module's entry is an object, true or false");
  EXPECT_EQ(config_error({{"bits", 4}, {"group_size", 32}, {"mode", "mxfp4"}}),
            "f: \"quantization\": \"mode\" is \"mxfp4\"; wick reads MLX's affine quantisation "
            "only: use the unquantised model, or convert it with mode affine");
  EXPECT_EQ(config_error(4), "f: \"quantization\" is 4, not an object");
}

TEST(MlxQuantizedConfig, NamesTheMethodsThatItDoesNotRead) {
  const auto message = [](const std::string& method) {
    return "f: \"quantization_config\": the weights are quantised by " + method +
           ", which wick cannot read (MLX's affine quantisation is all that it knows): use the "
           "unquantised model";
  };
  for (const char* method : {"bitsandbytes", "gptq", "awq", "fp8", "mxfp4"}) {
    EXPECT_EQ(config_error({{"quant_method", method}, {"bits", 4}, {"group_size", 128}},
                           "quantization_config"),
              message(Json(method).dump()));
  }
  EXPECT_EQ(config_error({{"load_in_4bit", true}}, "quantization_config"), message("bitsandbytes"));
}

// ---- a whole model

class Qwen3Mlx4Test : public testing::Test {
 protected:
  void SetUp() override {
    WICK_REQUIRE_DATA("models/tiny-random-hf/tiny_qwen3_sharded");
    model_ = test::data_folder() / "models/tiny-random-hf/tiny_qwen3_sharded";
  }
  // The largest distance to the recorded logits.
  double gap(const fs::path& folder) {
    const SafetensorsFile golden(test::golden_folder("qwen3_mlx4") / "golden.safetensors");
    const std::vector<int32_t> ids = test::golden_ids(golden, "ids");
    const auto decoder = open_decoder(*backend_, folder);
    const TokenBatch batch = make_token_batch(*backend_, std::span(&ids, 1));
    const std::vector<float> found =
        test::to_host(*backend_, decoder->logits(decoder->hidden(nullptr, batch, {}).value));
    const std::vector<float> expected = golden.floats("logits");
    EXPECT_EQ(found.size(), expected.size());
    double gap = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      gap = std::max(gap, std::abs(static_cast<double>(found[i]) - expected[i]));
    }
    return gap;
  }
  const std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 2});
  fs::path model_;
};

TEST_F(Qwen3Mlx4Test, LogitsAreThoseOfTransformersOnTheDequantisedWeights) {
  EXPECT_LT(gap(model_), 1e-4);
}

TEST_F(Qwen3Mlx4Test, ASavedModelIsPlain) {
  const test::TemporaryFolder folder;
  const fs::path saved = folder.path() / "saved";
  save_model_folder(saved, model_, *open_decoder(*backend_, model_));
  const Json config = read_json_object(saved / "config.json");
  EXPECT_FALSE(config.contains("quantization"));
  EXPECT_FALSE(config.contains("quantization_config"));
  EXPECT_LT(gap(saved), 1e-4);
}

}  // namespace
}  // namespace wick
