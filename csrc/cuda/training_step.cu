// A whole step of training in three launches, and nothing else: a CUDA graph of many steps is these
// kernels one after another. What differs between steps lies in device memory, which the step moves
// on (core/training_call.h), so that no host takes part.
//
// 1. prepare     blocks of 8 units: batch statistics and BatchNorm's running ones, as in
//                training_forward.cuh
//                blocks of 32 x 32 weights: the forward pass's, transposed for 16-byte copies
//                one block: the steps' numbers, and what Adam makes of them
// 2. pass        a block for 8 or 16 samples: forward, loss, and back to BatchNorm's output; the
//                tile never leaves shared memory in between
// 3. update      blocks of 32 x 32 weights: gradients over the batch, and Adam where they are
//                made; they are stored nowhere
//                one block: the sums of loss and MPJPE, and the progress through the epoch
//
// Every sum runs in a fixed order; nothing is atomic. The samples are gathered where they are read.
#include "core/adam.h"
#include "core/workspace.h"
#include "cuda/kernels.h"
#include "cuda/training_backward.cuh"
#include "cuda/training_forward.cuh"

ERD_NAMESPACE_BEGIN

namespace {

// The weights that the forward pass multiplies by, transposed: [H, padded units].
constexpr int kPackedMatrices = 3;
struct PackedMatrix {
  const void* weights;  // [units, H]
  void* packed;
  int64_t units;
  int64_t first_block;

  int64_t end_block(int64_t width) const {
    return first_block + padded_width(units) / kTile * ((width + kTile - 1) / kTile);
  }
};

struct StepProblem {
  RegressorStepCall step;
  RegressorForwardCall forward;
  RegressorBackwardCall backward;
  ParameterTiles tiles;
  PackedMatrix packed[kPackedMatrices];  // two hidden ones, the output's
  void* batch_features;                  // [N, F]
  void* output_gradient;                 // [N, O]
  void* gamma;                           // [H], as it was before this step
  void* adam;                            // [10] Adam<T>, in RegressorParameter's order
  double* losses;                        // [N]: a sample's squares, and joints' distances, summed
  double* distances;
  int32_t parameter_of[kRegressorGradients];
  int64_t workspace_size;

