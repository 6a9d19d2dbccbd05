// SPDX-License-Identifier: Apache-2.0
/// The CUDA backend. Devices are numbered among those that this build can use (sm_80 and newer).
/// Streams are of the kind that waits for the default stream and is waited for by it, so that
/// tensors made, cloned or cleared without a stream are ordered with the work of every context.
#include <cuda_runtime_api.h>

#include <optional>
#include <utility>
#include <vector>

#include "libmamba/core/device.h"
#include "libmamba/core/error.h"
#include "libmamba/core/gpu_use.h"
#include "libmamba/core/recording.h"
#include "libmamba/core/text.h"

namespace gmamba::detail {
namespace {

constexpr int kLeastMajor = 8;  // compute capability

void check(cudaError_t result, const char* what) {
  if (result != cudaSuccess) [[unlikely]] {
    cudaGetLastError();  // a failed call must not be reported again by the next launch
    fail(ErrorKind::kDevice, what, ": ", cudaGetErrorString(result), " (", cudaGetErrorName(result),
         ")");
  }
}

std::string version_text(int version) { return concat(version / 1000, ".", version % 1000 / 10); }

/// The GPUs that can be used, or why there are none.
struct Inventory {
  std::vector<int> ordinals;
  std::string why_none;

  Inventory() {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
      why_none = "this machine has no NVIDIA driver; run on --device cpu";
      cudaGetLastError();
      return;
    }
    int count = 0;
    const cudaError_t result = cudaGetDeviceCount(&count);
    cudaGetLastError();
    if (result == cudaErrorInsufficientDriver) {
      why_none = concat("the NVIDIA driver is too old: it supports CUDA ", version_text(driver),
                        ", this build needs ", version_text(CUDART_VERSION),
                        "; update the driver or run on --device cpu");
    } else if (result == cudaErrorNoDevice || (result == cudaSuccess && count == 0)) {
      why_none = "this machine shows no NVIDIA GPU; run on --device cpu";
    } else if (result != cudaSuccess) {
      why_none = concat("the NVIDIA driver doesn't answer: ", cudaGetErrorString(result),
                        "; run on --device cpu");
    } else {
      choose(count);
    }
  }

 private:
  void choose(int count) {
    for (int i = 0; i < count; ++i) {
      cudaDeviceProp properties{};
      if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
        cudaGetLastError();
        continue;
      }
      if (properties.major >= kLeastMajor) {
        ordinals.push_back(i);
      } else if (why_none.empty()) {
        why_none = concat("the GPU ", properties.name, " is of compute capability ",
                          properties.major, ".", properties.minor, ", gmamba needs ", kLeastMajor,
                          ".0 (A100, RTX 30) or newer; run on --device cpu");
      }
    }
    if (ordinals.empty() && why_none.empty()) {
      why_none = "no GPU of this machine answers; run on --device cpu";
    }
  }
};

class CudaBackend final : public Backend {
 public:
  int device_count() const override { return static_cast<int>(inventory().ordinals.size()); }
  std::string why_none() const override {
    return device_count() > 0 ? std::string() : inventory().why_none;
  }

