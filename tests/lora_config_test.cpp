// adapter_config.json: what is read, what is refused, what is written, and which module gets what.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/support/golden.h"
#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "wick/base/file.h"
#include "wick/lora/adapter_config.h"

namespace wick {
namespace {

using test::message_of;

constexpr const char* kQ0 = "model.layers.0.self_attn.q_proj";
constexpr const char* kV1 = "model.layers.1.self_attn.v_proj";
constexpr const char* kDown1 = "model.layers.1.mlp.down_proj";

AdapterConfig parse(const std::string& json) {
  return parse_adapter_config(json, "a.json");
}

// A config with the given keys beside what every config needs.
std::string with(const std::string& keys) {
  return R"({"peft_type": "LORA", "target_modules": ["q_proj"], )" + keys + "}";
}

TEST(AdapterConfig, DefaultsArePefts) {
  const AdapterConfig config = parse(R"({"peft_type": "LORA", "target_modules": ["q_proj"]})");
  EXPECT_EQ(config.rank, 8);
  EXPECT_EQ(config.alpha, 8.0);
  EXPECT_EQ(config.dropout, 0.0);
  EXPECT_FALSE(config.use_rslora);
  EXPECT_EQ(AdapterRules(config, "test").scaling(kQ0), 1.0F);
}

TEST(AdapterConfig, WritesWhatPeftWrites) {
  for (const std::string& family : test::kGoldenFamilies) {
    const auto file = test::golden_folder(family) / "adapter/adapter_config.json";
    EXPECT_EQ(nlohmann::json::parse(format_adapter_config(read_adapter_config(file))),
              nlohmann::json::parse(read_text(file)))
        << family;
  }
}

TEST(AdapterConfig, WritesAllThatItHolds) {
  AdapterConfig config;
  config.rank = 3;
  config.alpha = 0.1;  // alpha need not be whole, and loses no digit
  config.dropout = 0.05;
  config.use_rslora = true;
  config.target_modules.names = {"q_proj", "down_proj"};
  config.exclude_modules = {ModuleSelection::Kind::expression, {}, ".*\\.0\\..*"};
  config.layers_to_transform = {1, 3};
  config.layers_pattern = {"layers"};
  config.rank_pattern = {{"z_proj", 2}, {"a_proj", 5}};  // in this order
  config.alpha_pattern = {{"down_proj", 2.5}};
  config.base_model_name_or_path = "some/model";
  EXPECT_EQ(parse(format_adapter_config(config)), config);
}

TEST(AdapterConfig, IgnoresUnknownKeys) {
  EXPECT_EQ(parse(with(R"("r": 4, "a_key_of_next_year": {"x": [1, 2]}, "alora_x": null)")).rank, 4);
}

TEST(AdapterConfig, RefusesWhatChangesTheForwardPass) {
  constexpr const char* kAdvice =
      ", which wick does not implement; merge the adapter into its base with PEFT "
      "(merge_and_unload) and use the merged model, or train a plain LoRA";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("use_dora": true)", "use_dora: is true (DoRA scales the rows of the weight)"},
      {R"("use_qalora": true)", "use_qalora: is true (QA-LoRA pools the adapter's input)"},
      {R"("lora_bias": true)", "lora_bias: is true (it adds a bias to B)"},
      {R"("fan_in_fan_out": true)",
       "fan_in_fan_out: is true (the base's weights are stored transposed)"},
      {R"("alora_invocation_tokens": [5])",
       "alora_invocation_tokens: is an array (aLoRA acts from a certain token on)"},
      {R"("bias": "lora_only")", "bias: is \"lora_only\" (biases of the base were trained)"},
  };
  for (const auto& [keys, message] : cases) {
    const std::string config = with(keys);
    EXPECT_EQ(message_of([&] { parse(config); }), "a.json: " + message + kAdvice);
  }
  for (const std::string key :
       {"use_bdlora", "layer_replication", "modules_to_save", "trainable_token_indices",
        "target_parameters", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
        "alora_of_next_year"}) {
    const std::string start = "a.json: " + key + ": is ";
    EXPECT_EQ(message_of([&] { parse(with("\"" + key + "\": [1]")); }).substr(0, start.size()),
              start);
    for (const char* harmless : {"null", "false", "[]", "{}"}) {
      EXPECT_NO_THROW(parse(with("\"" + key + "\": " + harmless))) << key;
    }
  }
}

TEST(AdapterConfig, RefusesInitsThatChangeTheBase) {
  for (const char* harmless : {"true", "false", "\"gaussian\"", "\"eva\"", "\"orthogonal\""}) {
    EXPECT_NO_THROW(parse(with(std::string("\"init_lora_weights\": ") + harmless)));
  }
  for (const std::string how : {"pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"}) {
    EXPECT_EQ(message_of([&] { parse(with("\"init_lora_weights\": \"" + how + "\"")); }),
              "a.json: init_lora_weights: is \"" + how +
                  "\", which changes the base's weights, so the adapter is not valid on the base "
                  "as it is; save it with PEFT's path_initial_model_for_weight_conversion to get "
                  "a plain LoRA");
  }
}

TEST(AdapterConfig, OtherMethodsAreNamed) {
  EXPECT_EQ(message_of([] { parse(R"({"peft_type": "IA3", "target_modules": ["q_proj"]})"); }),
            "a.json: peft_type: is \"IA3\", must be \"LORA\"");
  EXPECT_EQ(message_of([] { parse(R"({"r": 8})"); }),
            "a.json: peft_type: is \"\", must be \"LORA\"");
}

TEST(AdapterConfig, BadValuesAreNamed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("r": 0)", "rank (r) is 0; a rank is from 1 to 65536"},
      {R"("r": "8")", "r: is \"8\", must be an integer"},
      {R"("r": 1e3)", "r: is 1000.0, must be an integer"},
      {R"("lora_alpha": 1e300)",
       "alpha (lora_alpha) is 1e+300; alpha is a finite number, usually the rank or twice the "
       "rank"},
      {R"("lora_alpha": [1])", "lora_alpha: is an array, must be a number"},
      {R"("lora_dropout": -0.5)", "dropout (lora_dropout) is -0.5; it is at least 0 and below 1"},
      {R"("use_rslora": 1)", "use_rslora: is 1, must be true or false"},
      {R"("rank_pattern": {"q_proj": -1})",
       "rank_pattern of q_proj is -1; a rank is from 1 to 65536"},
      {R"("rank_pattern": [])", "rank_pattern: is an array, must be an object of module patterns"},
      {R"("alpha_pattern": {"(q": 1})",
       "alpha_pattern: \"(?:.*\\.)?(?:(q)\" is no regular expression: end pattern with unmatched "
       "parenthesis"},
      {R"("target_modules": [])",
       "target_modules names nothing; write \"all-linear\" or a list of module names"},
      {R"("target_modules": [3])",
       "target_modules: is 3, must be a name, as all entries of the "
       "list"},
      {R"("target_modules": ".*", "layers_to_transform": [1])",
       "layers_to_transform needs a list in target_modules, not a regular expression"},
      {R"("layers_pattern": "layers")",
       "layers_pattern without layers_to_transform says nothing; remove it"},
      {R"("layers_to_transform": 1, "layers_pattern": "l.*")",
       "layers_pattern: \"l.*\" is no plain name such as \"layers\""},
  };
  for (const auto& [keys, message] : cases) {
    const std::string config = with(keys);
    EXPECT_EQ(message_of([&] { parse(config); }), "a.json: " + message);
  }
  EXPECT_EQ(message_of([] { parse("{\"peft_type\": \"LORA\", "); }).substr(0, 16),
            "a.json: not JSON");
}

TEST(AdapterConfig, NotANumberIsNamed) {
  AdapterConfig config;
  config.target_modules = ModuleSelection::all_linear();
  config.alpha = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(message_of([&] { config.check_values("LoRA"); }),
            "LoRA: alpha (lora_alpha) is nan; alpha is a finite number, usually the rank or twice "
            "the rank");
}

TEST(AdapterConfig, PatternsThatBacktrackWithoutEndAreErrors) {
  const AdapterConfig config = parse(with(R"("rank_pattern": {"(([a-z]+)+)+0": 2}, "r": 4)"));
  EXPECT_EQ(message_of([&] { AdapterRules(config, "x").rank(std::string(60, 'a')); }),
            "x: rank_pattern: the regular expression takes too long to match \"" +
                std::string(60, 'a') + "\"; write a simpler one");
}

TEST(ModuleSelection, IsWrittenAsPeopleWriteIt) {
  EXPECT_EQ(ModuleSelection::parse("All-Linear"), ModuleSelection::all_linear());
  EXPECT_EQ(ModuleSelection::parse("q_proj, v_proj").names,
            (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(message_of([] { ModuleSelection::parse("q_proj,,v_proj"); }),
            "target modules \"q_proj,,v_proj\": a name is empty; write all-linear, or names "
            "separated by commas");
}

TEST(AdapterRules, TheFirstPatternThatMatchesWins) {
  const AdapterConfig config = parse(with(
      R"("r": 4, "lora_alpha": 8, "use_rslora": true,
         "rank_pattern": {"layers.1.self_attn.v_proj": 16, "[qv]_proj": 2, "roj": 64},
         "alpha_pattern": {"layers\\.\\d+\\.mlp\\..*": 3})"));
  const AdapterRules rules(config, "test");
  EXPECT_EQ(rules.rank(kV1), 16);
  EXPECT_EQ(rules.rank(kQ0), 2);
  EXPECT_EQ(rules.rank(kDown1), 4);  // "roj" is only the end of a name
  EXPECT_EQ(rules.alpha(kDown1), 3.0);
  EXPECT_FLOAT_EQ(rules.scaling(kV1), 8.0F / 4.0F);
  EXPECT_FLOAT_EQ(rules.scaling(kDown1), 3.0F / 2.0F);
}

TEST(AdapterRules, NamesMatchWholePartsAtTheEnd) {
  const AdapterConfig config = parse(
      R"({"peft_type": "LORA", "target_modules": ["proj", "self_attn.q_proj", "lm_head"],
          "exclude_modules": ["layers.1.self_attn.q_proj"]})");
  const AdapterRules rules(config, "test");
  EXPECT_TRUE(rules.targets(kQ0));
  EXPECT_TRUE(rules.targets("lm_head"));
  EXPECT_FALSE(rules.targets("model.layers.1.self_attn.q_proj"));
  EXPECT_FALSE(rules.targets(kV1));
}

TEST(AdapterRules, AllLinearLeavesOutTheHead) {
  AdapterConfig config;
  config.target_modules = ModuleSelection::all_linear();
  const AdapterRules rules(config, "test");
  EXPECT_TRUE(rules.targets(kDown1));
  EXPECT_FALSE(rules.targets("lm_head"));
}

TEST(AdapterRules, ExpressionsMatchWholePaths) {
  const AdapterConfig config = parse(
      R"({"peft_type": "LORA", "target_modules": "model\\.layers\\.(0|1\\.mlp)\\..*",
          "exclude_modules": ".*v_proj"})");
  const AdapterRules rules(config, "test");
  EXPECT_TRUE(rules.targets(kQ0));
  EXPECT_TRUE(rules.targets(kDown1));
  EXPECT_FALSE(rules.targets("model.layers.0.self_attn.v_proj"));
  EXPECT_FALSE(rules.targets(kV1));
  EXPECT_FALSE(rules.targets(std::string("base.") + kQ0));
}

TEST(AdapterRules, LayersAreCountedInTheFirstList) {
  const auto targets = [](const std::string& keys, std::string_view module) {
    const AdapterConfig config = parse(with(keys));
    return AdapterRules(config, "test").targets(module);
  };
  EXPECT_TRUE(targets(R"("layers_to_transform": [0, 2])", kQ0));
  EXPECT_FALSE(targets(R"("layers_to_transform": 1)", kQ0));
  const char* expert = "model.layers.1.experts.0.q_proj";
  EXPECT_FALSE(targets(R"("layers_to_transform": 0)", expert));
  EXPECT_TRUE(targets(R"("layers_to_transform": 0, "layers_pattern": ["experts"])", expert));
  EXPECT_FALSE(targets(R"("layers_to_transform": 0, "layers_pattern": "h")", kQ0));
  // PEFT: a module named in full is meant whatever the layers.
  EXPECT_TRUE(
      targets(std::string(R"("layers_to_transform": 7, "target_modules": [")") + kQ0 + "\"]", kQ0));
}

}  // namespace
}  // namespace wick
