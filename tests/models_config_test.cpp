// config.json: what each family means by it, and what is refused in which words.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "wick/base/file.h"
#include "wick/models/model_config.h"

namespace wick {
namespace {

using Json = nlohmann::json;
using test::message_of;

Json base(const std::string& family) {
  return {{"model_type", family},     {"vocab_size", 100},      {"hidden_size", 64},
          {"intermediate_size", 128}, {"num_hidden_layers", 4}, {"num_attention_heads", 8},
          {"num_key_value_heads", 2}};
}

Json with(Json json, const Json& changes) {
  json.update(changes);
  return json;
}

ModelConfig parse(const Json& json) {
  return parse_model_config_text(json.dump(), "f");
}

std::string error_with(const Json& changes, const std::string& family = "llama") {
  return message_of([&] { parse(with(base(family), changes)); });
}

std::string error_without(const char* key) {
  Json json = base("llama");
  json.erase(key);
  return message_of([&] { parse(json); });
}

// ---- families

TEST(ModelConfig, FamiliesHaveTheirOwnFlags) {
  const ModelConfig llama = parse(base("llama"));
  EXPECT_FALSE(llama.qkv_bias || llama.output_bias || llama.mlp_bias || llama.qk_norm);
  EXPECT_EQ(llama.head_dim, 8);
  EXPECT_EQ(llama.max_positions, 2048);
  EXPECT_EQ(llama.bos_id, 1);
  EXPECT_EQ(llama.eos_ids, std::vector<int32_t>{2});
  EXPECT_FALSE(llama.tie_word_embeddings);
  EXPECT_EQ(llama.sliding_window, 0);

  const ModelConfig mistral = parse(base("mistral"));
  EXPECT_EQ(mistral.sliding_window, 4096);
  EXPECT_EQ(mistral.window(3), 4096);

  const ModelConfig qwen2 = parse(base("qwen2"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.output_bias || qwen2.qk_norm);
  EXPECT_TRUE(qwen2.eos_ids.empty());
  EXPECT_FALSE(qwen2.bos_id.has_value());

  const ModelConfig qwen3 = parse(base("qwen3"));
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_EQ(qwen3.head_dim, 128);  // whatever hidden_size / heads is
}

TEST(ModelConfig, BiasesFollowTheirKeys) {
  const ModelConfig llama =
      parse(with(base("llama"), {{"attention_bias", true}, {"mlp_bias", true}}));
  EXPECT_TRUE(llama.qkv_bias && llama.output_bias && llama.mlp_bias);
  const ModelConfig qwen3 = parse(with(base("qwen3"), {{"attention_bias", true}}));
  EXPECT_TRUE(qwen3.qkv_bias && qwen3.output_bias);
  EXPECT_EQ(error_with({{"attention_bias", true}}, "mistral"),
            "f: \"attention_bias\" is true, which family mistral does not have");
  EXPECT_EQ(error_with({{"mlp_bias", true}}, "qwen2"),
            "f: \"mlp_bias\" is true, which family qwen2 does not have");
}

TEST(ModelConfig, AnAbsentKvHeadCountIsTheFamilysOwn) {
  Json json = base("mistral");
  json.erase("num_key_value_heads");
  EXPECT_EQ(parse(json).num_kv_heads, 8);
  EXPECT_EQ(parse(with(json, {{"num_attention_heads", 16}})).num_kv_heads, 8);
  EXPECT_EQ(parse(with(json, {{"num_attention_heads", 16}, {"num_key_value_heads", nullptr}}))
                .num_kv_heads,
            16);
}

TEST(ModelConfig, MistralsWindowIsOffWhereNull) {
  EXPECT_EQ(parse(with(base("mistral"), {{"sliding_window", nullptr}})).sliding_window, 0);
  EXPECT_EQ(parse(with(base("mistral"), {{"sliding_window", 8}})).window(0), 8);
}

TEST(ModelConfig, QwensWindowHoldsForTheUpperLayersIfUsed) {
  const Json window = {{"sliding_window", 16}, {"max_window_layers", 3}};
  EXPECT_EQ(parse(with(base("qwen2"), window)).sliding_window, 0);
  const ModelConfig used = parse(with(with(base("qwen2"), window), {{"use_sliding_window", true}}));
  EXPECT_EQ(used.window(2), 0);
  EXPECT_EQ(used.window(3), 16);
  // No layer that high: as if there were none.
  EXPECT_EQ(parse(with(base("qwen2"), {{"use_sliding_window", true}})).sliding_window, 0);

  const ModelConfig typed =
      parse(with(base("qwen3"),
                 {{"use_sliding_window", true},
                  {"sliding_window", 16},
                  {"layer_types",
                   {"sliding_attention", "full_attention", "full_attention", "full_attention"}}}));
  EXPECT_EQ(typed.window(0), 16);
  EXPECT_EQ(typed.window(1), 0);
  EXPECT_EQ(
      error_with({{"use_sliding_window", true}, {"layer_types", {"full_attention"}}}, "qwen2"),
      "f: \"layer_types\" is not an array of 4 entries, one a layer");
  EXPECT_EQ(error_with({{"use_sliding_window", true},
                        {"layer_types", {"full_attention", "linear_attention", 1, 1}}},
                       "qwen2"),
            "f: \"layer_types\" entry 1 is \"linear_attention\"; wick knows full_attention and "
            "sliding_attention");
}

// ---- rope

TEST(ModelConfig, ReadsRopeInAllItsSpellings) {
  EXPECT_EQ(parse(base("llama")).rope_theta, 10000.0);
  EXPECT_EQ(parse(with(base("llama"), {{"rope_theta", 500000}})).rope_theta, 500000.0);
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const ModelConfig old = parse(with(base("llama"), {{"rope_scaling", llama3}}));
  EXPECT_EQ(old.rope_scaling.kind, RopeScaling::Kind::llama3);
  EXPECT_EQ(old.rope_scaling.factor, 8.0);
  EXPECT_EQ(old.rope_scaling.original_positions, 8192);
  const ModelConfig newer =
      parse(with(base("llama"), {{"rope_parameters", with(llama3, {{"rope_theta", 250000.0}})}}));
  EXPECT_EQ(newer.rope_scaling.kind, RopeScaling::Kind::llama3);
  EXPECT_EQ(newer.rope_theta, 250000.0);
  const ModelConfig linear =
      parse(with(base("llama"), {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}));
  EXPECT_EQ(linear.rope_scaling.kind, RopeScaling::Kind::linear);
  EXPECT_EQ(linear.rope_scaling.factor, 2.0);
  EXPECT_EQ(parse(with(base("llama"), {{"rope_scaling", nullptr}})).rope_scaling.kind,
            RopeScaling::Kind::none);
  EXPECT_EQ(parse(with(base("qwen3"),
                       {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}}}}))
                .rope_theta,
            1e6);
}

