// SPDX-License-Identifier: Apache-2.0
/// FASTA and FASTQ readers on arbitrary bytes. Reading gives the same for every buffer size and
/// number of threads; random access, where it is possible, gives the same bases as the stream.
/// An input that begins with 'g' or 'b' has the rest packed by gzip or bgzip first.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "tests/fuzz/fuzz_util.h"
#include "tests/io/packing.h"

namespace {

using namespace gmamba;
using fuzz::expect;
using fuzz::Outcome;

std::string unpacked_input(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  if (bytes.starts_with('g')) return test::gzip(std::string_view(bytes).substr(1));
  if (bytes.starts_with('b')) {
    const size_t block = bytes.size() % 3 == 0 ? 7 : 100;
    return test::bgzip(std::string_view(bytes).substr(1), block);
  }
  return bytes;
}

void check_random_access(const std::string& bytes, const Outcome& stream) {
  const int descriptor = ::memfd_create("fuzz", MFD_CLOEXEC);
  expect(descriptor >= 0, "memory for a file");
  expect(::write(descriptor, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()),
         "memory for the bytes");
  try {
    const Genome genome({"/proc/self/fd/" + std::to_string(descriptor)},
                        GenomeOptions{.save_index = false});
    expect(stream.error.empty(), "what has an index can be read");
    size_t with_bases = 0;
    for (const SequenceRecord& record : stream.records) with_bases += record.bases.empty() ? 0 : 1;
    expect(with_bases == genome.contigs(0).size(), "every record with bases is a contig");
    fuzz::expect_same_bases(genome, stream.records, true);
  } catch (const Error& error) {
    const auto says = [&](std::string_view part) {
      return error.message().find(part) != std::string::npos;
    };
    expect(!stream.error.empty() || says("unequal length") || says("given twice") ||
               says("no random access") || says("FASTQ") || says("hold no bases"),
           "what can be read has an index, or a reason why not");
  }
  ::close(descriptor);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes = unpacked_input(data, size);
  const Outcome whole = fuzz::read_stream(bytes, 1 << 16, 1 << 16, 1);
  const auto variant = static_cast<int64_t>(size);
  expect(whole == fuzz::read_stream(bytes, 16 + variant % 50, 1 + variant % 13, 1),
         "buffers do not matter");
  if (size % 64 == 1) {
    expect(whole == fuzz::read_stream(bytes, 4096, 4096, 2), "threads do not matter");
  }
  check_random_access(bytes, whole);
  return 0;
}
