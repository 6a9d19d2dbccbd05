// SPDX-License-Identifier: Apache-2.0
/// Loss of a causal model on given stretches of genomes, read once from end to end with the state
/// carried, and of the built-in baseline on exactly the same bases.
#pragma once

#include <vector>

#include "io/genome.h"
#include "io/tokenizer.h"
#include "libmamba/model.h"
#include "libmamba/segmented.h"

namespace gmamba {

/// Streams `interval` in segments. Every A, C, G, T but the first base of the interval is
/// predicted; the loss is the softmax over the whole vocabulary.
LossTotals stream_loss(Context& ctx, const Model& model, const Genome& genome,
                       const Tokenizer& tokenizer, const Interval& interval, int64_t segment);

/// Bits per base of Markov models of the given orders trained on `train`, on the bases of `valid`
/// that stream_loss predicts.
std::vector<double> markov_bits_per_base(const Genome& genome, const Tokenizer& tokenizer,
                                         const std::vector<Interval>& train,
                                         const std::vector<Interval>& valid,
                                         const std::vector<int>& orders);

}  // namespace gmamba
