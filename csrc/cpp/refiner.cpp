#include "erd_cuda/refiner.h"

#include <stdexcept>
#include <utility>
#include <vector>

#include "core/feature_count.h"
#include "core/weight_columns.h"
#include "cpp/weight_memory.h"
#include "cpp/weights_file.h"
#include "cpu/kernels.h"
#include "threads/thread_pool.h"

namespace erd_cuda {
namespace {

// In the order of their numbers in core/calls.h.
const std::vector<std::string> kBlocks = {"linear", "relu"};
const std::vector<std::string> kFeatures = {"residual", "concat", "init2d", "proj2d",
                                            "residual+pose"};
const std::vector<std::string> kRoots = {"given", "solve", "solve_each_stage"};

erd::Rows rows(const float* data, int64_t width, bool shared = false) {
  erd::Rows rows;
  rows.data = data;
  rows.stride = shared ? 0 : width;
  return rows;
}

void require(bool fits, const char* sentence) {
  if (!fits) throw std::invalid_argument(std::string("erd_cuda: ") + sentence);
}

}  // namespace

struct Refiner::Model {
  explicit Model(const std::string& path) : file(path) {
    if (file.word("format_version") != "1") {
      file.fail("its format version is " + file.word("format_version") +
                ", and this library reads version 1");
    }
    stages.scalar = erd::ScalarType::float32;
    stages.block = static_cast<erd::RegressorBlock>(file.choice("block", kBlocks));
    stages.features = static_cast<erd::Features>(file.choice("features", kFeatures));
    stages.root_mode = static_cast<erd::RootMode>(file.choice("root", kRoots));
    weigh = file.choice("confidence_weights", {"false", "true"}) == 1;
    stages.residual_limit = *file.tensor("residual_limit", {1});
    if (!(stages.residual_limit > 0)) file.fail("its residual_limit is not positive");

    std::vector<int64_t> shape = {-1, 2};
    stages.mean2d = file.tensor("mean2d", shape);
    const int64_t j = stages.joints = shape[0];
    shape = {-1, -1, erd::feature_count(stages)};
    stages.w_in = file.tensor("w_in", shape);
    const int64_t k = stages.stages = shape[0];
    const int64_t h = stages.width = shape[1];
    if (j < 1 || k < 1 || h < 1) file.fail("it holds no stage, unit or joint");
    stages.b_in = file.tensor("b_in", {k, h});
    const bool hidden = stages.block == erd::RegressorBlock::relu;
    stages.w_hidden = hidden ? file.tensor("w_hidden", {k, 2, h, h}) : nullptr;
    stages.b_hidden = hidden ? file.tensor("b_hidden", {k, 2, h}) : nullptr;
    stages.w_out = file.tensor("w_out", {k, 3 * j, h});
    stages.b_out = file.tensor("b_out", {k, 3 * j});
    stages.every_stage = false;
    arrange_columns();
  }

  // The weights in the order of the kernel for few poses (core/weight_columns.h).
  void arrange_columns() {
    const erd::WeightColumns layout(stages);
    columns = WeightMemory(stages.stages * layout.stage_size);
    const auto add = [](const void* weights, const void* biases, int64_t outputs, int64_t inputs,
                        int64_t pitch, float* target) {
      const float* w = static_cast<const float*>(weights);
      for (int64_t o = 0; o < outputs; ++o) {
        target[o] = static_cast<const float*>(biases)[o];
        for (int64_t i = 0; i < inputs; ++i) target[(1 + i) * pitch + o] = w[o * inputs + i];
      }
    };
    const auto at = [](const void* numbers, int64_t index) {
      return static_cast<const float*>(numbers) + index;
    };
    const int64_t h = stages.width, f = erd::feature_count(stages), out = 3 * stages.joints;
    for (int64_t k = 0; k < stages.stages; ++k) {
      float* stage = columns.data() + k * layout.stage_size;
      add(at(stages.w_in, k * h * f), at(stages.b_in, k * h), h, f, layout.width_pitch, stage);
      for (int64_t layer = 0; layer < 2 && stages.w_hidden != nullptr; ++layer) {
        const int64_t index = 2 * k + layer;
        add(at(stages.w_hidden, index * h * h), at(stages.b_hidden, index * h), h, h,
            layout.width_pitch, stage + layout.hidden_begin + layer * layout.hidden_size);
      }
      add(at(stages.w_out, k * out * h), at(stages.b_out, k * out), out, h, layout.output_pitch,
          stage + layout.out_begin);
      if (layout.has_tail) {
        const int64_t first = out - out % erd::kColumnPadding;
        add(at(stages.w_out, (k * out + first) * h), at(stages.b_out, k * out + first), out - first,
            h, erd::kTail, stage + layout.tail_begin);
      }
    }
    stages.fragments = columns.data();
  }

