// SPDX-License-Identifier: Apache-2.0
#include "pipelines/sequence_input.h"

#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

class SequenceInputTest : public PipelineTest {
 protected:
  /// Records read to the end of the input; `bases` gets their total length.
  int64_t read_all(const std::vector<NamedSequence>& records, int64_t& bases) {
    InputOptions input;
    input.inputs = {write_fasta("in.fa", records)};
    TokenSource source(input, Tokenizer(Vocabulary::characters()), 1, nullptr);
    TokenPart part;
    int64_t ends = 0;
    bases = 0;
    while (source.next(part)) {
      bases += static_cast<int64_t>(part.tokens.size());
      ends += part.last;
    }
    return ends;
  }
};

/// Blocks hand over at 2^18 tokens or 4096 parts: inputs that end on that border, and beside it.
TEST_F(SequenceInputTest, EndsWhereverABlockEnds) {
  const int64_t block = int64_t{1} << 18;
  for (const int64_t length : {block - 1, block, block + 1, 2 * block}) {
    int64_t bases = 0;
    EXPECT_EQ(read_all({{"first", random_bases(length, 3)}}, bases), 1);
    EXPECT_EQ(bases, length);
  }
  for (const size_t count : {size_t{4095}, size_t{4096}, size_t{4097}, size_t{8192}}) {
    int64_t bases = 0;
    EXPECT_EQ(read_all(std::vector<NamedSequence>(count, {"r", "ACG"}), bases),
              static_cast<int64_t>(count));
    EXPECT_EQ(bases, static_cast<int64_t>(count) * 3);
  }
}

TEST_F(SequenceInputTest, RegionsHaveLettersAsNToo) {
  const Tokenizer tokenizer(Vocabulary::characters());
  InputOptions input;
  input.inputs = {write_fasta("odd.fa", {{"r", "ACGTA!GT"}})};
  input.regions = "r:5-7";
  EXPECT_THROW(TokenSource(input, tokenizer, 1, nullptr), Error);
  input.invalid = InvalidLetters::kN;
  TokenSource source(input, tokenizer, 1, nullptr);
  TokenPart part;
  ASSERT_TRUE(source.next(part));
  std::vector<uint8_t> expected(3);
  tokenizer.encode("ANG", expected);
  EXPECT_EQ(part.tokens, expected);
}

}  // namespace
}  // namespace gmamba::test
