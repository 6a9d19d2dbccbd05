// SPDX-License-Identifier: Apache-2.0
#include "libmamba/parameters.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "libmamba/core/checked.h"
#include "libmamba/core/random.h"

namespace gmamba {
namespace {

constexpr int64_t kAlignment = 16;  // floats in 64 bytes

/// Parameters of one block, in the order of the computation.
void add_block(const ModelConfig& config, const std::string& prefix,
               std::vector<ParameterInfo>& out) {
  const int64_t d = config.d_model;
  const int64_t e = config.d_inner();
  const int64_t n = config.d_state;
  const int64_t r = config.dt_rank;
  const auto add = [&](const char* name, Shape shape, bool decay) {
    out.push_back({prefix + name, std::move(shape), 0, 0, decay});
  };
  add("norm.weight", {d}, false);
  add("mixer.in_proj.weight", {2 * e, d}, true);
  if (config.use_bias) add("mixer.in_proj.bias", {2 * e}, false);
  add("mixer.conv1d.weight", {e, 1, config.d_conv}, true);
  if (config.use_conv_bias) add("mixer.conv1d.bias", {e}, false);
  add("mixer.x_proj.weight", {r + 2 * n, e}, true);
  add("mixer.dt_proj.weight", {e, r}, true);
  add("mixer.dt_proj.bias", {e}, false);
  add("mixer.A_log", {e, n}, false);
  add("mixer.D", {e}, false);
  add("mixer.out_proj.weight", {d, e}, true);
  if (config.use_bias) add("mixer.out_proj.bias", {d}, false);
}

std::vector<ParameterInfo> list_parameters(const ModelConfig& config) {
  std::vector<ParameterInfo> out;
  out.push_back({"backbone.embeddings.weight", {config.vocab_size, config.d_model}, 0, 0, false});
  for (int64_t i = 0; i < config.n_layers; ++i) {
    add_block(config, concat("backbone.layers.", i, "."), out);
  }
  out.push_back({"backbone.norm_f.weight", {config.d_model}, 0, 0, false});
  if (!config.tie_embeddings) {
    out.push_back({"lm_head.weight", {config.vocab_size, config.d_model}, 0, 0, true});
  }
  if (config.task != TaskKind::kNone) {
    out.push_back(
        {"score.weight", {static_cast<int64_t>(config.labels.size()), config.d_model}, 0, 0, true});
  }
  return out;
}

/// FNV-1a; the random stream of a parameter follows from its name alone.
uint64_t stream_of(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return hash;
}

void fill_uniform(std::span<float> values, double bound, double scale, Random& random) {
  for (float& value : values) {
    value = static_cast<float>(random.uniform(-bound, bound) * scale);
  }
}

void fill_normal(std::span<float> values, double deviation, Random& random) {
  for (float& value : values) value = static_cast<float>(deviation * random.normal());
}

/// Bias whose softplus is log-uniform in [dt_min, dt_max]. Channels may lie in any order; slow ones
/// first, neighbours forget at about the same time, which the scan of long sequences on a GPU uses.
void fill_dt_bias(std::span<float> values, const ModelConfig& config, Random& random) {
  const double low = std::log(config.dt_min);
  const double high = std::log(config.dt_max);
  for (float& value : values) {
    const double delta = std::max(std::exp(random.uniform(low, high)), config.dt_init_floor);
    value = static_cast<float>(delta + std::log(-std::expm1(-delta)));
  }
  std::sort(values.begin(), values.end());
}

void fill_a_log(std::span<float> values, int64_t d_state) {
  for (size_t i = 0; i < values.size(); ++i) {
    const auto n = static_cast<int64_t>(i) % d_state;
    values[i] = static_cast<float>(std::log(static_cast<double>(n + 1)));
  }
}

void initialize_one(const ParameterInfo& info, std::span<float> values, const ModelConfig& config,
                    uint64_t seed) {
  Random random(seed, RandomUse::kInit, stream_of(info.name));
  const auto is = [&](std::string_view end) { return info.name.ends_with(end); };
  // PyTorch's default of Linear and Conv1d: U(+-1/sqrt(fan_in)), fan_in the last extent
  const double bound = 1 / std::sqrt(static_cast<double>(info.shape.back()));
  if (is("embeddings.weight") || is("score.weight")) {
    fill_normal(values, 0.02, random);
  } else if (is("norm.weight") || is("norm_f.weight") || is("mixer.D")) {
    std::fill(values.begin(), values.end(), 1.0F);
  } else if (is("A_log")) {
    fill_a_log(values, config.d_state);
  } else if (is("dt_proj.bias")) {
    fill_dt_bias(values, config, random);
  } else if (is("dt_proj.weight")) {
    fill_uniform(values, bound, config.dt_scale, random);
  } else if (is("out_proj.weight")) {
    fill_uniform(values, bound, 1 / std::sqrt(static_cast<double>(config.n_layers)), random);
  } else if (is("conv1d.bias")) {
    fill_uniform(values, 1 / std::sqrt(static_cast<double>(config.d_conv)), 1, random);
  } else if (is("proj.bias")) {
    std::fill(values.begin(), values.end(), 0.0F);
  } else {
    fill_uniform(values, bound, 1, random);
  }
}

template <class View>
View view_of(View all, const ParameterLayout& layout, int index) {
  const auto count = static_cast<int>(layout.all().size());
  require(index >= 0 && index < count, ErrorKind::kInternal, "parameter ", index, " of ", count);
  const ParameterInfo& info = layout.all()[static_cast<size_t>(index)];
  return all.slice(0, info.offset, info.offset + info.size).reshape(info.shape);
}

int index_of(const ParameterLayout& layout, std::string_view name) {
  const int index = layout.find(name);
  require(index >= 0, ErrorKind::kInternal, "this model has no parameter ", name);
  return index;
}

}  // namespace

ParameterLayout::ParameterLayout(const ModelConfig& config) {
  config.validate();
  all_ = list_parameters(config);
  std::stable_partition(all_.begin(), all_.end(), [](const auto& info) { return info.decay; });
  for (size_t i = 0; i < all_.size(); ++i) {
    ParameterInfo& info = all_[i];
    info.size = checked_product(info.shape, info.name);
    info.offset = buffer_size_;
    buffer_size_ = checked_add(buffer_size_, (info.size + kAlignment - 1) / kAlignment * kAlignment,
                               "parameters");
    count_ += info.size;
    if (info.decay) decay_end_ = buffer_size_;
    index_.emplace(info.name, static_cast<int>(i));
  }
}

int ParameterLayout::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? -1 : found->second;
}