  // Checks what refine and solve_root both look at.
  void check(const Poses& poses) const {
    require(poses.count >= 0, "poses.count is negative, expected 0 or more.");
    require(poses.keypoints != nullptr, "poses.keypoints is null, expected [count, J, 2] px.");
    require(poses.pose != nullptr, "poses.pose is null, expected [count, J, 3] mm.");
    require(poses.intrinsics != nullptr, "poses.intrinsics is null, expected [count, 4] px.");
    require((poses.camera == CameraModel::pinhole) == (poses.distortion == nullptr),
            "poses.distortion goes with poses.camera: null for a pinhole, [count, 5] for the "
            "others.");
  }

  // The joints' weights: the confidences, or 0 and 1 (kept in `held`) for stages that do not weigh.
  erd::Rows weights_of(const Poses& poses, std::vector<float>& held) const {
    if (poses.confidence == nullptr) return {};
    if (weigh) return rows(poses.confidence, stages.joints);
    held.assign(poses.confidence, poses.confidence + poses.count * stages.joints);
    for (float& value : held) value = value > 0 ? 1.0f : 0.0f;
    return rows(held.data(), stages.joints);
  }

  WeightsFile file;  // holds the numbers that `stages` points to
  erd::RefineCall stages;
  WeightMemory columns;
  bool weigh = true;
};

Refiner::Refiner(std::shared_ptr<const Model> model) : model_(std::move(model)) {}

Refiner Refiner::load(const std::string& path) {
  return Refiner(std::make_shared<const Model>(path));
}

int64_t Refiner::joints() const { return model_->stages.joints; }
int64_t Refiner::stages() const { return model_->stages.stages; }
const std::string& Refiner::root() const { return model_->file.word("root"); }

void Refiner::refine(const Poses& poses, float* refined) const {
  if (poses.count == 0) return;
  model_->check(poses);
  require(refined != nullptr, "refined is null, expected room for [count, J, 3].");
  erd::RefineCall call = model_->stages;
  if (poses.root != nullptr) call.root_mode = erd::RootMode::given;
  require(poses.root != nullptr || call.root_mode != erd::RootMode::given,
          "poses.root is null, expected [count, 3] mm, because the model was trained with given "
          "roots.");
  std::vector<float> held;
  call.count = poses.count;
  call.camera_model = static_cast<int32_t>(poses.camera);
  call.keypoints = rows(poses.keypoints, 2 * call.joints);
  call.pose = rows(poses.pose, 3 * call.joints);
  call.root = rows(poses.root, 3);
  call.intrinsics = rows(poses.intrinsics, 4, poses.one_camera);
  call.distortion = rows(poses.distortion, 5, poses.one_camera);
  call.confidence = model_->weights_of(poses, held);
  call.output = refined;
  erd::cpu_kernels().refine(call, erd::pool_parallel_for());
}

void Refiner::solve_root(const Poses& poses, float* root, RootStatus* status) const {
  if (poses.count == 0) return;
  model_->check(poses);
  require(root != nullptr, "root is null, expected room for [count, 3].");
  std::vector<float> held;
  std::vector<int32_t> reasons(static_cast<size_t>(poses.count));
  const int64_t joints = model_->stages.joints;
  erd::GeometryCall call;
  call.function = erd::GeometryFunction::solve_root;
  call.order = erd::DerivativeOrder::forward;
  call.scalar = erd::ScalarType::float32;
  call.camera_model = static_cast<int32_t>(poses.camera);
  call.count = poses.count;
  call.joints = joints;
  call.inputs[erd::kSlotKeypoints] = rows(poses.keypoints, 2 * joints);
  call.inputs[erd::kSlotPose] = rows(poses.pose, 3 * joints);
  call.inputs[erd::kSlotIntrinsics] = rows(poses.intrinsics, 4, poses.one_camera);
  call.inputs[erd::kSlotDistortion] = rows(poses.distortion, 5, poses.one_camera);
  call.inputs[erd::kSlotConfidence] = model_->weights_of(poses, held);
  call.output = root;
  call.status = reasons.data();
  erd::cpu_kernels().geometry(call, erd::pool_parallel_for());
  if (status == nullptr) return;
  for (int64_t i = 0; i < poses.count; ++i) {
    status[i] = static_cast<RootStatus>(reasons[static_cast<size_t>(i)]);
  }
}

void set_num_threads(int64_t threads) { erd::set_num_threads(threads); }
int64_t num_threads() { return erd::num_threads(); }

}  // namespace erd_cuda
