// SPDX-License-Identifier: Apache-2.0
/// Prints the tokens that a model would read for a sequence:  sequence_loss ACGTN
#include <gmamba/gmamba.h>

#include <iostream>

int main(int argc, char** argv) {
  const std::string sequence = argc > 1 ? argv[1] : "ACGTN";
  const gmamba::Vocabulary vocabulary = gmamba::Vocabulary::characters();
  std::cout << "gmamba " << gmamba::version() << ", " << vocabulary.size() << " tokens\n";
  for (const char base : sequence) {
    const int id = vocabulary.id_of_byte[static_cast<unsigned char>(base)];
    std::cout << base << '\t' << id << '\n';
  }
}
