// SPDX-License-Identifier: Apache-2.0
/// The CUDA backend of a build without CUDA: it counts no devices and says why.
#include "libmamba/core/device.h"
#include "libmamba/core/error.h"

namespace gmamba::detail {
namespace {

constexpr const char* kReason = "this build of gmamba has no CUDA support; run on --device cpu";

class NoCudaBackend final : public Backend {
 public:
  int device_count() const override { return 0; }
  std::string why_none() const override { return kReason; }
  std::string device_name(int) const override { refuse(); }
  void* allocate(int, int64_t) override { refuse(); }
  int64_t free_bytes(int) const override { return 0; }
  int64_t total_bytes(int) const override { return 0; }
  void release(int, void*) noexcept override {}
  void* allocate_host(int, int64_t) override { refuse(); }
  void release_host(int, void*) noexcept override {}
  Event create_event(int) override { refuse(); }
  void destroy_event(int, Event) noexcept override {}
  void record(int, Stream, Event) override { refuse(); }
  void wait_for(int, Stream, Event) override { refuse(); }
  void synchronize_event(int, Event) override { refuse(); }
  void fill_zero(int, Stream, void*, int64_t) override { refuse(); }
  void copy_in(int, Stream, void*, const void*, int64_t) override { refuse(); }
  void copy_out(int, Stream, void*, const void*, int64_t) override { refuse(); }
  void copy_within(int, Stream, void*, const void*, int64_t) override { refuse(); }
  void make_current(int) override { refuse(); }
  Stream create_stream(int) override { refuse(); }
  void destroy_stream(int, Stream) noexcept override {}
  void synchronize(int, Stream) override { refuse(); }

 private:
  [[noreturn]] static void refuse() { fail(ErrorKind::kUnsupported, kReason); }
};

}  // namespace

Backend& cuda_backend() {
  static NoCudaBackend backend;
  return backend;
}

}  // namespace gmamba::detail