  explicit StepProblem(const RegressorShape& shape) : tiles(shape) {}
};

// ---- 1. prepare ---------------------------------------------------------------------------------

struct BatchRows {
  const int64_t* batch;
  ERD_DEVICE int64_t operator()(int64_t row) const { return batch[row]; }
};

ERD_DEVICE const int64_t* batch_of(const RegressorStepCall& step) {
  return step.order + step.progress[0];
}

template <class T>
ERD_DEVICE void normalize_group(const StepProblem& problem, int64_t first) {
  const RegressorStepCall& step = problem.step;
  normalize_units<T>(problem.forward, first, BatchRows{batch_of(step)});
  __syncthreads();
  const int64_t unit = first + threadIdx.x;
  if (threadIdx.x >= kGroupUnits || unit >= step.shape.width) return;
  const T momentum = static_cast<T>(step.momentum);
  T* mean = static_cast<T*>(step.running_mean) + unit;
  T* variance = static_cast<T*>(step.running_variance) + unit;
  *mean += momentum * (static_cast<const T*>(problem.forward.mean)[unit] - *mean);
  *variance += momentum * (static_cast<const T*>(problem.forward.variance)[unit] - *variance);
  // The last kernel reads gamma in other blocks than the one that changes it.
  static_cast<T*>(problem.gamma)[unit] = static_cast<const T*>(problem.forward.gamma)[unit];
}

template <class T>
constexpr int64_t pack_shared_bytes() {
  return shared_size<T>(kTile * (kTile + 1));
}

template <class T>
ERD_DEVICE void pack_tile(const StepProblem& problem, int64_t block) {
  const int64_t width = problem.step.shape.width;
  int which = kPackedMatrices - 1;
  while (block < problem.packed[which].first_block) --which;
  const PackedMatrix& matrix = problem.packed[which];
  const int64_t units = matrix.units, columns = padded_width(units);
  const int64_t tile = block - matrix.first_block, across = columns / kTile;
  const int64_t first_unit = tile % across * kTile, first_input = tile / across * kTile;
  SharedMemory memory;
  T* values = memory.take<T>(kTile * (kTile + 1));
  const int own = static_cast<int>(threadIdx.x) % kTile;
  const int first = static_cast<int>(threadIdx.x) / kTile;
  for (int i = first; i < kTile; i += kTrainingThreads / kTile) {
    const int64_t unit = first_unit + i, input = first_input + own;
    const bool valid = unit < units && input < width;
    values[i * (kTile + 1) + own] =
        valid ? static_cast<const T*>(matrix.weights)[unit * width + input] : T(0);
  }
  __syncthreads();
  for (int i = first; i < kTile && first_input + i < width; i += kTrainingThreads / kTile) {
    static_cast<T*>(matrix.packed)[(first_input + i) * columns + first_unit + own] =
        values[own * (kTile + 1) + i];
  }
}

template <class T>
ERD_DEVICE void begin_step(const StepProblem& problem) {
  const int parameter = static_cast<int>(threadIdx.x);
  if (parameter >= kRegressorParameters) return;
  float* step = problem.step.parameters[parameter].step;
  *step += 1.0f;
  static_cast<Adam<T>*>(problem.adam)[parameter] =
      Adam<T>(problem.step.adam, *problem.step.lr, static_cast<int64_t>(*step));
}

template <class T>
ERD_KERNEL(kTrainingThreads, 1)
step_prepare(ERD_CONSTANT StepProblem problem) {
  const RegressorShape& shape = problem.step.shape;
  const int64_t groups = (shape.width + kGroupUnits - 1) / kGroupUnits;
  const int64_t block = blockIdx.x, blocks = gridDim.x;
  if (block < groups) {
    normalize_group<T>(problem, block * kGroupUnits);
  } else if (block + 1 < blocks) {
    pack_tile<T>(problem, block - groups);
  } else {
    begin_step<T>(problem);
  }
}

// ---- 2. pass ------------------------------------------------------------------------------------

// The errors of a tile's rows, [output][row], become the gradient of the mean of all squares. A
// warp sums up a row.
template <class T, int R>
ERD_DEVICE void measure_errors(const StepProblem& problem, int64_t tile, T* errors) {
  constexpr int kRows = Share<R>::kRows;
  const RegressorShape& shape = problem.step.shape;
  const int64_t outputs = shape.outputs, joint = problem.step.root_joint;
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  for (int row = thread / 32; row < kRows; row += kTrainingThreads / 32) {
    T root[3] = {};
    for (int c = 0; c < 3 && joint >= 0; ++c) root[c] = errors[(3 * joint + c) * kRows + row];
    double squares = 0, distances = 0;
    for (int64_t k = 3 * (thread % 32); k < outputs; k += 3 * 32) {
      const T x = errors[k * kRows + row], y = errors[(k + 1) * kRows + row],
              z = errors[(k + 2) * kRows + row];
      const T rx = x - root[0], ry = y - root[1], rz = z - root[2];
      squares += static_cast<double>(x * x + y * y + z * z);
      distances += static_cast<double>(std::sqrt(rx * rx + ry * ry + rz * rz));
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
      distances += __shfl_xor_sync(0xffffffffu, distances, lanes);
    }
    const int64_t sample = tile * kRows + row;
    if (thread % 32 == 0 && sample < shape.rows) {
      problem.losses[sample] = squares;
      problem.distances[sample] = distances;
    }
  }
  __syncthreads();
  const T scale = static_cast<T>(2.0 / static_cast<double>(shape.rows * outputs));
  for (int64_t i = thread; i < outputs * kRows; i += kTrainingThreads) {
    const int64_t sample = tile * kRows + i / outputs, output = i % outputs;
    T* error = errors + output * kRows + i / outputs;
    *error *= scale;
    if (sample < shape.rows) {
      static_cast<T*>(problem.output_gradient)[sample * outputs + output] = *error;
    }
  }
}

template <class T, int R>
ERD_KERNEL(kTrainingThreads, 1)
step_pass(ERD_CONSTANT StepProblem problem, int ring_size) {
  constexpr int kRows = Share<R>::kRows;
  const RegressorStepCall& step = problem.step;
  const int64_t rows = step.shape.rows, features = step.shape.features,
                outputs = step.shape.outputs;
  const int64_t* batch = batch_of(step);
  const int64_t* seed = step.seeds == nullptr ? nullptr : step.seeds + step.progress[1];
  ChainMemory<T, R> memory(step.shape, ring_size);
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    for (int64_t i = threadIdx.x; i < kRows * features; i += kTrainingThreads) {
      const int64_t row = tile * kRows + i / features;
      if (row >= rows) break;
      static_cast<T*>(problem.batch_features)[tile * kRows * features + i] =
          static_cast<const T*>(step.features)[batch[row] * features + i % features];
    }
    const ForwardTile<T, R> forward(problem.forward, tile);
    forward.first_layer(seed, memory);
    forward.template hidden_layers<Weights::by_input>(
        [&](int layer) { return problem.packed[layer].packed; }, memory);
    forward.template output_layer<Weights::by_input>(
        static_cast<const T*>(problem.packed[2].packed), memory,
        [&](int64_t row, int64_t output, T value, int64_t place) {
          T error = T(0);
          if (row < rows) {
            error = value - static_cast<const T*>(step.targets)[batch[row] * outputs + output];
          }
          memory.next[place] = error;
        });
    measure_errors<T, R>(problem, tile, memory.next);
    memory.swap();
    back_through_layers(problem.backward, tile, memory);
  }
}

