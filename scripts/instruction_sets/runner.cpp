// Runs the cases of a file on the instruction sets that it is given, by names of
// ERD_CPU_CAPABILITY, and compares with what must come out; one line a case. Ends with status 0 if
// all is as it should be.
//
//   instruction_sets CASES portable avx2 avx512
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <initializer_list>

#include "case_file.h"
#include "core/geometry_shape.h"
#include "cpu/kernels.h"

namespace {

using namespace erd;

// In one thread: how work is spread is no matter of instruction sets.
const ParallelFor kOneThread{
    [](int64_t count, int64_t, void (*body)(void*, int64_t, int64_t), void* context) {
      if (count > 0) body(context, 0, count);
    }};

const void* data_of(const Bytes& bytes) { return bytes.empty() ? nullptr : bytes.data(); }

int64_t size_of(ScalarType scalar) { return scalar == ScalarType::float32 ? 4 : 8; }

// One row per sample, or one for all.
Rows rows_of(const Bytes& bytes, ScalarType scalar, int64_t width) {
  Rows rows;
  rows.data = data_of(bytes);
  rows.stride = static_cast<int64_t>(bytes.size()) == width * size_of(scalar) ? 0 : width;
  return rows;
}

// The same from sample `first` on.
Rows from_sample(Rows rows, ScalarType scalar, int64_t first) {
  if (rows.data == nullptr) return rows;
  rows.data = static_cast<const char*>(rows.data) + first * rows.stride * size_of(scalar);
  return rows;
}

double number_at(const void* numbers, ScalarType scalar, int64_t i) {
  return scalar == ScalarType::float32 ? static_cast<double>(static_cast<const float*>(numbers)[i])
                                       : static_cast<const double*>(numbers)[i];
}

// What came out of a case: its largest error against what was allowed, and what was wrong.
struct Outcome {
  double share = 0;
  std::string wrong;

  // `expected` holds its tolerance first, a share of its own Euclidean norm.
  void compare(const char* what, const void* got, ScalarType scalar, const Bytes& expected) {
    const double* exact = reinterpret_cast<const double*>(expected.data());
    const double tolerance = *exact++;
    const int64_t count = static_cast<int64_t>(expected.size() / sizeof(double)) - 1;
    double error = 0, norm = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double difference = number_at(got, scalar, i) - exact[i];
      error += difference * difference;
      norm += exact[i] * exact[i];
    }
    // NaN compares with nothing and must not pass.
    const double relative = std::sqrt(error / norm);
    if (!(relative <= tolerance)) {
      char text[160];
      std::snprintf(text, sizeof text, " %s: error %.2g, allowed %.2g;", what, relative, tolerance);
      wrong += text;
    }
    if (relative / tolerance > share) share = relative / tolerance;
  }
  void require(bool holds, const std::string& sentence) {
    if (!holds) wrong += " " + sentence + ";";
  }
};

