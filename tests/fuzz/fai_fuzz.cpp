// SPDX-License-Identifier: Apache-2.0
/// A FASTA text, a zero byte, and a .fai for it: whatever the index says, contigs are read with
/// the bases that the stream gives, or refused.
#include <stdlib.h>

#include <cstdint>
#include <filesystem>

#include "io/fasta_index.h"
#include "tests/fuzz/fuzz_util.h"
#include "tests/io/packing.h"

namespace {

using namespace gmamba;
using fuzz::expect;

/// Files in memory where there is such a folder.
class Folder {
 public:
  Folder() {
    std::string pattern = std::filesystem::exists("/dev/shm") ? "/dev/shm/gmamba_fuzz.XXXXXX"
                                                              : "/tmp/gmamba_fuzz.XXXXXX";
    expect(::mkdtemp(pattern.data()) != nullptr, "a folder");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

bool is_regular(const std::string& fasta) {
  try {
    build_fasta_index(open_bytes_memory(fasta, "x"), InvalidLetters::kError);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const size_t zero = bytes.find('\0');
  if (zero == std::string::npos) return 0;
  const std::string fasta = bytes.substr(0, zero);
  const std::string index = bytes.substr(zero + 1);
  const bool packed = index.size() % 2 == 1;
  const std::string path = folder.file("x.fa");
  test::overwrite_file(path, packed ? test::bgzip(fasta, 50) : fasta);
  test::overwrite_file(path + ".fai", index);
  const fuzz::Outcome stream = fuzz::read_stream(fasta, 1 << 16, 1 << 16, 1);
  try {
    const Genome genome({path}, GenomeOptions{.save_index = false, .compare_bytes = 0});
    if (stream.error.empty()) {
      fuzz::expect_same_bases(genome, stream.records, is_regular(fasta));
    }
  } catch (const Error& error) {
    expect(error.kind() == ErrorKind::kInput || error.kind() == ErrorKind::kUnsupported,
           "bad bytes are an input error");
  }
  return 0;
}
