// SPDX-License-Identifier: Apache-2.0
/// cuBLASLt is column-major: a row-major c = a b is its c^T = b^T a^T, so b comes first, and the
/// bias, one value per column of c, is one per row of c^T, which its epilogue adds.
#include "kernels/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

#include "kernels/cuda_companion.h"

namespace gmamba::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

/// The functions used, found in the shared library.
struct Library {
#define GMAMBA_CUBLASLT_FUNCTION(name) decltype(&::cublasLt##name) name = nullptr
  GMAMBA_CUBLASLT_FUNCTION(Create);
  GMAMBA_CUBLASLT_FUNCTION(Destroy);
  GMAMBA_CUBLASLT_FUNCTION(MatmulDescCreate);
  GMAMBA_CUBLASLT_FUNCTION(MatmulDescDestroy);
  GMAMBA_CUBLASLT_FUNCTION(MatmulDescSetAttribute);
  GMAMBA_CUBLASLT_FUNCTION(MatrixLayoutCreate);
  GMAMBA_CUBLASLT_FUNCTION(MatrixLayoutDestroy);
  GMAMBA_CUBLASLT_FUNCTION(MatrixLayoutSetAttribute);
  GMAMBA_CUBLASLT_FUNCTION(MatmulPreferenceCreate);
  GMAMBA_CUBLASLT_FUNCTION(MatmulPreferenceDestroy);
  GMAMBA_CUBLASLT_FUNCTION(MatmulPreferenceSetAttribute);
  GMAMBA_CUBLASLT_FUNCTION(MatmulAlgoGetHeuristic);
  GMAMBA_CUBLASLT_FUNCTION(Matmul);
  GMAMBA_CUBLASLT_FUNCTION(GetStatusString);
#undef GMAMBA_CUBLASLT_FUNCTION

  Library() {
    const std::string name = concat("libcublasLt.so.", CUBLAS_VER_MAJOR);
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    for (const char* folder : {"/usr/local/cuda/lib64/", "/opt/cuda/lib64/"}) {
      if (handle == nullptr) handle = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL);
    }
    require(handle != nullptr, ErrorKind::kUnsupported, "the matrix library ", name,
            " can't be loaded; install CUDA ", CUBLAS_VER_MAJOR,
            "'s cuBLAS or add its folder to LD_LIBRARY_PATH, or run on --device cpu");
    const auto find = [&](auto& function, const char* symbol) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, symbol));
      require(function != nullptr, ErrorKind::kUnsupported, name, " lacks ", symbol);
    };
#define GMAMBA_CUBLASLT_FIND(name) find(name, "cublasLt" #name)
    GMAMBA_CUBLASLT_FIND(Create);
    GMAMBA_CUBLASLT_FIND(Destroy);
    GMAMBA_CUBLASLT_FIND(MatmulDescCreate);
    GMAMBA_CUBLASLT_FIND(MatmulDescDestroy);
    GMAMBA_CUBLASLT_FIND(MatmulDescSetAttribute);
    GMAMBA_CUBLASLT_FIND(MatrixLayoutCreate);
    GMAMBA_CUBLASLT_FIND(MatrixLayoutDestroy);
    GMAMBA_CUBLASLT_FIND(MatrixLayoutSetAttribute);
    GMAMBA_CUBLASLT_FIND(MatmulPreferenceCreate);
    GMAMBA_CUBLASLT_FIND(MatmulPreferenceDestroy);
    GMAMBA_CUBLASLT_FIND(MatmulPreferenceSetAttribute);
    GMAMBA_CUBLASLT_FIND(MatmulAlgoGetHeuristic);
    GMAMBA_CUBLASLT_FIND(Matmul);
    GMAMBA_CUBLASLT_FIND(GetStatusString);
#undef GMAMBA_CUBLASLT_FIND
  }

  void check(cublasStatus_t status, const char* what) const {
    require(status == CUBLAS_STATUS_SUCCESS, ErrorKind::kDevice, "cuBLASLt: ", what, ": ",
            GetStatusString(status));
  }
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

cudaDataType_t data_type(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

/// A descriptor of the library, destroyed with its owner.
template <class Handle, auto Destroy>
class Owned {
 public:
  Owned() = default;
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != nullptr) (library().*Destroy)(handle_);
  }
  Handle get() const { return handle_; }
  Handle* out() { return &handle_; }

 private:
  Handle handle_ = nullptr;
};
using Operation = Owned<cublasLtMatmulDesc_t, &Library::MatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, &Library::MatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, &Library::MatmulPreferenceDestroy>;

template <class Value>
void set_operation(const Operation& operation, cublasLtMatmulDescAttributes_t which, Value value) {
  library().check(library().MatmulDescSetAttribute(operation.get(), which, &value, sizeof(value)),
                  "describing a product");
}

template <class Value>
void set_preference(const Preference& preference, cublasLtMatmulPreferenceAttributes_t which,
                    Value value) {
  library().check(
      library().MatmulPreferenceSetAttribute(preference.get(), which, &value, sizeof(value)),
      "preferring a product");
}

