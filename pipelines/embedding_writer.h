// SPDX-License-Identifier: Apache-2.0
/// Where embeddings go: a NumPy array with an index beside it, or a table.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "libmamba/core/dtype.h"

namespace gmamba {

/// One vector after the other, in input order; nothing is at its final name before commit().
class EmbeddingWriter {
 public:
  virtual ~EmbeddingWriter() = default;
  /// [start, end) in the coordinates of the record's contig.
  virtual void add_row(const std::string& id, int64_t start, int64_t end,
                       std::span<const float> values) = 0;
  virtual void end_record(const std::string& id, int64_t start, int64_t length) = 0;
  virtual int64_t rows() const = 0;
  virtual void commit() = 0;
};

/// `path` of shape (rows, columns) and `<path>.index.tsv`: row, id, start, end, length. With
/// `per_base` a line of the index covers a record's rows, `row` being the first; else it is of one
/// row, of the bases [start, end).
std::unique_ptr<EmbeddingWriter> npy_embeddings(const std::string& path, int64_t columns,
                                                DType dtype, int64_t bin, bool per_base);

/// A table with columns id, start, end, e0, e1, ...; "" and "-" are stdout. Values as short as they
/// can be and read back the same.
std::unique_ptr<EmbeddingWriter> tsv_embeddings(const std::string& path, int64_t columns);

}  // namespace gmamba
