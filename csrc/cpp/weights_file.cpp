#include "cpp/weights_file.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "cpp/json.h"

namespace erd_cuda {
namespace {

// A header of these weights has about a thousand bytes.
constexpr uint64_t kLongestHeader = 1 << 20;

int64_t as_size(const Json& json) {
  if (json.kind != Json::Kind::number) throw std::runtime_error("a size in the header is none");
  return json.number;
}

}  // namespace

WeightsFile::WeightsFile(const std::string& path) : path_(path) {
  try {
    read(path);
  } catch (const std::runtime_error& error) {
    fail(error.what());
  }
}

void WeightsFile::read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("it cannot be opened");
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  uint64_t header_length = 0;
  if (bytes.size() < sizeof(header_length)) throw std::runtime_error("it is truncated");
  std::memcpy(&header_length, bytes.data(), sizeof(header_length));
  if (header_length > kLongestHeader) throw std::runtime_error("it is no file of weights");
  const size_t begin = sizeof(header_length) + header_length;
  if (begin > bytes.size()) throw std::runtime_error("it is truncated");
  const Json header = Json::parse(bytes.substr(sizeof(header_length), header_length));

  const auto length = static_cast<int64_t>(bytes.size() - begin);
  numbers_.resize(static_cast<size_t>(length) / sizeof(float));
  std::memcpy(numbers_.data(), bytes.data() + begin, numbers_.size() * sizeof(float));
  for (const auto& [name, entry] : header.object) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.object) words_[key] = value.text;
      continue;
    }
    const Json* const dtype = entry.find("dtype");
    const Json* const shape = entry.find("shape");
    const Json* const offsets = entry.find("data_offsets");
    if (dtype == nullptr || dtype->text != "F32" || shape == nullptr || offsets == nullptr ||
        offsets->list.size() != 2) {
      throw std::runtime_error("the tensor " + name + " is not float32");
    }
    Tensor tensor;
    int64_t size = sizeof(float);
    for (const Json& part : shape->list) {
      tensor.shape.push_back(as_size(part));
      // One at a time, so that the product cannot overflow.
      if (tensor.shape.back() > length) throw std::runtime_error("it is truncated");
      size *= tensor.shape.back();
      if (size > length) throw std::runtime_error("it is truncated");
    }
    const int64_t first = as_size(offsets->list[0]);
    if (first % static_cast<int64_t>(sizeof(float)) != 0 || first + size > length ||
        first + size != as_size(offsets->list[1])) {
      throw std::runtime_error("it is truncated, or its header does not fit its tensors");
    }
    tensor.data = numbers_.data() + first / static_cast<int64_t>(sizeof(float));
    tensors_[name] = std::move(tensor);
  }
}

const std::string& WeightsFile::word(const std::string& key) const {
  const auto found = words_.find(key);
  if (found == words_.end()) fail("it is no file that erd-cuda export --format cpp wrote");
  return found->second;
}

int32_t WeightsFile::choice(const std::string& key, const std::vector<std::string>& choices) const {
  const std::string& found = word(key);
  for (size_t i = 0; i < choices.size(); ++i) {
    if (choices[i] == found) return static_cast<int32_t>(i);
  }
  fail("its " + key + " is '" + found + "', which this library does not know");
}

const float* WeightsFile::tensor(const std::string& name, std::vector<int64_t>& shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail("it lacks the tensor " + name);
  const Tensor& tensor = found->second;
  bool fits = tensor.shape.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    if (shape[i] < 0) shape[i] = tensor.shape[i];
    fits = shape[i] == tensor.shape[i];
  }
  if (!fits) fail("the tensor " + name + " has a shape that does not fit the others");
  return tensor.data;
}

void WeightsFile::fail(const std::string& why) const {
  throw std::runtime_error("erd_cuda: " + path_ + " cannot be used: " + why + ".");
}

}  // namespace erd_cuda