TEST(ModelConfig, RefusesRopeThatItCannotCompute) {
  for (const char* type : {"yarn", "longrope", "dynamic", "su"}) {
    EXPECT_EQ(error_with({{"rope_scaling", {{"rope_type", type}, {"factor", 2.0}}}}),
              "f: rope_scaling: rope type \"" + std::string(type) +
                  "\" is not supported; wick knows default, linear and llama3");
  }
  EXPECT_EQ(error_with({{"rope_scaling", {{"rope_type", "linear"}}}}),
            "f: rope_scaling: \"factor\" is missing");
  EXPECT_EQ(error_with({{"rope_scaling", {{"rope_type", "linear"}, {"factor", 0}}}}),
            "f: rope_scaling: \"factor\" is 0, not a number from 0.001 to 1000000");
  EXPECT_EQ(error_with({{"rope_scaling",
                         {{"rope_type", "llama3"},
                          {"factor", 8},
                          {"low_freq_factor", 4},
                          {"high_freq_factor", 4},
                          {"original_max_position_embeddings", 10}}}}),
            "f: rope_scaling: \"low_freq_factor\" 4 is not below \"high_freq_factor\" 4");
  EXPECT_EQ(error_with({{"rope_scaling", "llama3"}}),
            "f: \"rope_scaling\" is \"llama3\", not an object");
  EXPECT_EQ(error_with({{"rope_theta", -1}}),
            "f: \"rope_theta\" is -1, not a number from 1 to 1000000000000");
  EXPECT_EQ(error_with({{"partial_rotary_factor", 0.5}}),
            "f: \"partial_rotary_factor\" is not 1; wick rotates whole heads only");
}