// ---- 3. update ----------------------------------------------------------------------------------

// Takes gradients by updating what they belong to.
template <class T>
struct AdamSink {
  const StepProblem& problem;

  ERD_DEVICE bool wants(int) const { return true; }
  ERD_DEVICE void take(int gradient, int64_t at, T value) const {
    update(problem.parameter_of[gradient], at, value);
  }
  ERD_DEVICE void update(int which, int64_t at, T gradient) const {
    const AdamParameter& parameter = problem.step.parameters[which];
    static_cast<const Adam<T>*>(problem.adam)[which].update(
        static_cast<T*>(parameter.value)[at], static_cast<T*>(parameter.exp_avg)[at],
        static_cast<T*>(parameter.exp_avg_sq)[at], gradient);
  }
};

// What the next step finds.
template <class T>
ERD_DEVICE void end_step(const StepProblem& problem, const AdamSink<T>& sink) {
  const RegressorStepCall& step = problem.step;
  const int64_t rows = step.shape.rows, outputs = step.shape.outputs;
  const int thread = static_cast<int>(threadIdx.x);
  // The bias before BatchNorm has no gradient, but Adam may still be moving it.
  for (int64_t unit = thread; unit < step.shape.width; unit += kTrainingThreads) {
    sink.update(kBIn, unit, T(0));
  }
  SharedMemory memory;
  double* warps = memory.take<double>(2 * (kTrainingThreads / 32));
  double loss = 0, distance = 0;
  for (int64_t row = thread; row < rows; row += kTrainingThreads) {
    loss += problem.losses[row];
    distance += problem.distances[row];
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    loss += __shfl_xor_sync(0xffffffffu, loss, lanes);
    distance += __shfl_xor_sync(0xffffffffu, distance, lanes);
  }
  if (thread % 32 == 0) {
    warps[thread / 32 * 2] = loss;
    warps[thread / 32 * 2 + 1] = distance;
  }
  __syncthreads();
  if (thread != 0) return;
  for (int warp = 1; warp < kTrainingThreads / 32; ++warp) {
    loss += warps[2 * warp];
    distance += warps[2 * warp + 1];
  }
  step.sums[0] += loss / static_cast<double>(rows * outputs);
  step.sums[1] += distance / static_cast<double>(rows * (outputs / 3));
  step.progress[0] += rows;
  step.progress[1] += 1;
  *step.batches += 1;
}

template <class T>
ERD_KERNEL(kTrainingThreads, 1)
step_update(ERD_CONSTANT StepProblem problem) {
  const int64_t block = blockIdx.x, blocks = gridDim.x;
  const AdamSink<T> sink{problem};
  if (block + 1 < blocks) {
    sum_parameter_gradients<T>(problem.backward, problem.tiles, block, sink);
  } else {
    end_step<T>(problem, sink);
  }
}

// ---- the launches -------------------------------------------------------------------------------

