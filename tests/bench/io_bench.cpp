// SPDX-License-Identifier: Apache-2.0
/// Reading and tokenising. The floor of a pass over letters in memory is a copy of as many bytes;
/// the floor of reading a plain file is read(2) of it. BM_ReadFasta reads the file that
/// GMAMBA_BENCH_FASTA names (scripts/bench_io.sh sets it), else one that it writes.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "io/genome.h"
#include "io/letters.h"
#include "io/sequence_reader.h"
#include "io/tokenizer.h"
#include "libmamba/core/random.h"

namespace gmamba::bench {
namespace {

std::string random_letters(int64_t length) {
  Random random(1, RandomUse::kTest);
  std::string letters(static_cast<size_t>(length), '\0');
  for (char& letter : letters) letter = "ACGTacgt"[random.bits() & 7];
  return letters;
}

/// The file to read; one of 64 Mb in two records when none was given, removed at exit.
class BenchFile {
 public:
  BenchFile() {
    if (const char* given = std::getenv("GMAMBA_BENCH_FASTA"); given != nullptr) {
      path_ = given;
      return;
    }
    written_ = true;
    path_ = (std::filesystem::temp_directory_path() /
             ("gmamba_bench." + std::to_string(::getpid()) + ".fa"))
                .string();
    std::ofstream out(path_, std::ios::binary);
    const std::string letters = random_letters(1 << 20);
    for (int record = 0; record < 2; ++record) {
      out << ">record" << record << "\n";
      for (int i = 0; i < 32; ++i) {
        for (size_t at = 0; at + 64 <= letters.size(); at += 64) {
          out.write(letters.data() + at, 64).put('\n');
        }
      }
    }
  }
  ~BenchFile() {
    std::error_code ignored;
    if (written_) std::filesystem::remove(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool written_ = false;
};

const std::string& bench_file() {
  static const BenchFile file;
  return file.path();
}

void BM_CopyFloor(benchmark::State& state) {
  const std::string letters = random_letters(state.range(0));
  std::string copy(letters.size(), '\0');
  for (auto _ : state) {
    std::memcpy(copy.data(), letters.data(), letters.size());
    benchmark::DoNotOptimize(copy.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_CopyFloor)->Arg(1 << 18);

void BM_CheckLetters(benchmark::State& state) {
  const std::string letters = random_letters(state.range(0));
  for (auto _ : state) {
    benchmark::DoNotOptimize(find_invalid_letter(letters));
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_CheckLetters)->Arg(100)->Arg(1 << 18);

void BM_Encode(benchmark::State& state) {
  const std::string letters = random_letters(state.range(0));
  std::vector<uint8_t> ids(letters.size());
  const Tokenizer tokenizer(Vocabulary::characters());
  for (auto _ : state) {
    benchmark::DoNotOptimize(tokenizer.encode(letters, ids));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Encode)->Arg(100)->Arg(1 << 18);

void BM_ReadFileFloor(benchmark::State& state) {
  std::vector<char> buffer(1 << 18);
  int64_t bytes = 0;
  for (auto _ : state) {
    const int file = ::open(bench_file().c_str(), O_RDONLY | O_CLOEXEC);
    ssize_t got = 0;
    while ((got = ::read(file, buffer.data(), buffer.size())) > 0) bytes += got;
    ::close(file);
  }
  state.SetBytesProcessed(bytes);
}
BENCHMARK(BM_ReadFileFloor)->Iterations(1)->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_ReadFasta(benchmark::State& state) {
  const Tokenizer tokenizer(Vocabulary::characters());
  std::vector<uint8_t> ids;
  int64_t bytes = 0;
  int64_t bases = 0;
  for (auto _ : state) {
    SequenceReaderOptions options;
    options.threads = static_cast<int>(state.range(0));
    const auto reader = open_sequences(bench_file(), options);
    SequencePart part;
    while (reader->next(part)) {
      ids.resize(part.bases.size());
      tokenizer.encode(part.bases, ids);
      benchmark::DoNotOptimize(ids.data());
    }
    bytes += reader->bytes_read();
    bases += reader->bases_read();
  }
  state.SetBytesProcessed(bytes);
  state.counters["bases/s"] =
      benchmark::Counter(static_cast<double>(bases), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_ReadFasta)
    ->ArgName("threads")
    ->Arg(1)
    ->Arg(2)
    ->Iterations(1)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void BM_GenomeWindows(benchmark::State& state) {
  const Genome genome({bench_file()}, GenomeOptions{.save_index = false});
  const int64_t length = genome.contigs(0)[0].length;
  const int64_t window = std::min(length, state.range(0));
  Random random(2, RandomUse::kTest);
  for (auto _ : state) {
    const auto start =
        static_cast<int64_t>(random.below(static_cast<uint64_t>(length - window + 1)));
    benchmark::DoNotOptimize(genome.read({0, 0, start, start + window}));
  }
  state.SetBytesProcessed(state.iterations() * window);
}
BENCHMARK(BM_GenomeWindows)->ArgName("bases")->Arg(1 << 10)->Arg(1 << 16)->Arg(1 << 20);

}  // namespace
}  // namespace gmamba::bench
