// Refines poses with the stages of a trained model, in a program without torch or Python:
//
//   erd-cuda export --format cpp cmu17-solved-root stages.safetensors
//   refine_poses stages.safetensors DIRECTORY
//
// DIRECTORY holds dense raw float32 files: keypoints.f32 (N x J x 2, px), pose.f32 (N x J x 3, mm,
// a lifter's), intrinsics.f32 (N x 4, or one for all: 4), and if there are any root.f32 (N x 3),
// confidence.f32 (N x J) and distortion.f32 (N x 5 or 5, OpenCV's coefficients). Beside them are
// written refined.f32, the refined poses, and solved.f32, the roots that least squares finds.
#include <erd_cuda/refiner.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Numbers = std::vector<float>;

std::optional<Numbers> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return std::nullopt;
  Numbers numbers(static_cast<size_t>(file.tellg()) / sizeof(float));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(numbers.data()),
            static_cast<std::streamsize>(numbers.size() * sizeof(float)));
  return numbers;
}

void write(const std::string& path, const Numbers& numbers) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(numbers.data()),
             static_cast<std::streamsize>(numbers.size() * sizeof(float)));
  if (!file) throw std::runtime_error("cannot write " + path);
}

// The library takes the caller's word for how long its arrays are.
const float* checked(const std::string& name, const std::optional<Numbers>& numbers, int64_t count,
                     int64_t width) {
  if (!numbers.has_value()) return nullptr;
  if (static_cast<int64_t>(numbers->size()) != count * width) {
    throw std::runtime_error(name + ".f32 holds " + std::to_string(numbers->size()) +
                             " numbers, expected " + std::to_string(count * width));
  }
  return numbers->data();
}

void run(const std::string& weights, const std::string& directory) {
  const auto refiner = erd_cuda::Refiner::load(weights);
  const auto load = [&](const std::string& name) { return read(directory + "/" + name + ".f32"); };
  const auto keypoints = load("keypoints"), pose = load("pose"), intrinsics = load("intrinsics"),
             distortion = load("distortion"), root = load("root"), confidence = load("confidence");
  if (!pose.has_value()) throw std::runtime_error("there is no " + directory + "/pose.f32");

  erd_cuda::Poses poses;
  poses.count = static_cast<int64_t>(pose->size()) / (3 * refiner.joints());
  poses.one_camera = intrinsics.has_value() && intrinsics->size() == 4;
  if (distortion.has_value()) poses.camera = erd_cuda::CameraModel::opencv;
  const int64_t cameras = poses.one_camera ? 1 : poses.count;
  poses.keypoints = checked("keypoints", keypoints, poses.count, 2 * refiner.joints());
  poses.pose = checked("pose", pose, poses.count, 3 * refiner.joints());
  poses.intrinsics = checked("intrinsics", intrinsics, cameras, 4);
  poses.distortion = checked("distortion", distortion, cameras, 5);
  poses.root = checked("root", root, poses.count, 3);
  poses.confidence = checked("confidence", confidence, poses.count, refiner.joints());

  Numbers refined(pose->size());
  refiner.refine(poses, refined.data());
  write(directory + "/refined.f32", refined);

  Numbers solved(static_cast<size_t>(poses.count) * 3);
  std::vector<erd_cuda::RootStatus> status(static_cast<size_t>(poses.count));
  refiner.solve_root(poses, solved.data(), status.data());
  write(directory + "/solved.f32", solved);
  int64_t unsolved = 0;
  for (const auto reason : status) unsolved += reason != erd_cuda::RootStatus::ok;
  std::cout << poses.count << " poses, " << refiner.stages() << " stages, " << unsolved
            << " without a least-squares root\n";
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: refine_poses WEIGHTS DIRECTORY\n";
    return 2;
  }
  try {
    run(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
