// The cases that make_cases.py writes: calls of the kernels with what must come out.
//
// A case is its name and then numbers and arrays, in the order in which the runner asks for them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

// An array as the kernels want it, 64 bytes aligned or not; nothing where it is absent.
using Bytes = std::vector<char>;

class CaseFile {
 public:
  explicit CaseFile(const char* path) : file_(std::fopen(path, "rb")) {
    if (file_ == nullptr) throw std::runtime_error(std::string("cannot open ") + path);
  }
  ~CaseFile() { std::fclose(file_); }
  CaseFile(const CaseFile&) = delete;
  CaseFile& operator=(const CaseFile&) = delete;

  // False at the end of the file.
  bool next(std::string& name) {
    int64_t length;
    if (std::fread(&length, sizeof length, 1, file_) != 1) return false;
    name.resize(static_cast<size_t>(length));
    read(name.data(), name.size());
    return true;
  }
  int64_t integer() { return number<int64_t>(); }
  double real() { return number<double>(); }
  Bytes array() {
    Bytes bytes(static_cast<size_t>(integer()));
    read(bytes.data(), bytes.size());
    return bytes;
  }

 private:
  template <class T>
  T number() {
    T value;
    read(&value, sizeof value);
    return value;
  }
  void read(void* target, size_t size) {
    if (std::fread(target, 1, size, file_) != size) {
      throw std::runtime_error("the file of cases ends too early");
    }
  }

  std::FILE* file_;
};