// ---- ids and number types

TEST(ModelConfig, EosIdsOfBothFilesAreMerged) {
  const test::TemporaryFolder folder;
  const auto config = folder.path() / "config.json";
  write_text_atomically(config, with(base("llama"), {{"eos_token_id", {5, 7}}}).dump());
  EXPECT_EQ(parse_model_config(config).eos_ids, (std::vector<int32_t>{5, 7}));
  const auto generation = folder.path() / "generation_config.json";
  write_text_atomically(generation, R"({"eos_token_id": [9, 5]})");
  EXPECT_EQ(parse_model_config(config).eos_ids, (std::vector<int32_t>{5, 7, 9}));
  write_text_atomically(generation, R"({"eos_token_id": "9"})");
  EXPECT_EQ(
      message_of([&] { parse_model_config(config); }),
      generation.string() + ": \"eos_token_id\" is \"9\", not a whole number from 0 to 16777216");
  write_text_atomically(generation, "[");
  EXPECT_EQ(message_of([&] { parse_model_config(config); }),
            generation.string() + ": not JSON: error at byte 2");
}

TEST(ModelConfig, NullIdsMeanNone) {
  const ModelConfig config =
      parse(with(base("llama"), {{"bos_token_id", nullptr}, {"eos_token_id", nullptr}}));
  EXPECT_FALSE(config.bos_id.has_value());
  EXPECT_TRUE(config.eos_ids.empty());
}

TEST(ModelConfig, ReadsTheNumberTypeUnderBothNames) {
  EXPECT_EQ(parse(base("llama")).dtype, DType::f32);
  EXPECT_EQ(parse(with(base("llama"), {{"torch_dtype", "bfloat16"}})).dtype, DType::bf16);
  EXPECT_EQ(parse(with(base("llama"), {{"dtype", "float16"}})).dtype, DType::f16);
  EXPECT_EQ(error_with({{"torch_dtype", "float64"}}),
            "f: \"torch_dtype\" is \"float64\"; wick knows float32, bfloat16 and float16");
}

// ---- refusals

TEST(ModelConfig, RefusesUnknownFamilies) {
  EXPECT_EQ(error_with({{"model_type", "gpt_neox"}}),
            "f: unknown model family \"gpt_neox\"; wick knows llama, mistral, qwen2, qwen3");
  EXPECT_EQ(error_without("model_type"),
            "f: \"model_type\" is missing; wick knows llama, mistral, qwen2, qwen3");
  EXPECT_EQ(error_with({{"model_type", 3}}), "f: \"model_type\" is 3, not a string");
}

TEST(ModelConfig, RefusesWhatIsNotAConfig) {
  const auto error = [](const char* text) {
    return message_of([&] { parse_model_config_text(text, "f"); });
  };
  EXPECT_EQ(error(""), "f: not JSON: error at byte 1");
  EXPECT_EQ(error("{\"a\": nope}"), "f: not JSON: error at byte 8");
  EXPECT_EQ(error("[1]"), "f: holds an array, not a JSON object");
  EXPECT_EQ(error("{\"model_type\": \"\xC3(\"}"), "f: not JSON: error at byte 18");
}

TEST(ModelConfig, RefusesModelsThatItWouldComputeWrongly) {
  EXPECT_EQ(error_with({{"quantization_config", {{"quant_method", "gptq"}}}}),
            "f: \"quantization_config\": the weights are quantised by \"gptq\", which wick cannot "
            "read (MLX's affine quantisation is all that it knows): use the unquantised model");
  EXPECT_EQ(error_with({{"hidden_act", "gelu"}}),
            "f: \"hidden_act\" is \"gelu\"; wick knows silu for family llama");
}

