// SPDX-License-Identifier: Apache-2.0
/// What a model must beat: the order-k Markov model of DNA, P(base | the k bases before it),
/// counted on training sequence with add-alpha smoothing. Every base is scored, as a language model
/// scores it: where fewer than k bases are known (start of a record, after an N) the order is what
/// is known. One training pass serves all orders up to k.
///
///   MarkovBaseline markov({.order = 8});
///   for each record:  markov.add(codes);
///   markov.finish();
///   for each held-out record:  score += markov.score(codes);
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "libmamba/base_codes.h"

namespace gmamba {

struct MarkovOptions {
  int order = 3;     ///< k, 0 to 12
  double alpha = 1;  ///< added to each count
};

/// The last bases read, so that a record can be given in parts.
struct MarkovContext {
  uint32_t word = 0;  ///< 2 bits a base, newest lowest
  int known = 0;      ///< bases in it, at most the order
};

struct BitsScore {
  double bits = 0;
  int64_t bases = 0;  ///< bases scored; anything but A, C, G, T has no score
  double bits_per_base() const { return bases > 0 ? bits / static_cast<double>(bases) : 0; }
  BitsScore& operator+=(const BitsScore& other) {
    bits += other.bits;
    bases += other.bases;
    return *this;
  }
};

/// Counts of one order: 4^order contexts by 4 bases. A 32-bit count that wraps goes on in
/// `wrapped`, so that genomes of any size fit in little memory.
struct CountTable {
  std::vector<uint32_t> low;
  std::unordered_map<size_t, uint64_t> wrapped;  ///< times that low[index] passed 2^32

  void increment(size_t index) {
    if (++low[index] == 0) ++wrapped[index];
  }
  uint64_t value(size_t index) const;
};

class MarkovBaseline {
 public:
  /// Throws kUsage when an option is out of range.
  explicit MarkovBaseline(MarkovOptions options);

  int order() const { return options_.order; }
  /// Counts base codes (base_codes.h), going on from `context`.
  void add(std::span<const uint8_t> codes, MarkovContext& context);
  /// The same for a whole record.
  void add(std::span<const uint8_t> codes);
  /// Turns counts into tables; no sequence can be added after it.
  void finish();

  /// Bits of each base under order `order` (-1: the trained one; at most that), going on from
  /// `context`.
  BitsScore score(std::span<const uint8_t> codes, MarkovContext& context, int order = -1) const;
  BitsScore score(std::span<const uint8_t> codes, int order = -1) const;
  /// Moves a context over bases that are given and not predicted.
  void advance(std::span<const uint8_t> codes, MarkovContext& context) const;

  /// Most memory used while counting and finishing.
  static int64_t peak_bytes(int order);

 private:
  MarkovOptions options_;
  std::vector<CountTable> counts_;        // counts_[j]: bases seen where exactly j were known
  std::vector<std::vector<float>> bits_;  // bits_[j][context * 4 + base], after finish()
};

}  // namespace gmamba
