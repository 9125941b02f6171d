// Calls every launcher with small problems of odd sizes, so that ThreadSanitizer sees each kernel
// at work: tails, several tiles a block, several blocks. Numbers only have to be plausible here;
// that they are right is what the operator tests on the emulated library decide.
//
//   kernels_tsan [WORD]    only the problems whose name contains WORD
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/training_call.h"
#include "cuda/fragments.h"
#include "cuda/fragments_relu.h"
#include "cuda/fragments_wgmma.h"
#include "cuda/kernels.h"
#include "cuda_emulation/training_launches.h"

namespace {

using namespace erd;

std::string wanted;

// Arrays of the call's scalar type that live as long as the problem.
class Arrays {
 public:
  explicit Arrays(ScalarType scalar) : scalar_(scalar) {}

  // Evenly spread in [low, high].
  void* numbers(int64_t count, double low, double high) {
    std::uniform_real_distribution<double> spread(low, high);
    const bool wide = scalar_ == ScalarType::float64;
    unsigned char* begin = bytes(count * (wide ? 8 : 4));
    for (int64_t i = 0; i < count; ++i) {
      if (wide) {
        reinterpret_cast<double*>(begin)[i] = spread(random_);
      } else {
        reinterpret_cast<float*>(begin)[i] = static_cast<float>(spread(random_));
      }
    }
    return begin;
  }
  unsigned char* bytes(int64_t count) {
    arrays_.emplace_back(static_cast<size_t>(count));
    return arrays_.back().data();
  }
  Rows rows(int64_t samples, int64_t width, double low, double high) {
    return {numbers(samples * width, low, high), width, width, 0, 1};
  }