  std::string device_name(int index) const override {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, ordinal(index)), "reading the name of the GPU");
    return properties.name;
  }

  void* allocate(int index, int64_t bytes) override {
    const UnrecordedCall unrecorded("allocating GPU memory");
    use(index);
    void* data = nullptr;
    const cudaError_t result = cudaMalloc(&data, static_cast<size_t>(bytes > 0 ? bytes : 1));
    if (result == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free_bytes = 0;
      size_t total_bytes = 0;
      check(cudaMemGetInfo(&free_bytes, &total_bytes), "reading the GPU's free memory");
      fail(ErrorKind::kDevice, "out of GPU memory: asked for ", format_bytes(bytes), ", ",
           format_bytes(static_cast<int64_t>(free_bytes)), " of ",
           format_bytes(static_cast<int64_t>(total_bytes)),
           " are free; use a smaller --segment or --batch-tokens");
    }
    check(result, "allocating GPU memory");
    note_allocated(index, data, bytes);
    return data;
  }

  int64_t free_bytes(int index) const override { return memory_info(index).first; }
  int64_t total_bytes(int index) const override { return memory_info(index).second; }
  std::optional<double> busy_share(int index, uint64_t& since) const override {
    char bus_id[32] = {};
    check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id,
                                inventory().ordinals[static_cast<size_t>(index)]),
          "asking for the place of a GPU");
    return gpu_busy_share(bus_id, since);
  }

  void release(int index, void* data) noexcept override {
    note_released(index, data);
    if (cudaSetDevice(inventory().ordinals[static_cast<size_t>(index)]) != cudaSuccess) return;
    if (!RecordingLock::held_here()) {
      const UnrecordedCall unrecorded("releasing GPU memory");
      cudaFree(data);
      return;
    }
    // must go even so, as when an error ends a recording
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaFree(data);
    cudaThreadExchangeStreamCaptureMode(&mode);
  }

  void fill_zero(int index, Stream stream, void* data, int64_t bytes) override {
    if (bytes == 0) return;
    const std::optional<UnrecordedCall> unrecorded = on_default(stream, "clearing GPU memory");
    use(index);
    check(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), native(stream)),
          "clearing GPU memory");
  }
  void copy_in(int index, Stream stream, void* to, const void* host, int64_t bytes) override {
    copy(index, stream, to, host, bytes, cudaMemcpyHostToDevice);
  }
  void copy_out(int index, Stream stream, void* host, const void* from, int64_t bytes) override {
    copy(index, stream, host, from, bytes, cudaMemcpyDeviceToHost);
  }
  void copy_within(int index, Stream stream, void* to, const void* from, int64_t bytes) override {
    copy(index, stream, to, from, bytes, cudaMemcpyDeviceToDevice);
  }

  void make_current(int index) override { use(index); }
  Stream create_stream(int index) override {
    use(index);
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamDefault), "creating a CUDA stream");
    return stream;
  }
  void destroy_stream(int index, Stream stream) noexcept override {
    if (cudaSetDevice(inventory().ordinals[static_cast<size_t>(index)]) == cudaSuccess) {
      cudaStreamDestroy(native(stream));
    }
  }
  void synchronize(int index, Stream stream) override {
    const std::optional<UnrecordedCall> unrecorded = on_default(stream, "waiting for the GPU");
    use(index);
    check(cudaStreamSynchronize(native(stream)), "waiting for the GPU");
  }

  void* allocate_host(int index, int64_t bytes) override {
    use(index);
    void* data = nullptr;
    check(cudaHostAlloc(&data, static_cast<size_t>(bytes > 0 ? bytes : 1), cudaHostAllocDefault),
          "allocating page-locked memory");
    return data;
  }
  void release_host(int index, void* data) noexcept override {
    if (cudaSetDevice(inventory().ordinals[static_cast<size_t>(index)]) == cudaSuccess) {
      cudaFreeHost(data);
    }
  }

  Event create_event(int index) override {
    use(index);
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating a CUDA event");
    return event;
  }
  void destroy_event(int index, Event event) noexcept override {
    if (cudaSetDevice(inventory().ordinals[static_cast<size_t>(index)]) == cudaSuccess) {
      cudaEventDestroy(native_event(event));
    }
  }
  void record(int index, Stream stream, Event event) override {
    use(index);
    check(cudaEventRecord(native_event(event), native(stream)), "recording a CUDA event");
  }
  void wait_for(int index, Stream stream, Event event) override {
    use(index);
    check(cudaStreamWaitEvent(native(stream), native_event(event), 0), "ordering CUDA streams");
  }
  void synchronize_event(int index, Event event) override {
    use(index);
    check(cudaEventSynchronize(native_event(event)), "waiting for the GPU");
  }

 private:
  static cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }
  static cudaEvent_t native_event(Event event) { return static_cast<cudaEvent_t>(event); }

  /// Keeps recordings away from a call on the default stream.
  static std::optional<UnrecordedCall> on_default(Stream stream, const char* what) {
    std::optional<UnrecordedCall> unrecorded;
    if (stream == nullptr) unrecorded.emplace(what);
    return unrecorded;
  }

  /// Free and all bytes.
  static std::pair<int64_t, int64_t> memory_info(int index) {
    use(index);
    size_t free_now = 0;
    size_t total = 0;
    check(cudaMemGetInfo(&free_now, &total), "reading the GPU's free memory");
    return {static_cast<int64_t>(free_now), static_cast<int64_t>(total)};
  }

  static const Inventory& inventory() {
    static const Inventory found;
    return found;
  }
  static int ordinal(int index) {
    const Inventory& found = inventory();
    require(index >= 0 && static_cast<size_t>(index) < found.ordinals.size(),
            ErrorKind::kUnsupported,
            found.ordinals.empty() ? found.why_none : concat("there is no GPU cuda:", index));
    return found.ordinals[static_cast<size_t>(index)];
  }
  static void use(int index) { check(cudaSetDevice(ordinal(index)), "choosing the GPU"); }

  static void copy(int index, Stream stream, void* to, const void* from, int64_t bytes,
                   cudaMemcpyKind kind) {
    if (bytes == 0) return;
    const std::optional<UnrecordedCall> unrecorded = on_default(stream, "copying");
    use(index);
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, native(stream)),
          "copying to or from the GPU");
  }
};

}  // namespace

Backend& cuda_backend() {
  static CudaBackend backend;
  return backend;
}

}  // namespace gmamba::detail