TEST(ModelConfig, RefusesNumbersOutOfRange) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads"}) {
    EXPECT_EQ(error_without(key), fmt::format("f: \"{}\" is missing", key));
    for (const Json& value :
         {Json(0), Json(-5), Json(1.5), Json("64"), Json(true), Json(int64_t{1} << 40),
          Json(std::numeric_limits<uint64_t>::max()), Json(std::numeric_limits<int64_t>::min())}) {
      EXPECT_TRUE(error_with({{key, value}})
                      .starts_with(fmt::format("f: \"{}\" is {}, not a whole number from 1 to ",
                                               key, value.dump())));
    }
  }
  EXPECT_EQ(error_with({{"vocab_size", 0}}),
            "f: \"vocab_size\" is 0, not a whole number from 1 to 16777216");
  EXPECT_EQ(error_with({{"hidden_size", 18446744073709551615ULL}}),
            "f: \"hidden_size\" is 18446744073709551615, not a whole number from 1 to 1048576");
  EXPECT_EQ(error_with({{"num_hidden_layers", 2.0}}),
            "f: \"num_hidden_layers\" is 2.0, not a whole number from 1 to 4096");
  EXPECT_EQ(error_with({{"max_position_embeddings", 0}}),
            "f: \"max_position_embeddings\" is 0, not a whole number from 1 to 1073741824");
  EXPECT_EQ(error_with({{"rms_norm_eps", -1}}),
            "f: \"rms_norm_eps\" is -1, not a number from 1e-12 to 1");
  EXPECT_EQ(error_with({{"bos_token_id", -1}}),
            "f: \"bos_token_id\" is -1, not a whole number from 0 to 16777216");
  EXPECT_EQ(error_with({{"tie_word_embeddings", 1}}),
            "f: \"tie_word_embeddings\" is 1, not true or false");
  EXPECT_EQ(error_with({{"sliding_window", -1}}, "mistral"),
            "f: \"sliding_window\" is -1, not a whole number from 0 to 1073741824");
}

TEST(ModelConfig, RefusesHeadsThatDoNotDivide) {
  EXPECT_EQ(error_with({{"num_key_value_heads", 3}}),
            "f: \"num_attention_heads\" 8 is not a multiple of \"num_key_value_heads\" 3");
  EXPECT_EQ(error_with({{"num_key_value_heads", 16}}),
            "f: \"num_attention_heads\" 8 is not a multiple of \"num_key_value_heads\" 16");
  EXPECT_EQ(error_with({{"hidden_size", 60}}),
            "f: \"hidden_size\" 60 is not a multiple of \"num_attention_heads\" 8");
  EXPECT_EQ(error_with({{"hidden_size", 56}}),
            "f: a head size of 7 is not an even number up to 1024");
  EXPECT_EQ(error_with({{"head_dim", 2048}}),
            "f: \"head_dim\" is 2048, not a whole number from 1 to 1024");
}

TEST(ModelConfig, ReadsRealConfigs) {
  WICK_REQUIRE_DATA("models/tiny-random-hf");
  const auto folder = test::data_folder() / "models/tiny-random-hf";
  EXPECT_EQ(parse_model_config(folder / "tiny_mistral/config.json").sliding_window, 8);
  EXPECT_EQ(parse_model_config(folder / "tiny_llama3/config.json").rope_scaling.factor, 8.0);
  EXPECT_TRUE(parse_model_config(folder / "tiny_qwen3/config.json").qk_norm);
  const std::string gemma = (folder / "tiny_gemma3/config.json").string();
  EXPECT_EQ(
      message_of([&] { parse_model_config(gemma); }),
      gemma + ": unknown model family \"gemma3_text\"; wick knows llama, mistral, qwen2, qwen3");
}

}  // namespace
}  // namespace wick
