// The part of DLPack's binary interface (https://dmlc.github.io/dlpack) that tensor_refine.cpp
// uses: what a tensor looks like in memory, and the table of functions that a library of tensors
// offers to C code, among them torch from version 2.10 on. Names are ours, layouts are the
// standard's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace erd::dlpack {

// Tables and tensors of one major version have these layouts.
constexpr uint32_t kMajorVersion = 1;

struct Version {
  uint32_t major, minor;
};

constexpr int32_t kOnCpu = 1;
struct Device {
  int32_t kind, index;
};

constexpr uint8_t kFloat = 2;
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t dimensions;
  DataType type;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

// A tensor with its owner's way to delete it.
struct OwnedTensor {
  Version version;
  void* owner;
  void (*deleter)(OwnedTensor*);
  uint64_t flags;
  Tensor tensor;
};

struct ExchangeTable {
  Version version;
  ExchangeTable* previous;
  void* allocate;  // and two more that are not called here
  void* own;
  // Takes ownership; gives a new Python object. Both return 0, or set a Python exception.
  int (*to_python)(OwnedTensor* tensor, void** object);
  // Describes a Python object that lives on, as its owner sees it.
  int (*view)(void* object, Tensor* view);
  void* stream;
};

static_assert(offsetof(OwnedTensor, tensor) == 32 && offsetof(Tensor, byte_offset) == 40 &&
                  offsetof(ExchangeTable, to_python) == 32 && offsetof(ExchangeTable, view) == 40,
              "the standard's layouts, on 64-bit machines");

// What the capsule with such a table is called.
constexpr const char* kExchangeName = "dlpack_exchange_api";

}  // namespace erd::dlpack