/// The largest power of two up to 256 that an address (and its batch items) are multiples of.
uint32_t alignment_of(const GemmMatrix& matrix) {
  const auto bytes = static_cast<uint64_t>(matrix.batch_stride * size_of(matrix.dtype));
  const uint64_t bits = reinterpret_cast<uintptr_t>(matrix.data) | bytes | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

/// A matrix as cuBLASLt sees it: `rows` run along memory.
Layout layout_of(const GemmMatrix& matrix, int64_t rows, int64_t columns, int64_t batch) {
  Layout layout;
  library().check(library().MatrixLayoutCreate(
                      layout.out(), data_type(matrix.dtype), static_cast<uint64_t>(rows),
                      static_cast<uint64_t>(columns), std::max(matrix.stride, rows)),
                  "describing a matrix");
  if (batch > 1) {
    const auto count = static_cast<int32_t>(batch);
    const auto set = [&](cublasLtMatrixLayoutAttribute_t which, const auto& value) {
      library().check(
          library().MatrixLayoutSetAttribute(layout.get(), which, &value, sizeof(value)),
          "describing a batch");
    };
    set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count);
    set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, matrix.batch_stride);
  }
  return layout;
}

using Key = std::array<int64_t, 17>;

/// All that a choice depends on.
Key key_of(const Gemm& g) {
  const auto type = [](const GemmMatrix& matrix) { return static_cast<int64_t>(matrix.dtype); };
  return {g.m,
          g.n,
          g.k,
          g.batch,
          g.a_is_transposed + 2 * g.b_is_transposed + 4 * g.accumulate + 8 * (g.bias != nullptr),
          type(g.a),
          type(g.c),
          g.a.stride,
          g.b.stride,
          g.c.stride,
          g.a.batch_stride,
          g.b.batch_stride,
          g.c.batch_stride,
          alignment_of(g.a),
          alignment_of(g.b),
          alignment_of(g.c),
          0};
}

/// A product of one shape, ready to run.
struct Plan {
  Operation operation;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};

  Plan(cublasLtHandle_t handle, const Gemm& g) {
    const Library& lt = library();
    lt.check(lt.MatmulDescCreate(operation.out(), CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "describing a product");
    // first operand: b^T, which a row-major (K, N) already is to a column-major reader
    set_operation(operation, CUBLASLT_MATMUL_DESC_TRANSA,
                  g.b_is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set_operation(operation, CUBLASLT_MATMUL_DESC_TRANSB,
                  g.a_is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (g.bias != nullptr) {
      set_operation(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set_operation(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
      set_operation(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(g.c.dtype));
    }
    b = g.b_is_transposed ? layout_of(g.b, g.k, g.n, g.batch) : layout_of(g.b, g.n, g.k, g.batch);
    a = g.a_is_transposed ? layout_of(g.a, g.m, g.k, g.batch) : layout_of(g.a, g.k, g.m, g.batch);
    c = layout_of(g.c, g.n, g.m, g.batch);
    choose(handle, g);
  }

 private:
  void choose(cublasLtHandle_t handle, const Gemm& g) {
    const Library& lt = library();
    Preference preference;
    lt.check(lt.MatmulPreferenceCreate(preference.out()), "preferring a product");
    set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                   static_cast<uint64_t>(kWorkspaceBytes));
    // every scheme but the in-place one, which adds in the order of arrival
    set_preference(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                   static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE |
                                         CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE));
    set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(g.b));
    set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(g.a));
    set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(g.c));
    set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(g.c));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status =
        lt.MatmulAlgoGetHeuristic(handle, operation.get(), b.get(), a.get(), c.get(), c.get(),
                                  preference.get(), 1, &result, &found);
    require(status == CUBLAS_STATUS_SUCCESS && found > 0, ErrorKind::kDevice,
            "cuBLASLt has no way to multiply ", g.m, " x ", g.k, " by ", g.k, " x ", g.n, " (",
            to_string(g.a.dtype), " to ", to_string(g.c.dtype), "): ", lt.GetStatusString(status));
    algorithm = result.algo;
  }
};

/// The library's handle and the plans of one context.
class Products {
 public:
  Products() { library().check(library().Create(&handle_), "starting"); }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;
  ~Products() { library().Destroy(handle_); }

  cublasLtHandle_t handle() const { return handle_; }
  const Plan& plan(const Gemm& g) {
    const Key key = key_of(g);
    auto found = plans_.find(key);
    if (found == plans_.end()) {
      if (plans_.size() >= kMostPlans) plans_.clear();
      found = plans_.emplace(key, Plan(handle_, g)).first;
    }
    return found->second;
  }

 private:
  static constexpr size_t kMostPlans = 4096;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

Products& products_of(Context& ctx) {
  std::shared_ptr<void>& slot = companion_of(ctx).products;
  if (slot == nullptr) slot = std::make_shared<Products>();
  return *static_cast<Products*>(slot.get());
}

}  // namespace

void gemm(Context& ctx, const Gemm& g) {
  ctx.backend().make_current(ctx.device().index);
  Products& products = products_of(ctx);
  const Plan& plan = products.plan(g);
  if (g.bias != nullptr) {
    set_operation(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  }
  const Arena::Scope scope(ctx.arena());
  const TensorView workspace = ctx.arena().tensor(DType::kU8, {kWorkspaceBytes});
  const float alpha = 1.0F;
  const float beta = g.accumulate ? 1.0F : 0.0F;
  void* const c = const_cast<void*>(g.c.data);
  const cublasStatus_t status = library().Matmul(
      products.handle(), plan.operation.get(), &alpha, g.b.data, plan.b.get(), g.a.data,
      plan.a.get(), &beta, c, plan.c.get(), c, plan.c.get(), &plan.algorithm, workspace.data,
      static_cast<size_t>(kWorkspaceBytes), static_cast<cudaStream_t>(ctx.stream()));
  require(status == CUBLAS_STATUS_SUCCESS, ErrorKind::kDevice, "cuBLASLt: multiplying ", g.m, " x ",
          g.k, " by ", g.k, " x ", g.n, ": ", library().GetStatusString(status));
}

}  // namespace gmamba::cuda
