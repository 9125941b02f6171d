// The file that `erd-cuda export --format cpp` writes: a safetensors file (the length of a JSON
// header, the header, raw numbers) with the packed weights in float32 and, as metadata, what they
// mean. erd_cuda/export/cpp_weights.py is the other side.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace erd_cuda {

struct WeightsFile {
  struct Tensor {
    std::vector<int64_t> shape;
    const float* data;
  };

  // Throws std::runtime_error, in one sentence that names the file.
  explicit WeightsFile(const std::string& path);
  WeightsFile(const WeightsFile&) = delete;
  WeightsFile& operator=(const WeightsFile&) = delete;

  // The metadata's value for a key.
  const std::string& word(const std::string& key) const;
  // The number of the metadata's value for a key among `choices`.
  int32_t choice(const std::string& key, const std::vector<std::string>& choices) const;
  // A tensor of that name; sizes of -1 in `shape` are open, and filled in.
  const float* tensor(const std::string& name, std::vector<int64_t>& shape) const;
  const float* tensor(const std::string& name, std::vector<int64_t>&& shape) const {
    return tensor(name, shape);
  }

  [[noreturn]] void fail(const std::string& why) const;

 private:
  void read(const std::string& path);

  std::string path_;
  std::vector<float> numbers_;
  std::map<std::string, std::string> words_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace erd_cuda
