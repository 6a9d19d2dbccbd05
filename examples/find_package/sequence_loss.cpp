// SPDX-License-Identifier: Apache-2.0
/// Loss of a sequence under a causal model:  sequence_loss MODEL_FOLDER ACGTACGT
#include <gmamba/gmamba.h>

#include <cstdlib>
#include <iostream>

using namespace gmamba;

int main(int argc, char** argv) try {
  require(argc == 3, ErrorKind::kUsage, "usage: sequence_loss MODEL_FOLDER SEQUENCE");
  Context ctx;
  const Model model = load_model(argv[1], ctx.device());
  const std::string letters = argv[2];
  const auto length = static_cast<int64_t>(letters.size());

  Tensor tokens(ctx.device(), DType::kU8, {1, length});
  Tokenizer(model.vocabulary()).encode(letters, tokens.host<uint8_t>());
  Tensor hidden(ctx.device(), DType::kF32, {length, model.config().d_model});
  SequenceState state(model.config(), 1, ctx.device());  // carried on to read what follows
  model.forward(ctx, tokens, state, hidden.view().reshape({1, length, model.config().d_model}));
  Tensor logits(ctx.device(), DType::kF32, {length, model.config().vocab_size});
  model.logits(ctx, hidden, logits);

  Tensor targets(ctx.device(), DType::kI32, {length});  // each position predicts the next base
  for (size_t i = 0; i < letters.size(); ++i) {
    const int next = i + 1 < letters.size() ? tokens.host<uint8_t>()[i + 1] : -1;
    targets.host<int32_t>()[i] = model.vocabulary().is_base(next) ? next : kIgnoreTarget;
  }
  Tensor totals(ctx.device(), DType::kF64, {4});
  cross_entropy(ctx, {.logits = logits, .targets = targets, .totals = totals});
  const auto sums = totals.host<double>();
  std::cout << "gmamba " << version() << ": mean loss " << sums[0] / sums[1] << " over " << sums[3]
            << " bases\n";
} catch (const Error& error) {
  std::cerr << "sequence_loss: " << error.what() << '\n';
  return EXIT_FAILURE;
}
