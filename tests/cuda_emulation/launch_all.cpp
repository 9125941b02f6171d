// Calls every launcher with small problems of odd sizes, so that ThreadSanitizer sees each kernel
// at work: tails, several tiles a block, several blocks. Numbers only have to be plausible here;
// that they are right is what the operator tests on the emulated library decide.
//
//   kernels_tsan [WORD]    only the problems whose name contains WORD
#include <cstdio>
#include <iterator>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/feature_count.h"
#include "cuda/fragments.h"
#include "cuda/fragments_relu.h"
#include "cuda/fragments_wgmma.h"
#include "cuda/kernels.h"
#include "cuda/refine_kernels.h"
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

// ---- project, residual, solve_root --------------------------------------------------------------

constexpr int64_t kWidths[kSlots] = {2, 3, 3, 4, 5, 2, 1};

bool per_joint(int slot) {
  return slot != kSlotRoot && slot != kSlotIntrinsics && slot != kSlotDistortion;
}

// `which` counts through functions, orders and scalar types; camera models take turns. On so small
// a GPU every block has several tiles.
void geometry(int which) {
  GeometryCall call = {};
  call.function = static_cast<GeometryFunction>(which % 4);
  call.order = static_cast<DerivativeOrder>(which / 4 % 3);
  call.scalar = static_cast<ScalarType>(which / 12 % 2);
  call.camera_model = which % 3;
  call.count = 131;
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
  CudaDevice device = cuda_device(0, nullptr);
  device.multiprocessors = 1;
  device.shared_bytes = 32 * 1024;
  run_geometry_cuda(call, device);
}

// ---- refine -------------------------------------------------------------------------------------

struct Refinement {
  RegressorBlock block;
  Features features;
  RootMode root_mode;
  ScalarType scalar;
  Precision precision;
  RefineVariant variant;
  int64_t count, joints, width;
  int64_t stages = 2;
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
    // Odd numbers of features.
    {kLinear, Features::residual_pose, RootMode::solve, kFloat, Precision::native,
     RefineVariant::simt, 67, 13, 48},
    {kRelu, Features::residual_pose, RootMode::solve_each_stage, kFloat, Precision::split,
     RefineVariant::automatic, 67, 7, 32},
    // Blocks of one and of two tiles; then stages that take turns in shared memory.
    {kLinear, Features::residual, RootMode::solve_each_stage, kFloat, Precision::fp16,
     RefineVariant::wgmma, 437, 17, 64},
    {kLinear, Features::residual, RootMode::given, kFloat, Precision::bf16, RefineVariant::wgmma,
     65, 13, 512, 3},
    {kLinear, Features::residual, RootMode::given, kFloat, Precision::fp16,
     RefineVariant::throughput, 67, 17, 512, 3},
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
  call.stages = wish.stages;
  call.width = wish.width;
  call.precision = wish.precision;
  call.variant = wish.variant;
  call.every_stage = which % 2 != 0;
  call.residual_limit = which % 2 != 0 ? 50.0 : std::numeric_limits<double>::infinity();
  Arrays arrays(call.scalar);
  const int64_t n = call.count, joints = call.joints, width = call.width, stages = call.stages;
  const int64_t features = feature_count(call);
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
  const CudaDevice device = cuda_device(0, nullptr);
  if (wish.variant == RefineVariant::wgmma && !wgmma_kernel_fits(call, device)) {
    throw std::runtime_error("another kernel would run in place of refine_wgmma");
  }
  run_refine_cuda(call, device);
}

}  // namespace

int main(int count, char** words) {
  if (count > 1) wanted = words[1];
  try {
    for (int which = 0; which < 24; ++which) run("geometry", geometry, which);
    const bool hopper = cuda_device(0, nullptr).compute_capability == 90;
    for (int which = 0; which < static_cast<int>(std::size(kRefinements)); ++which) {
      const bool wgmma = kRefinements[which].variant == RefineVariant::wgmma;
      if (!wgmma || hopper) run(wgmma ? "wgmma" : "refine", refine, which);
    }
    for (int which = 0; which < kTrainingProblemCount; ++which) {
      run("training", train<Arrays>, which);
    }
    for (int which = 0; which < kStepProblemCount; ++which) {
      run("training step", train_by_steps<Arrays>, which);
    }
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 4;
  }
  return 0;
}
