// SPDX-License-Identifier: Apache-2.0
#include "pipelines/embedding_writer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <vector>

#include "io/npy.h"
#include "io/table.h"

namespace gmamba {
namespace {

class NpyEmbeddings final : public EmbeddingWriter {
 public:
  NpyEmbeddings(const std::string& path, int64_t columns, DType dtype, int64_t bin, bool per_base)
      : array_(path, columns, dtype), index_(path + ".index.tsv"), bin_(bin), per_base_(per_base) {
    index_.write(tsv_line({"row", "id", "start", "end", "length"}));
  }

  void add_row(const std::string&, int64_t, int64_t, std::span<const float> values) override {
    array_.add_row(values);
  }

  /// The index has the record's length, so its lines wait for the end of the record.
  void end_record(const std::string& id, int64_t start, int64_t length) override {
    const int64_t step = per_base_ || bin_ == 0 ? std::max<int64_t>(1, length) : bin_;
    int64_t row = next_row_;
    for (int64_t at = 0; row < array_.rows(); at += step, ++row) {
      write_line(row, id, start + at, start + std::min(length, at + step), length);
      if (per_base_) break;
    }
    next_row_ = array_.rows();
  }

  int64_t rows() const override { return array_.rows(); }

  void commit() override {
    array_.commit();
    index_.commit();
  }

 private:
  void write_line(int64_t row, const std::string& id, int64_t start, int64_t end, int64_t length) {
    index_.write(tsv_line({std::to_string(row), id, std::to_string(start), std::to_string(end),
                           std::to_string(length)}));
  }

  NpyWriter array_;
  TextWriter index_;
  int64_t bin_;
  bool per_base_;
  int64_t next_row_ = 0;
};

class TsvEmbeddings final : public EmbeddingWriter {
 public:
  TsvEmbeddings(const std::string& path, int64_t columns) : table_(path) {
    std::vector<std::string> header = {"id", "start", "end"};
    for (int64_t i = 0; i < columns; ++i) header.push_back("e" + std::to_string(i));
    table_.write(tsv_line(header));
  }

  void add_row(const std::string& id, int64_t start, int64_t end,
               std::span<const float> values) override {
    fields_.assign({id, std::to_string(start), std::to_string(end)});
    std::array<char, 32> text{};
    for (const float value : values) {
      const auto [at, code] = std::to_chars(text.data(), text.data() + text.size(), value);
      fields_.emplace_back(text.data(), at);
    }
    table_.write(tsv_line(fields_));
    ++rows_;
  }
  void end_record(const std::string&, int64_t, int64_t) override {}
  int64_t rows() const override { return rows_; }
  void commit() override { table_.commit(); }

 private:
  TextWriter table_;
  std::vector<std::string> fields_;
  int64_t rows_ = 0;
};

}  // namespace

std::unique_ptr<EmbeddingWriter> npy_embeddings(const std::string& path, int64_t columns,
                                                DType dtype, int64_t bin, bool per_base) {
  return std::make_unique<NpyEmbeddings>(path, columns, dtype, bin, per_base);
}

std::unique_ptr<EmbeddingWriter> tsv_embeddings(const std::string& path, int64_t columns) {
  return std::make_unique<TsvEmbeddings>(path, columns);
}

}  // namespace gmamba