 private:
  ScalarType scalar_;
  std::mt19937 random_{7};
  std::vector<std::vector<unsigned char>> arrays_;
};

void run(const std::string& name, void (*problem)(int), int which) {
  if (name.find(wanted) == std::string::npos) return;
  std::fprintf(stderr, "%s %d\n", name.c_str(), which);
  problem(which);
}

// ---- project, residual, solve_root
// ---------------------------------------------------------------

constexpr int64_t kWidths[kSlots] = {2, 3, 3, 4, 5, 2, 1};

bool per_joint(int slot) {
  return slot != kSlotRoot && slot != kSlotIntrinsics && slot != kSlotDistortion;
}

// `which` counts through functions, orders, scalar types and camera models.
void geometry(int which) {
  GeometryCall call = {};
  call.function = static_cast<GeometryFunction>(which % 4);
  call.order = static_cast<DerivativeOrder>(which / 4 % 3);
  call.scalar = static_cast<ScalarType>(which / 12 % 2);
  call.camera_model = which / 24 % 3;
  call.count = 301;
  call.joints = 17;
  Arrays arrays(call.scalar);
  const double low[kSlots] = {300, -500, 3000, 900, -0.05, 1, 0};
  const double high[kSlots] = {700, 500, 4000, 1100, 0.05, 5, 1};
  const bool projects = call.function == GeometryFunction::project;
  const bool solves = call.function == GeometryFunction::solve_root ||
                      call.function == GeometryFunction::solve_residual;
  const bool subtracts = call.function == GeometryFunction::residual ||
                         call.function == GeometryFunction::solve_residual;
  const bool uses[kSlots] = {!projects, true,     !solves, true, call.camera_model != 0,
                             subtracts, !projects};
  for (int slot = 0; slot < kSlots; ++slot) {
    if (!uses[slot]) continue;
    const int64_t width = kWidths[slot] * (per_joint(slot) ? call.joints : 1);
    call.inputs[slot] = arrays.rows(call.count, width, low[slot], high[slot]);
    if (call.order == DerivativeOrder::double_backward) {
      call.tangents[slot] = arrays.rows(call.count, width, -1, 1);
    }
    if (call.order != DerivativeOrder::forward) {
      call.gradients[slot] = arrays.numbers(call.count * width, 0, 0);
    }
  }
  const int64_t outputs = (solves ? 3 : 0) + (projects || subtracts ? 2 * call.joints : 0);
  call.grad_output = arrays.rows(call.count, outputs, -1, 1);
  call.output = arrays.numbers(call.count * outputs, 0, 0);
  if (solves) call.status = reinterpret_cast<int32_t*>(arrays.bytes(4 * call.count));
  run_geometry_cuda(call, cuda_device(0, nullptr));
}

// ---- refine
// --------------------------------------------------------------------------------------

struct Refinement {
  RegressorBlock block;
  Features features;
  RootMode root_mode;
  ScalarType scalar;
  Precision precision;
  RefineVariant variant;
  int64_t count, joints, width;
};

constexpr auto kLinear = RegressorBlock::linear, kRelu = RegressorBlock::relu;
constexpr auto kFloat = ScalarType::float32, kDouble = ScalarType::float64;

const Refinement kRefinements[] = {
    {kLinear, Features::residual, RootMode::given, kFloat, Precision::native, RefineVariant::simt,
     131, 17, 64},
    {kLinear, Features::concat, RootMode::solve_each_stage, kDouble, Precision::native,
     RefineVariant::simt, 35, 5, 48},
    {kRelu, Features::residual, RootMode::solve, kFloat, Precision::native, RefineVariant::simt, 67,
     17, 80},
    {kLinear, Features::residual, RootMode::solve_each_stage, kFloat, Precision::fp16,
     RefineVariant::throughput, 331, 17, 64},
    {kLinear, Features::proj2d, RootMode::given, kFloat, Precision::split,
     RefineVariant::throughput, 133, 13, 48},
    {kLinear, Features::init2d, RootMode::solve, kFloat, Precision::bf16, RefineVariant::throughput,
     77, 32, 32},
    {kLinear, Features::residual, RootMode::solve_each_stage, kFloat, Precision::fp16,
     RefineVariant::latency, 3, 17, 64},
    {kLinear, Features::residual, RootMode::given, kFloat, Precision::split, RefineVariant::latency,
     37, 21, 80},
    {kRelu, Features::residual, RootMode::solve_each_stage, kFloat, Precision::fp16,
     RefineVariant::automatic, 171, 17, 64},
    {kRelu, Features::concat, RootMode::given, kFloat, Precision::split, RefineVariant::automatic,
     67, 7, 96},
};

void refine(int which) {
  const Refinement& wish = kRefinements[which];
  RefineCall call = {};
  call.scalar = wish.scalar;
  call.camera_model = which % 3;
  call.block = wish.block;
  call.features = wish.features;
  call.root_mode = wish.root_mode;
  call.count = wish.count;
  call.joints = wish.joints;
  call.stages = 2;
  call.width = wish.width;
  call.precision = wish.precision;
  call.variant = wish.variant;
  call.every_stage = which % 2 != 0;
  Arrays arrays(call.scalar);
  const int64_t n = call.count, joints = call.joints, width = call.width, stages = call.stages;
  const int64_t features = (wish.features == Features::concat ? 4 : 2) * joints;
  call.keypoints = arrays.rows(n, 2 * joints, 300, 700);
  call.keypoints = {call.keypoints.data, 2 * joints, 2, 2, 1};
  call.pose = arrays.rows(n, 3 * joints, -500, 500);
  call.root = arrays.rows(n, 3, 3000, 4000);
  call.intrinsics = arrays.rows(n, 4, 900, 1100);
  call.distortion = arrays.rows(n, 5, -0.05, 0.05);
  call.confidence = arrays.rows(n, joints, 0, 1);
  call.w_in = arrays.numbers(stages * width * features, -0.01, 0.01);
  call.b_in = arrays.numbers(stages * width, -0.1, 0.1);
  if (wish.block == kRelu) {
    call.w_hidden = arrays.numbers(stages * 2 * width * width, -0.1, 0.1);
    call.b_hidden = arrays.numbers(stages * 2 * width, -0.1, 0.1);
  }
  call.w_out = arrays.numbers(stages * 3 * joints * width, -0.1, 0.1);
  call.b_out = arrays.numbers(stages * 3 * joints, -0.1, 0.1);
  call.mean2d = arrays.numbers(2 * joints, -0.1, 0.1);
  const bool split = wish.precision == Precision::split;
  if (wish.precision != Precision::native && wish.block == kRelu) {
    const ReluSizes sizes = relu_sizes(call);
    call.fragments = arrays.bytes(stages * 2 * sizes.stage_weights(split));
    call.fragment_biases =
        static_cast<const float*>(arrays.numbers(stages * sizes.stage_biases(), -0.1, 0.1));
  } else if (wish.variant == RefineVariant::wgmma) {
    with_wgmma_layout(joints, [&](auto layout) {
      using Layout = decltype(layout);
      call.fragments = arrays.bytes(stages * Layout::stage_bytes(width));
      call.fragment_biases =
          reinterpret_cast<const float*>(arrays.numbers(stages * Layout::stage_biases, -0.1, 0.1));
    });
  } else if (wish.precision != Precision::native) {
    with_fragment_layout(joints, [&](auto layout) {
      using Layout = decltype(layout);
      call.fragments = arrays.bytes(stages * Layout::stage_bytes(width, split));
      call.fragment_biases = reinterpret_cast<const float*>(
          arrays.numbers(stages * Layout::stage_biases(width), -0.1, 0.1));
    });
  }
  call.output = arrays.numbers((call.every_stage ? stages : 1) * n * 3 * joints, 0, 0);
  run_refine_cuda(call, cuda_device(0, nullptr));
}

// ---- training
// ------------------------------------------------------------------------------------

// `which` counts through blocks and scalar types: forward, then backward on its results.
void training(int which) {
  RegressorShape shape = {};
  shape.block = static_cast<RegressorBlock>(which % 2);
  shape.scalar = static_cast<ScalarType>(which / 2 % 2);
  shape.rows = 83;
  shape.features = 34;
  shape.width = 48;
  shape.outputs = 51;
  shape.dropout = 0.25;
  shape.eps = 1e-5;
  Arrays arrays(shape.scalar);
  const int64_t n = shape.rows, f = shape.features, h = shape.width, o = shape.outputs;
  const int64_t seed = 1234567;

  RegressorForwardCall forward = {};
  forward.shape = shape;
  forward.features = arrays.numbers(n * f, -1, 1);
  forward.w_in = arrays.numbers(h * f, -0.2, 0.2);
  forward.b_in = arrays.numbers(h, -0.1, 0.1);
  forward.gamma = arrays.numbers(h, 0.5, 1.5);
  forward.beta = arrays.numbers(h, -0.1, 0.1);
  for (int layer = 0; layer < 2; ++layer) {
    forward.w_hidden[layer] = arrays.numbers(h * h, -0.2, 0.2);
    forward.b_hidden[layer] = arrays.numbers(h, -0.1, 0.1);
  }
  forward.w_out = arrays.numbers(o * h, -0.2, 0.2);
  forward.b_out = arrays.numbers(o, -0.1, 0.1);
  forward.seed = &seed;
  forward.increment = arrays.numbers(n * o, 0, 0);
  forward.mean = arrays.numbers(h, 0, 0);
  forward.variance = arrays.numbers(h, 0, 0);
  forward.inverse_std = arrays.numbers(h, 0, 0);
  forward.activations = arrays.numbers(kActivations * n * h, 0, 0);
  forward.passes = arrays.bytes(n * h);
  run_regressor_forward_cuda(forward, cuda_device(0, nullptr));

  RegressorBackwardCall backward = {};
  backward.shape = shape;
  backward.grad = arrays.numbers(n * o, -1, 1);
  backward.features = forward.features;
  backward.w_in = forward.w_in;
  backward.gamma = forward.gamma;
  for (int layer = 0; layer < 2; ++layer) backward.w_hidden[layer] = forward.w_hidden[layer];
  backward.w_out = forward.w_out;
  backward.inverse_std = forward.inverse_std;
  backward.activations = forward.activations;
  backward.passes = forward.passes;
  backward.workspace = arrays.numbers(3 * n * h, 0, 0);
  const int64_t sizes[kRegressorGradients] = {n * f, h * f, h, h, h * h, h * h, h, h, o * h, o};
  for (int g = 0; g < kRegressorGradients; ++g) {
    backward.gradients[g] = arrays.numbers(sizes[g], 0, 0);
  }
  run_regressor_backward_cuda(backward, cuda_device(0, nullptr));
}

}  // namespace

int main(int count, char** words) {
  if (count > 1) wanted = words[1];
  try {
    for (int which = 0; which < 72; ++which) run("geometry", geometry, which);
    constexpr int kCount = static_cast<int>(sizeof(kRefinements) / sizeof(kRefinements[0]));
    for (int which = 0; which < kCount; ++which) run("refine", refine, which);
    for (int which = 0; which < 4; ++which) run("training", training, which);
    for (int which = 0; which < kTrainingProblemCount; ++which) {
      run("train", train<Arrays>, which);
    }
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 4;
  }
  return 0;
}
