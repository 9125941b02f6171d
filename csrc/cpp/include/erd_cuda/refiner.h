// Explicit Residual Descent in C++: refines 3D human poses in plain memory, without torch or
// Python.
//
//   auto refiner = erd_cuda::Refiner::load("stages.safetensors");   // erd-cuda export --format cpp
//   erd_cuda::Poses poses;
//   poses.count = n;
//   poses.keypoints = keypoints;    // and so on, see below
//   refiner.refine(poses, refined);
//
// Arrays are dense float32, one sample after the other, in pixels and millimetres. Errors are
// exceptions: std::invalid_argument for what a call asks, std::runtime_error for files and the
// machine.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#if defined(__GNUC__)
#define ERD_CUDA_API __attribute__((visibility("default")))
#else
#define ERD_CUDA_API
#endif

namespace erd_cuda {

// How normalised image points become pixels.
//   pinhole   without a lens
//   opencv    OpenCV's lens, coefficients k1 k2 p1 p2 k3
//   h36m      Human3.6M's own, coefficients k1 k2 k3 p1 p2, tangential terms without OpenCV's
//   factor 2
enum class CameraModel : int32_t { pinhole = 0, opencv = 1, h36m = 2 };

// Whether a root was found, and if not, why.
enum class RootStatus : int32_t {
  ok = 0,
  too_few_joints = 1,   // fewer than two joints are seen
  one_image_point = 2,  // all of them at one place in the picture
  behind_camera = 3,
  not_finite = 4,  // NaN or infinity, or a keypoint where the lens cannot be undone
};

// `count` samples of J joints. What is a null pointer is absent.
struct Poses {
  int64_t count = 0;
  const float* keypoints = nullptr;   // [count, J, 2] px, the detected joints
  const float* pose = nullptr;        // [count, J, 3] mm relative to the root, a lifter's
  const float* root = nullptr;        // [count, 3] mm in the camera's frame; absent: solved for
  const float* confidence = nullptr;  // [count, J]; not positive: missing; absent: all are seen
  const float* intrinsics = nullptr;  // [count, 4] fx fy cx cy in px
  const float* distortion = nullptr;  // [count, 5]; absent for a pinhole
  CameraModel camera = CameraModel::pinhole;
  bool one_camera = false;  // intrinsics and distortion are one camera for all: [4] and [5]
};

// The stages of a trained model. Copies share their weights; any number of threads may use one.
class ERD_CUDA_API Refiner {
 public:
  // Reads a file that `erd-cuda export --format cpp` wrote.
  static Refiner load(const std::string& path);

  int64_t joints() const;
  int64_t stages() const;
  // How the stages were trained to know the root: "given", "solve" or "solve_each_stage".
  const std::string& root() const;

  // Writes the refined poses, [count, J, 3] mm relative to the root, to `refined`, which may be
  // poses.pose. Without poses.root the root is solved for as root() says, from the pose as it is; a
  // pose whose root cannot be found stays as it is. Throws where root() is "given" and none is.
  void refine(const Poses& poses, float* refined) const;

  // Writes the least-squares roots, [count, 3] mm, and the status of each, unless that is null.
  // Where there is no root it is 0. poses.root is not looked at.
  void solve_root(const Poses& poses, float* root, RootStatus* status = nullptr) const;

 private:
  struct Model;
  explicit Refiner(std::shared_ptr<const Model> model);
  std::shared_ptr<const Model> model_;
};

// How many threads a call may use, the caller's included; 0, the default, stands for as many as
// this process may run on.
ERD_CUDA_API void set_num_threads(int64_t threads);
ERD_CUDA_API int64_t num_threads();

}  // namespace erd_cuda
