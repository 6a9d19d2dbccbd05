// SPDX-License-Identifier: Apache-2.0
/// What a model is: its sizes, the choices that change the function it computes, and what it was
/// made for. Reads and writes the two published `config.json` dialects and keeps the one it came
/// in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/pool.h"
#include "libmamba/core/json.h"

namespace gmamba {

/// Which keys `config.json` uses: `hidden_size`, ... (transformers) or `d_model`, ... (mamba_ssm).
enum class ConfigDialect { kTransformers, kMambaSsm };

/// What a fine-tuned model predicts; `none` for a language model alone.
enum class TaskKind { kNone, kClassification, kRegression };

struct ModelConfig {
  std::string arch = "mamba";
  ConfigDialect dialect = ConfigDialect::kTransformers;
  int64_t vocab_size = 16;  ///< V, rows of the embedding, padding included
  int64_t d_model = 256;    ///< D
  int64_t n_layers = 8;
  int64_t d_state = 16;  ///< N
  int64_t d_conv = 4;    ///< K
  int64_t expand = 2;
  int64_t dt_rank = 16;  ///< R; auto_dt_rank(d_model) unless given
  double norm_epsilon = 1e-5;
  bool use_bias = false;  ///< bias of in_proj and out_proj
  bool use_conv_bias = true;
  bool tie_embeddings = true;  ///< the LM head is the embedding table
  bool residual_in_fp32 = true;
  // initialisation only
  double dt_min = 0.001, dt_max = 0.1, dt_init_floor = 1e-4, dt_scale = 1.0;
  int pad_token = 4, bos_token = 2, eos_token = 1;

  // what gmamba adds, under the key "gmamba"
  TaskKind task = TaskKind::kNone;
  std::vector<std::string> labels;  ///< class names, in order of the head's rows
  PoolMode pool = PoolMode::kMean;  ///< how a sequence becomes one vector for the head
  bool both_strands = false;        ///< predictions average both strands
  int64_t trained_context = 0;      ///< tokens that gradients reached over, 0 unknown

  bool operator==(const ModelConfig&) const = default;

  int64_t d_inner() const { return expand * d_model; }  ///< E
  static int64_t auto_dt_rank(int64_t d_model) { return (d_model + 15) / 16; }
  /// Throws kInput naming the field when a size is out of range (all sizes at least 1 and at most
  /// 2^24, E too; layers at most 2^14, N <= 64, K in 1..4, V <= 256; token ids below V, -1 for
  /// none), when task and labels do not fit, or when the parameters do not fit memory addressing.
  void validate() const;
};

/// From a parsed config.json, `name` for messages. Throws kUnsupported for other model types,
/// LayerNorm, MLPs, attention layers and the like, and kInput for missing or ill-typed keys.
ModelConfig parse_config(const Json& json, const std::string& name);
/// In the dialect of the config.
Json to_json(const ModelConfig& config);

}  // namespace gmamba
