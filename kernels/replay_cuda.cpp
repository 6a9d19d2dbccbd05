// SPDX-License-Identifier: Apache-2.0
/// Recordings are CUDA graphs captured from the context's stream. Of a forward pass of 8 layers, on
/// one host: 0.68 ms to launch its kernels, 0.81 to record, prepare and launch it, 0.006 to launch
/// it again.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string_view>
#include <utility>

#include "kernels/cuda_companion.h"
#include "kernels/cuda_replay.h"
#include "kernels/replay_table.h"
#include "libmamba/core/recording.h"

namespace gmamba::cuda {
namespace {

/// Recordings of a context at once. One of a forward pass of 8 layers takes 0.1 MB of the GPU.
constexpr int64_t kMostRecordings = 64;

cudaStream_t native_stream(const Context& ctx) {
  ctx.backend().make_current(ctx.device().index);
  return static_cast<cudaStream_t>(ctx.stream());
}

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();
  fail(ErrorKind::kDevice, what, ": ", cudaGetErrorString(result));
}

class Recording {
 public:
  explicit Recording(cudaGraphExec_t graph) : graph_(graph) {}
  Recording(Recording&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
  Recording& operator=(Recording&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~Recording() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }
  cudaGraphExec_t get() const { return graph_; }

 private:
  cudaGraphExec_t graph_;
};

/// A graph of what is given to a stream between its construction and end().
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
          "beginning to record a GPU's work");
    capturing_ = true;
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  ~Capture() {
    if (capturing_) cudaStreamEndCapture(stream_, &graph_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
    cudaGetLastError();  // of a capture that failed
  }

  Recording end() {
    capturing_ = false;
    check(cudaStreamEndCapture(stream_, &graph_), "recording a GPU's work");
    cudaGraphExec_t ready = nullptr;
    check(cudaGraphInstantiate(&ready, graph_, 0), "preparing recorded work");
    return Recording(ready);
  }

 private:
  cudaStream_t stream_;
  bool capturing_ = false;
  cudaGraph_t graph_ = nullptr;
};

bool allowed_by_environment() {
  const char* const graphs = std::getenv("GMAMBA_CUDA_GRAPHS");
  return (graphs == nullptr || std::string_view(graphs) != "0") &&
         std::getenv("GMAMBA_CUDA_SYNC") == nullptr;
}

/// Of one context.
class Recordings {
 public:
  explicit Recordings(const Context& ctx) : device_(ctx.device().index), stream_(ctx.stream()) {}
  Recordings(const Recordings&) = delete;
  Recordings& operator=(const Recordings&) = delete;
  ~Recordings() { clear(); }

  void allow(bool allowed) {
    allowed_ = allowed;
    if (!allowed) clear();
  }

  void replay(Context& ctx, PassKey key, const std::function<void()>& pass) {
    // a pass within one that is recorded is part of it
    if (!allowed_ || ctx.arena().held_bytes() == 0 || RecordingLock::held_here()) {
      ++counts_.called;
      return pass();
    }
    key.push_back(scratch_place(ctx.arena()));
    auto& entry = table_.use(std::move(key));
    if (table_.wants(entry, [&] { wait(); })) record(ctx, entry, pass);
    if (entry.recording) {
      check(cudaGraphLaunch(entry.recording->get(), native_stream(ctx)), "replaying recorded work");
      ++counts_.replayed;
      return;
    }
    ++entry.calls;
    ++counts_.called;
    pass();
  }

  ReplayCounts counts() const {
    ReplayCounts counts = counts_;
    counts.held = table_.held();
    return counts;
  }

 private:
  using Table = ReplayTable<Recording>;

  /// Where the next scratch comes from. All of a pass follows from it while the arena's blocks stay
  /// the same; when they don't, recordings go.
  int64_t scratch_place(Arena& arena) {
    if (arena.allocations() != allocations_) clear();
    allocations_ = arena.allocations();
    const Arena::Scope scope(arena);
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(arena.tensor(DType::kU8, {0}).data));
  }

  void record(Context& ctx, Table::Entry& entry, const std::function<void()>& pass) {
    try {
      const cudaStream_t stream = native_stream(ctx);
      const RecordingLock lock;
      Capture capture(stream);
      pass();
      table_.keep(entry, capture.end());
      ++counts_.recorded;
    } catch (const std::exception& error) {
      // nothing of the pass was done; if it can't be done at all, calling it says so
      entry.refused = true;
      ++counts_.refused;
      log_line(ctx.log(), LogLevel::kDebug,
               concat("a pass is launched kernel by kernel: ", error.what()));
    }
  }

  void wait() const noexcept {
    try {
      backend_for(DeviceKind::kCuda).synchronize(device_, stream_);
    } catch (const Error&) {
      // the device has failed, and the next call to it says so
    }
  }
  void clear() noexcept {
    if (table_.held() > 0) wait();
    table_.clear();
  }

  int device_;
  Stream stream_;
  bool allowed_ = allowed_by_environment();
  int64_t allocations_ = -1;  // of the arena, when everything in the table was made
  Table table_{kMostRecordings};
  ReplayCounts counts_;
};

Recordings& recordings_of(Context& ctx) {
  std::shared_ptr<void>& slot = companion_of(ctx).recordings;
  if (slot == nullptr) slot = std::make_shared<Recordings>(ctx);
  return *static_cast<Recordings*>(slot.get());
}

}  // namespace

void replay(Context& ctx, PassKey key, const std::function<void()>& pass) {
  recordings_of(ctx).replay(ctx, std::move(key), pass);
}

void allow_replay(Context& ctx, bool allowed) { recordings_of(ctx).allow(allowed); }

ReplayCounts replay_counts(Context& ctx) { return recordings_of(ctx).counts(); }

}  // namespace gmamba::cuda