ParameterBuffer::ParameterBuffer(std::shared_ptr<const ParameterLayout> layout, Device device)
    : layout_(std::move(layout)), data_(device, DType::kF32, {layout_->buffer_size()}) {}

ParameterBuffer::ParameterBuffer(std::shared_ptr<const ParameterLayout> layout, Tensor data)
    : layout_(std::move(layout)), data_(std::move(data)) {}

TensorView ParameterBuffer::view(int index) { return view_of(data_.view(), *layout_, index); }

ConstTensorView ParameterBuffer::view(int index) const {
  return view_of(data_.view(), *layout_, index);
}

TensorView ParameterBuffer::view(std::string_view name) { return view(index_of(*layout_, name)); }

ConstTensorView ParameterBuffer::view(std::string_view name) const {
  return view(index_of(*layout_, name));
}

ParameterBuffer ParameterBuffer::clone() const { return {layout_, data_.clone()}; }

ParameterBuffer ParameterBuffer::clone_to(Device device) const {
  if (device == data_.device()) return clone();
  if (!device.is_cpu() && !data_.device().is_cpu()) return clone_to(Device{}).clone_to(device);
  ParameterBuffer copy(layout_, device);
  const Device accelerator = device.is_cpu() ? data_.device() : device;
  Backend& backend = backend_for(accelerator.kind);
  if (device.is_cpu()) {
    backend.copy_out(accelerator.index, nullptr, copy.data_.view().data, data_.view().data,
                     data_.bytes());
  } else {
    backend.copy_in(accelerator.index, nullptr, copy.data_.view().data, data_.view().data,
                    data_.bytes());
  }
  backend.synchronize(accelerator.index, nullptr);
  return copy;
}

HostParameters::HostParameters(const ParameterBuffer& values) : values_(values) {
  if (!values.device().is_cpu()) copy_.emplace(values.clone_to(Device{}));
}

void initialize(ParameterBuffer& values, const ModelConfig& config, uint64_t seed) {
  require(values.device().is_cpu(), ErrorKind::kInternal,
          "initialize: the parameters must be on the CPU");
  values.fill_zero();
  const auto& all = values.layout().all();
  for (size_t i = 0; i < all.size(); ++i) {
    initialize_one(all[i], values.view(static_cast<int>(i)).flat<float>(), config, seed);
  }
}

}  // namespace gmamba