Outcome run_refine_case(CaseFile& file) {
  RefineCall call{};
  call.scalar = static_cast<ScalarType>(file.integer());
  call.camera_model = static_cast<int32_t>(file.integer());
  call.block = static_cast<RegressorBlock>(file.integer());
  call.features = static_cast<Features>(file.integer());
  call.root_mode = static_cast<RootMode>(file.integer());
  call.precision = static_cast<Precision>(file.integer());
  call.count = file.integer();
  const int64_t j = call.joints = file.integer();
  call.stages = file.integer();
  call.width = file.integer();
  call.residual_limit = file.real();
  const Bytes keypoints = file.array(), pose = file.array(), root = file.array(),
              intrinsics = file.array(), distortion = file.array(), confidence = file.array(),
              w_in = file.array(), b_in = file.array(), w_hidden = file.array(),
              b_hidden = file.array(), w_out = file.array(), b_out = file.array(),
              mean2d = file.array(), columns = file.array(), expected = file.array();
  const Rows inputs[] = {
      rows_of(keypoints, call.scalar, 2 * j), rows_of(pose, call.scalar, 3 * j),
      rows_of(root, call.scalar, 3),          rows_of(intrinsics, call.scalar, 4),
      rows_of(distortion, call.scalar, 5),    rows_of(confidence, call.scalar, j)};
  call.w_in = data_of(w_in), call.b_in = data_of(b_in);
  call.w_hidden = data_of(w_hidden), call.b_hidden = data_of(b_hidden);
  call.w_out = data_of(w_out), call.b_out = data_of(b_out);
  call.mean2d = data_of(mean2d);

  const int64_t pose_size = 3 * j * size_of(call.scalar);
  const auto refine = [&](int64_t first, int64_t count, const Bytes& few, bool stages) {
    RefineCall part = call;
    Rows* targets[] = {&part.keypoints,  &part.pose,       &part.root,
                       &part.intrinsics, &part.distortion, &part.confidence};
    for (int i = 0; i < 6; ++i) *targets[i] = from_sample(inputs[i], call.scalar, first);
    part.count = count;
    part.every_stage = stages;
    part.fragments = data_of(few);
    Bytes output(static_cast<size_t>((stages ? call.stages : 1) * count * pose_size));
    part.output = output.data();
    cpu_kernels().refine(part, kOneThread);
    return output;
  };

  // bf16 knows no other weights than those.
  std::vector<Bytes> ways{columns};
  if (call.precision != Precision::bf16) ways.insert(ways.begin(), Bytes{});

  Outcome outcome;
  const Bytes all = refine(0, call.count, ways[0], false);
  const Bytes every_stage = refine(0, call.count, ways[0], true);
  // Of the increments: the poses themselves are large and come back as they were.
  Bytes increments = every_stage;
  for (size_t i = 0; i < increments.size() / static_cast<size_t>(size_of(call.scalar)); ++i) {
    const size_t at = i % (static_cast<size_t>(call.count) * 3 * static_cast<size_t>(j));
    if (call.scalar == ScalarType::float32) {
      reinterpret_cast<float*>(increments.data())[i] -=
          reinterpret_cast<const float*>(pose.data())[at];
    } else {
      reinterpret_cast<double*>(increments.data())[i] -=
          reinterpret_cast<const double*>(pose.data())[at];
    }
  }
  outcome.compare("increments", increments.data(), call.scalar, expected);
  outcome.require(std::memcmp(every_stage.data() + every_stage.size() - all.size(), all.data(),
                              all.size()) == 0,
                  "the last of all stages differs");
  // Whatever a pose's neighbours are, and whichever kernel it meets, it becomes the same.
  for (int64_t count = 1; count <= call.count; ++count) {
    // Around whole vectors, and all that are few; the others would only take long.
    if (count > 20 && count % 16 > 1 && count % 16 < 15) continue;
    const int64_t first = (7 * count) % (call.count - count + 1);
    for (const Bytes& few : ways) {
      const Bytes part = refine(first, count, few, false);
      outcome.require(std::memcmp(part.data(), all.data() + first * pose_size, part.size()) == 0,
                      std::to_string(count) + " poses" + (few.empty() ? "" : " by columns") +
                          " become others than among all");
    }
  }
  return outcome;
}

Outcome run_geometry_case(CaseFile& file) {
  GeometryCall call{};
  call.function = static_cast<GeometryFunction>(file.integer());
  call.order = static_cast<DerivativeOrder>(file.integer());
  call.scalar = static_cast<ScalarType>(file.integer());
  call.camera_model = static_cast<int32_t>(file.integer());
  call.count = file.integer();
  call.joints = file.integer();
  Bytes inputs[kSlots], tangents[kSlots], expected[kSlots], gradients[kSlots];
  for (Bytes& input : inputs) input = file.array();
  for (Bytes& tangent : tangents) tangent = file.array();
  const Bytes grad_output = file.array(), output = file.array(), status = file.array();
  for (Bytes& gradient : expected) gradient = file.array();

  for (int slot = 0; slot < kSlots; ++slot) {
    const int64_t width = slot_width(slot, call.joints);
    call.inputs[slot] = rows_of(inputs[slot], call.scalar, width);
    call.tangents[slot] = rows_of(tangents[slot], call.scalar, width);
    gradients[slot].resize(expected[slot].empty() ? 0
                                                  : static_cast<size_t>(8 * call.count * width));
    call.gradients[slot] = expected[slot].empty() ? nullptr : gradients[slot].data();
  }
  Bytes got(output.size());
  std::vector<int32_t> reasons(static_cast<size_t>(call.count));
  call.grad_output =
      rows_of(grad_output, call.scalar,
              static_cast<int64_t>(grad_output.size()) / (call.count * size_of(call.scalar)));
  call.output = got.data();
  call.status = reasons.data();
  cpu_kernels().geometry(call, kOneThread);

  Outcome outcome;
  if (!output.empty()) outcome.compare("output", got.data(), call.scalar, output);
  outcome.require(std::memcmp(reasons.data(), status.data(), status.size()) == 0,
                  "the status differs");
  for (int slot = 0; slot < kSlots; ++slot) {
    if (expected[slot].empty()) continue;
    const std::string name = "gradient " + std::to_string(slot);
    outcome.compare(name.c_str(), gradients[slot].data(), call.scalar, expected[slot]);
  }
  return outcome;
}

