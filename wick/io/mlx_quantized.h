// Weights that MLX has quantised (mlx-lm, `mode: affine`), presented as plain ones.
//
// A quantised module M has three tensors: `M.weight` U32 [out, in * bits / 32], `M.scales` and
// `M.biases` [out, in / group_size]. Each row of M.weight is a string of bits, lowest first: value
// i lies at bit i * bits, and in group g = i / group_size means scales[g] * value + biases[g].
// config.json says under "quantization" (mlx-lm repeats it as "quantization_config") which bits and
// group_size hold, for all modules and for single ones; `false` there means not quantised.
// Source: mlx.core.quantize and mlx_lm.utils.load_model.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "wick/io/safetensors.h"
#include "wick/io/weight_source.h"

namespace wick {

struct MlxFormat {
  int bits = 0;        // 2, 3, 4, 5, 6 or 8
  int group_size = 0;  // 32, 64 or 128
};

struct MlxQuantization {
  MlxFormat format;
  // Modules with a format of their own; none: not quantised.
  std::map<std::string, std::optional<MlxFormat>, std::less<>> modules;
};

// What a model's config.json says; nothing where its weights are plain. Throws Error with `name`
// (the file), the key and the value where wick cannot read such weights: another method (named),
// another mode, numbers out of range.
std::optional<MlxQuantization> read_mlx_quantization(const nlohmann::json& config,
                                                     const std::string& name);

// The tensors of `files` with every quantised module as one `M.weight` [out, in] in the number type
// of its scales: computed in f32, rounded once, when it is loaded. Every module is checked here;
// errors name the file and the tensor.
std::unique_ptr<WeightSource> dequantized_mlx_weights(std::string description,
                                                      SafetensorsFiles files,
                                                      const MlxQuantization& quantization);

}  // namespace wick