// Without a workspace only workspace_size counts.
template <class T>
StepProblem problem_of(const RegressorStepCall& step) {
  const RegressorShape& shape = step.shape;
  const int64_t n = shape.rows, plane = n * shape.width;
  const AdamParameter* parameters = step.parameters;
  WorkspaceCutter cutter(step.workspace);
  StepProblem problem(shape);
  problem.step = step;
  problem.batch_features = cutter.take<T>(n * shape.features);
  problem.output_gradient = cutter.take<T>(n * shape.outputs);
  problem.gamma = cutter.take<T>(shape.width);
  problem.adam = cutter.take<Adam<T>>(kRegressorParameters);
  problem.losses = cutter.take<double>(n);
  problem.distances = cutter.take<double>(n);
  int64_t blocks = 0;
  const RegressorParameter packed[kPackedMatrices] = {kWHidden0, kWHidden1, kWOut};
  for (int i = 0; i < kPackedMatrices; ++i) {
    const int64_t units = packed[i] == kWOut ? shape.outputs : shape.width;
    problem.packed[i] = {parameters[packed[i]].value,
                         cutter.take<T>(shape.width * padded_width(units)), units, blocks};
    blocks = problem.packed[i].end_block(shape.width);
  }
  for (int i = 0; i < kRegressorGradients; ++i) problem.parameter_of[i] = kParameterOfGradient[i];

  RegressorForwardCall& forward = problem.forward;
  forward = {};
  forward.shape = shape;
  forward.block = step.block;
  forward.eps = step.eps;
  forward.features = step.features;
  forward.w_in = parameters[kWIn].value;
  forward.b_in = parameters[kBIn].value;
  forward.gamma = parameters[kGamma].value;
  forward.beta = parameters[kBeta].value;
  forward.b_hidden[0] = parameters[kBHidden0].value;
  forward.b_hidden[1] = parameters[kBHidden1].value;
  forward.b_out = parameters[kBOut].value;
  forward.mean = cutter.take<T>(shape.width);
  forward.variance = cutter.take<T>(shape.width);
  forward.inverse_std = cutter.take<T>(shape.width);
  forward.activations = cutter.take<T>(kActivations * plane);
  forward.passes = cutter.take<uint8_t>(plane);

  RegressorBackwardCall& backward = problem.backward;
  backward = {};
  backward.shape = shape;
  backward.grad = problem.output_gradient;
  backward.features = problem.batch_features;
  backward.gamma = problem.gamma;
  backward.w_hidden[0] = parameters[kWHidden0].value;
  backward.w_hidden[1] = parameters[kWHidden1].value;
  backward.w_out = parameters[kWOut].value;
  backward.inverse_std = forward.inverse_std;
  backward.activations = forward.activations;
  backward.passes = forward.passes;
  backward.workspace = cutter.take<T>(3 * plane);
  problem.workspace_size = cutter.size();
  return problem;
}

template <class T, int R>
void launch_pass(const StepProblem& problem, const CudaDevice& device) {
  const ChainLaunch chain = chain_launch<T, R>(problem.step.shape, device);
  launch(step_pass<T, R>, device, chain.shape, problem, chain.ring_size);
}

template <class T>
void run_step(const RegressorStepCall& step, const CudaDevice& device) {
  const RegressorShape& shape = step.shape;
  const StepProblem problem = problem_of<T>(step);
  const int64_t packed = problem.packed[kPackedMatrices - 1].end_block(shape.width);
  const int64_t normalizing = normalize_shared_bytes<T>(shape);
  const int64_t preparing =
      normalizing > pack_shared_bytes<T>() ? normalizing : pack_shared_bytes<T>();
  check_chain_fits(preparing, device);
  launch(step_prepare<T>, device,
         LaunchShape{unit_groups(shape) + packed + 1, kTrainingThreads, preparing}, problem);
  if (sizeof(T) == 4 && rows_per_tile<T>(shape, device) == 16) {
    if constexpr (sizeof(T) == 4) launch_pass<T, 4>(problem, device);
  } else {
    launch_pass<T, 2>(problem, device);
  }
  launch(step_update<T>, device,
         LaunchShape{problem.tiles.blocks() + 1, kTrainingThreads, parameter_shared_bytes<T>()},
         problem);
}

}  // namespace

ERD_NAMESPACE_END

namespace erd {

void run_regressor_step_cuda(const RegressorStepCall& call, const CudaDevice& device) {
  if (call.shape.scalar == ScalarType::float32) {
    run_step<float>(call, device);
  } else {
    run_step<double>(call, device);
  }
}

int64_t regressor_step_workspace_cuda(const RegressorShape& shape) {
  RegressorStepCall call = {};
  call.shape = shape;
  return shape.scalar == ScalarType::float32 ? problem_of<float>(call).workspace_size
                                             : problem_of<double>(call).workspace_size;
}

}  // namespace erd