RegressorShape read_shape(CaseFile& file) {
  RegressorShape shape;
  shape.scalar = static_cast<ScalarType>(file.integer());
  shape.rows = file.integer();
  shape.features = file.integer();
  shape.width = file.integer();
  shape.outputs = file.integer();
  shape.dropout = file.real();
  return shape;
}

Bytes room(int64_t numbers) { return Bytes(static_cast<size_t>(8 * numbers)); }

Outcome run_regressor_case(CaseFile& file) {
  RegressorForwardCall call{};
  const RegressorShape shape = call.shape = read_shape(file);
  call.block = static_cast<RegressorBlock>(file.integer());
  const int64_t seed = file.integer();
  call.eps = file.real();
  const Bytes features = file.array(), w_in = file.array(), b_in = file.array(),
              gamma = file.array(), beta = file.array(), w0 = file.array(), b0 = file.array(),
              w1 = file.array(), b1 = file.array(), w_out = file.array(), b_out = file.array(),
              grad = file.array();
  const int64_t n = shape.rows, h = shape.width, f = shape.features, o = shape.outputs;
  Bytes increment = room(n * o), mean = room(h), variance = room(h), inverse_std = room(h),
        activations = room(kActivations * n * padded_width(h)),
        workspace = room(3 * n * padded_width(h));
  std::vector<uint8_t> passes(static_cast<size_t>(n * h));
  call.features = features.data();
  call.w_in = w_in.data(), call.b_in = b_in.data();
  call.gamma = gamma.data(), call.beta = beta.data();
  call.w_hidden[0] = w0.data(), call.w_hidden[1] = w1.data();
  call.b_hidden[0] = b0.data(), call.b_hidden[1] = b1.data();
  call.w_out = w_out.data(), call.b_out = b_out.data();
  call.seed = shape.dropout > 0 ? &seed : nullptr;
  call.increment = increment.data(), call.mean = mean.data(), call.variance = variance.data();
  call.inverse_std = inverse_std.data(), call.activations = activations.data();
  call.passes = passes.data();
  cpu_kernels().regressor_forward(call, kOneThread);

  RegressorBackwardCall back{};
  back.shape = shape;
  back.grad = grad.data(), back.features = features.data(), back.w_in = w_in.data();
  back.gamma = gamma.data(), back.w_hidden[0] = w0.data(), back.w_hidden[1] = w1.data();
  back.w_out = w_out.data(), back.inverse_std = inverse_std.data();
  back.activations = activations.data(), back.passes = passes.data();
  back.workspace = workspace.data();
  const int64_t sizes[kRegressorGradients] = {n * f, h * f, h, h, h * h, h * h, h, h, o * h, o};
  Bytes gradients[kRegressorGradients];
  for (int g = 0; g < kRegressorGradients; ++g) {
    gradients[g] = room(sizes[g]);
    back.gradients[g] = gradients[g].data();
  }
  cpu_kernels().regressor_backward(back, kOneThread);

  Outcome outcome;
  outcome.compare("increment", increment.data(), shape.scalar, file.array());
  outcome.compare("mean", mean.data(), shape.scalar, file.array());
  outcome.compare("variance", variance.data(), shape.scalar, file.array());
  for (int g = 0; g < kRegressorGradients; ++g) {
    const std::string name = "gradient " + std::to_string(g);
    outcome.compare(name.c_str(), gradients[g].data(), shape.scalar, file.array());
  }
  return outcome;
}

