// Runs a model that was compiled ahead of time, lifter and stages, in a program without Python:
//
//   erd-cuda export --format aoti cmu17-detected model.pt2
//   run_package model.pt2 .../erd_cuda/liberd_cuda_ops.so DIRECTORY
//
// DIRECTORY holds a raw float32 file for each input of the model, keypoints.f32 and so on, dense
// and with as many samples each; refined.f32 is written beside them.
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// What a sample has of each input.
std::vector<int64_t> sample_shape(const std::string& input, int64_t joints) {
  const std::map<std::string, std::vector<int64_t>> shapes = {
      {"keypoints", {joints, 2}}, {"intrinsics", {4}},   {"distortion", {5}}, {"root", {3}},
      {"confidence", {joints}},   {"pose", {joints, 3}}, {"bone_length", {}}};
  return shapes.at(input);
}

at::Tensor read(const std::string& path, std::vector<int64_t> shape) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot read " + path);
  const auto bytes = static_cast<int64_t>(file.tellg());
  int64_t sample = sizeof(float);
  for (const int64_t size : shape) sample *= size;
  shape.insert(shape.begin(), bytes / sample);
  at::Tensor tensor = at::empty(shape, at::kFloat);
  file.seekg(0);
  file.read(static_cast<char*>(tensor.data_ptr()), bytes / sample * sample);
  return tensor;
}

void run(const std::string& package, const std::string& operators, const std::string& directory) {
  // The refiner is an operator of its own; its library registers it on being opened.
  if (dlopen(operators.c_str(), RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader model(package);

  const auto metadata = model.get_metadata();
  const int64_t joints = std::stoll(metadata.at("joints"));
  std::istringstream names(metadata.at("inputs"));
  std::vector<at::Tensor> inputs;
  for (std::string name; names >> name;) {
    inputs.push_back(read(directory + "/" + name + ".f32", sample_shape(name, joints)));
    // The compiled code does not look whether they are.
    if (inputs.back().size(0) != inputs.front().size(0)) {
      throw std::runtime_error(name + ".f32 does not hold as many samples as keypoints.f32");
    }
  }

  const at::Tensor refined = model.run(inputs).at(0).contiguous();
  std::ofstream file(directory + "/refined.f32", std::ios::binary);
  file.write(static_cast<const char*>(refined.const_data_ptr()),
             static_cast<std::streamsize>(refined.nbytes()));
  if (!file) throw std::runtime_error("cannot write " + directory + "/refined.f32");
  std::cout << refined.size(0) << " poses of " << joints << " joints\n";
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "usage: run_package MODEL.pt2 LIBERD_CUDA_OPS.so DIRECTORY\n";
    return 2;
  }
  try {
    run(arguments[1], arguments[2], arguments[3]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
