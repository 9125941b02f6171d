// As much of JSON as the header of a safetensors file needs.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace erd_cuda {

struct Json {
  enum class Kind { null, number, text, list, object };
  Kind kind = Kind::null;
  int64_t number = 0;
  std::string text;
  std::vector<Json> list;
  std::map<std::string, Json> object;

  // Throws std::runtime_error unless `source` is one JSON value of these kinds and nothing else.
  static Json parse(const std::string& source);

  // A member of an object, or null where there is none or this is no object.
  const Json* find(const std::string& key) const;
};

}  // namespace erd_cuda
