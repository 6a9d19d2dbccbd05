// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.h"

#include <gtest/gtest.h>

#include <numeric>

#include "io/letters.h"
#include "tests/io/io_test_util.h"

namespace gmamba {
namespace {

/// A vocabulary that tells case apart, so the fast table does not fit it.
Vocabulary case_vocabulary() {
  Vocabulary vocabulary = Vocabulary::from_tokens({"A", "C", "G", "T", "N", "a", "-"});
  vocabulary.id_of_byte['a'] = 5;
  vocabulary.id_of_byte['-'] = 6;
  return vocabulary;
}

TEST(Letters, EveryByteAtEveryPlaceAndLength) {
  const std::string_view known = "ACGTURYKMSWBDHVNacgturykmswbdhvn";
  for (int byte = 0; byte < 256; ++byte) {
    const bool letter = known.find(static_cast<char>(byte)) != std::string_view::npos;
    EXPECT_EQ(is_sequence_letter(static_cast<unsigned char>(byte)), letter) << byte;
    const bool printable_byte = byte > 32 && byte < 127;
    for (const size_t length : {1, 3, 16, 31, 32, 33, 64, 65, 130}) {
      for (const size_t place : {size_t{0}, length / 2, length - 1}) {
        std::string text(length, 'A');
        text[place] = static_cast<char>(byte);
        EXPECT_EQ(find_invalid_letter(text), letter ? length : place) << byte;
        EXPECT_EQ(find_unprintable(text), printable_byte ? length : place) << byte;
      }
    }
  }
  EXPECT_EQ(find_invalid_letter(""), 0u);
}

TEST(Tokenizer, EncodesAsTheVocabularySays) {
  for (const Vocabulary& vocabulary :
       {Vocabulary::characters(), Vocabulary::from_tokens({"[UNK]", "T", "G", "C", "A"}),
        case_vocabulary()}) {
    const Tokenizer tokenizer(vocabulary);
    std::string letters(256 * 3 + 7, '\0');
    std::iota(letters.begin(), letters.end(), '\0');
    for (size_t length = 0; length <= letters.size(); length += 13) {
      const std::string_view some = std::string_view(letters).substr(letters.size() - length);
      std::vector<uint8_t> ids(length);
      int64_t missing = 0;
      const int64_t counted = tokenizer.encode(some, ids);
      for (size_t i = 0; i < length; ++i) {
        const int id = vocabulary.id_of_byte[static_cast<unsigned char>(some[i])];
        missing += id < 0 ? 1 : 0;
        ASSERT_EQ(ids[i], id < 0 ? vocabulary.n : id) << "byte " << int(some[i]);
      }
      EXPECT_EQ(counted, missing);
    }
  }
}

TEST(Tokenizer, RefusesOtherSizes) {
  const Tokenizer tokenizer(Vocabulary::characters());
  std::vector<uint8_t> ids(3);
  EXPECT_THROW(tokenizer.encode("ACGT", ids), Error);
  EXPECT_THROW(Tokenizer(case_vocabulary()).encode("ACGT", ids), Error);
}

TEST(Tokenizer, DecodesAndComplements) {
  const Tokenizer tokenizer(Vocabulary::characters());
  const std::string letters = "ACGTNUacgtRyX";
  std::vector<uint8_t> ids(letters.size());
  EXPECT_EQ(tokenizer.encode(letters, ids), 1);
  EXPECT_EQ(tokenizer.decode(ids), "ACGTNTACGTNNN");
  tokenizer.reverse_complement(ids);
  EXPECT_EQ(tokenizer.decode(ids), "NNNACGTANACGT");
  tokenizer.reverse_complement(ids);
  EXPECT_EQ(tokenizer.decode(ids), "ACGTNTACGTNNN");
  ids = {0, 4, 6, 200};
  EXPECT_EQ(tokenizer.decode(ids), "????");
}

TEST(Tokenizer, ComplementOfTokensIsTheOneOfLetters) {
  const Tokenizer tokenizer(Vocabulary::characters());
  const std::string letters = test::random_bases(1001, 3, "ACGTURYKMSWBDHVNacgturykmswbdhvn");
  std::vector<uint8_t> forward(letters.size());
  std::vector<uint8_t> backward(letters.size());
  tokenizer.encode(letters, forward);
  tokenizer.encode(reverse_complement(letters), backward);
  tokenizer.reverse_complement(forward);
  EXPECT_EQ(forward, backward);
}

TEST(Tokenizer, ReverseComplementOfLetters) {
  EXPECT_EQ(reverse_complement("AACGTTUryKMswBDHVNn"), "nNBDHVwsKMryAAACGTT");
  EXPECT_EQ(reverse_complement("acg"), "cgt");
  EXPECT_EQ(reverse_complement("A-*C"), "G*-T");
  EXPECT_EQ(reverse_complement(""), "");
  const std::string twice = test::random_bases(777, 4, "ACGTRYKMSWBDHVNacgtrykmswbdhvn");
  EXPECT_EQ(reverse_complement(reverse_complement(twice)), twice);
}

}  // namespace
}  // namespace gmamba
