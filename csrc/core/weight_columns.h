// The weights of all stages once more, column by column: what the CPU kernels for few poses and for
// bf16 read.
//
// Per stage and matrix, one row for the biases and one for each input of the layer; a row holds
// what this input adds to each output, padded with zeros to a multiple of kColumnPadding:
//
//   w_in   [1 + F][padded H]      w_hidden, relu block only   2 x [1 + H][padded H]
//   w_out  [1 + H][padded 3J]
//   tail   [1 + H][kTail], float32 only: the last outputs of w_out once more, if they fill no more
//          of its last vector than that. A single pose reads every second row or so, and 16 bytes
//          of a row instead of a cache line. Filled up with zeros, so that stages begin alike.
//
// in the scalar type of the call. For bf16 they are 32-bit elements: the biases float32, and then a
// row for each two inputs, whose weights are a pair of bf16 numbers, the first one's in the lower
// half; an odd number of inputs is filled up with zeros, and there is no tail.
// erd_cuda/_columns.py makes them. Inlined for the reason that feature_count.h gives.
#pragma once

#include "core/calls.h"
#include "core/feature_count.h"

namespace erd {

// The lanes of the widest vector that any kernel loads.
constexpr int64_t kColumnPadding = 16;

// Outputs of a tail's row.
constexpr int64_t kTail = 4;

struct WeightColumns {
  int64_t width_pitch, output_pitch;             // elements from one row to the next
  int64_t hidden_begin, hidden_size, out_begin;  // elements, within a stage
  int64_t tail_begin, stage_size;
  bool has_tail;

  explicit ERD_HD WeightColumns(const RefineCall& call)
      : width_pitch(padded(call.width)),
        output_pitch(padded(3 * call.joints)),
        hidden_begin(rows(call, feature_count(call)) * width_pitch),
        hidden_size(rows(call, call.width) * width_pitch),
        out_begin(hidden_begin + (call.block == RegressorBlock::relu ? 2 * hidden_size : 0)),
        tail_begin(out_begin + rows(call, call.width) * output_pitch),
        stage_size(tail_begin + (tail_outputs(call) > 0 ? padded((1 + call.width) * kTail) : 0)),
        has_tail(tail_outputs(call) > 0) {}

 private:
  static ERD_HD int64_t tail_outputs(const RefineCall& call) {
    const int64_t outputs = 3 * call.joints, last = outputs % kColumnPadding;
    const bool is_float32 = call.scalar == ScalarType::float32 && call.precision != Precision::bf16;
    return is_float32 && outputs > kColumnPadding && last <= kTail ? last : 0;
  }
  static ERD_HD int64_t padded(int64_t size) {
    return (size + kColumnPadding - 1) / kColumnPadding * kColumnPadding;
  }
  static ERD_HD int64_t rows(const RefineCall& call, int64_t inputs) {
    return 1 + (call.precision == Precision::bf16 ? (inputs + 1) / 2 : inputs);
  }
};

}  // namespace erd