Outcome run_step_case(CaseFile& file) {
  RegressorStepCall call{};
  const RegressorShape shape = call.shape = read_shape(file);
  call.block = static_cast<RegressorBlock>(file.integer());
  call.root_joint = file.integer();
  const int64_t steps = file.integer();
  call.eps = file.real();
  call.momentum = file.real();
  const double lr = file.real();
  call.adam.beta1 = file.real(), call.adam.beta2 = file.real(), call.adam.eps = file.real();
  const Bytes features = file.array(), targets = file.array(), order = file.array(),
              seeds = file.array();
  Bytes parameters[kRegressorParameters], averages[kRegressorParameters],
      squares[kRegressorParameters];
  float taken[kRegressorParameters] = {};
  for (int p = 0; p < kRegressorParameters; ++p) {
    parameters[p] = file.array();
    averages[p].resize(parameters[p].size());
    squares[p].resize(parameters[p].size());
    call.parameters[p] = {parameters[p].data(), averages[p].data(), squares[p].data(), &taken[p]};
  }
  Bytes running_mean = file.array(), running_variance = file.array();
  double sums[2] = {};
  int64_t progress[2] = {}, batches = 0;
  Bytes workspace(static_cast<size_t>(cpu_kernels().regressor_step_workspace(shape)));
  call.features = features.data(), call.targets = targets.data();
  call.order = reinterpret_cast<const int64_t*>(order.data());
  call.progress = progress;
  call.seeds = static_cast<const int64_t*>(data_of(seeds));
  call.lr = &lr;
  call.batches = &batches;
  call.running_mean = running_mean.data(), call.running_variance = running_variance.data();
  call.sums = sums;
  call.workspace = workspace.data();
  for (int64_t step = 0; step < steps; ++step) cpu_kernels().regressor_step(call, kOneThread);

  Outcome outcome;
  for (int p = 0; p < kRegressorParameters; ++p) {
    const std::string name = "parameter " + std::to_string(p);
    outcome.compare(name.c_str(), parameters[p].data(), shape.scalar, file.array());
  }
  outcome.compare("running mean", running_mean.data(), shape.scalar, file.array());
  outcome.compare("running variance", running_variance.data(), shape.scalar, file.array());
  outcome.compare("sums", sums, ScalarType::float64, file.array());
  return outcome;
}

// Runs all cases on the instruction set that ERD_CPU_CAPABILITY names; how many were wrong.
int run_cases(const char* path) {
  CaseFile file(path);
  const char* variant = cpu_kernels().name;
  int wrong = 0, count = 0;
  std::string name;
  while (file.next(name)) {
    const Outcome outcome = name.rfind("refine", 0) == 0      ? run_refine_case(file)
                            : name.rfind("regressor", 0) == 0 ? run_regressor_case(file)
                            : name.rfind("step", 0) == 0      ? run_step_case(file)
                                                              : run_geometry_case(file);
    ++count;
    wrong += !outcome.wrong.empty();
    std::printf("%s %s: %s, %.2f of the error allowed.%s\n", variant, name.c_str(),
                outcome.wrong.empty() ? "right" : "WRONG", outcome.share, outcome.wrong.c_str());
    std::fflush(stdout);
  }
  std::printf("%s: %d cases, %d wrong\n", variant, count, wrong);
  return wrong;
}

// In a process of its own: the kernels are chosen once.
bool run_variant(const char* path, const char* variant) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    setenv("ERD_CPU_CAPABILITY", variant, 1);
    try {
      std::exit(run_cases(path) == 0 ? 0 : 1);
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", variant, error.what());
      std::exit(1);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) std::printf("%s: killed by signal %d\n", variant, WTERMSIG(status));
  return status == 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: instruction_sets CASES VARIANT...\n");
    return 2;
  }
  bool right = true;
  for (int i = 2; i < count; ++i) right = run_variant(arguments[1], arguments[i]) && right;
  return right ? 0 : 1;
}
