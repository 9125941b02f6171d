// How a geometry kernel lays out a tile of samples in shared memory: decided on the host by
// geometry.cu, carried out by geometry_kernel.cuh.
#pragma once

#include "core/calls.h"
#include "cuda/launch.h"

ERD_NAMESPACE_BEGIN

// Threads of a block, and the most samples of a tile.
constexpr int kGeometryThreads = 64;

// One matrix with a row per sample, on its way between global and shared memory. Sizes and offsets
// in shared memory count numbers of the kernel's type T, which are pairs in second order.
struct Transfer {
  void* data;  // global memory; nullptr: every element is `fill`
  int64_t stride, joint_stride, channel_stride;
  int32_t channels;
  int32_t width;
  uint32_t width_inverse;  // ceil(2^31 / width), for divisions
  int32_t offset;          // of the matrix in shared memory
  int32_t pitch;           // between its rows
  int32_t part;            // 0: the numbers' values, 1: their derivatives
  float fill;
  bool dense;    // global rows lie one after another without gaps
  bool vectors;  // so do the shared ones, and both are aligned: moved 16 bytes at a time
};

// The place of one sample's row of a slot: offset + sample * pitch.
struct Place {
  int32_t offset = -1;  // -1: nowhere
  int32_t pitch = 0;    // 0: all samples read the same row
};

struct GeometryParameters {
  int64_t count;
  int64_t tiles;
  int32_t tile;  // samples
  int32_t joints;
  int32_t numbers;  // of shared memory
  int32_t shared_loads, loads, stores;
  // First those that all samples share, loaded once; then those of every tile.
  Transfer load[2 * kSlots + 2];
  Transfer store[kSlots + 1];
  Place input[kSlots], gradient[kSlots], upstream, output;
  int32_t* status;
};

// Pick the kernel for the call and launch it.
void launch_geometry_float32(const GeometryCall& call, const GeometryParameters& parameters,
                             const CudaDevice& device, const LaunchShape& shape);
void launch_geometry_float64(const GeometryCall& call, const GeometryParameters& parameters,
                             const CudaDevice& device, const LaunchShape& shape);

ERD_NAMESPACE_END
