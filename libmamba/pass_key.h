// SPDX-License-Identifier: Apache-2.0
/// Names of a model's passes for replay.h: all that the kernels of a pass get besides values in
/// arrays and scratch.
#pragma once

#include <bit>
#include <functional>
#include <utility>

#include "kernels/replay.h"
#include "libmamba/model.h"

namespace gmamba {

/// True where the host takes longer to launch a pass over so many tokens than the GPU to do it, or
/// nearly so.
inline bool is_short(const Context& ctx, int64_t tokens) {
  return !ctx.device().is_cpu() && tokens <= 32768;
}

/// The model: numbers that say what its kernels are and where its parameters lie in their buffer.
inline void add_to(PassKey& key, const Model& model) {
  const ModelConfig& c = model.config();
  for (const int64_t number :
       {c.vocab_size, c.d_model, c.n_layers, c.d_state, c.d_conv, c.expand, c.dt_rank,
        std::bit_cast<int64_t>(c.norm_epsilon), static_cast<int64_t>(c.labels.size()),
        static_cast<int64_t>(c.task), static_cast<int64_t>(c.pool)}) {
    key.push_back(number);
  }
  key.push_back(c.use_bias + 2 * c.use_conv_bias + 4 * c.tie_embeddings);
  add_to(key, model.parameters().flat());
}

inline void add_to(PassKey& key, const SequenceState& state) {
  add_to(key, state.all_conv());
  add_to(key, state.all_ssm());
}

/// Of Model::forward with these arguments.
inline PassKey forward_key(const Model& model, ConstTensorView tokens, const SequenceState& state,
                           ConstTensorView hidden, int layer) {
  PassKey key;
  key.reserve(64);
  add_to(key, model);
  add_to(key, tokens);
  add_to(key, state);
  add_to(key, hidden);
  key.push_back(layer);
  return key;
}

}  // namespace gmamba
