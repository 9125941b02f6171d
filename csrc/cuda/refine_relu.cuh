// The matrix products of refine_relu.cu: activations in shared memory, weights as a stream of
// fragments, sums in registers.
//
// Warps form a grid of rows x columns over a tile of poses and a layer's outputs. Each owns 16 M
// poses and up to 64 outputs of every layer, so that a layer's outputs are all in registers at once
// and may replace its inputs.
//
// Split precision makes each operand the sum of two fp16 numbers, high and low, and adds three
// products: low * high, high * low, high * high. Tensor cores round sums toward zero; adding each
// step's sum in the float32 units keeps that from piling up.
#pragma once

#include "cuda/device.h"
#include "cuda/fragments_relu.h"
#include "cuda/vectors.h"

ERD_NAMESPACE_BEGIN

constexpr int kReluThreads = 256;
constexpr int kReluWarps = kReluThreads / 32;
// Most pairs of tiles per warp and layer: 64 outputs.
constexpr int kReluMostPairs = 4;

// How a block divides its work.
struct ReluPlan {
  ReluSizes sizes;
  int poses;
  int warp_columns;
  int row_halves;  // numbers in a row of activations, padding included
  int ring;        // pieces of weights in shared memory: 2 or 3
  int piece_bytes;
};

// A 16-bit number, or the two that stand for one in split precision, two neighbours at a time.
template <class Number, bool Split>
struct NumberPair {
  uint32_t high, low;

  static ERD_DEVICE NumberPair of(float first, float second) {
    NumberPair p;
    p.high = Number::pack(first, second);
    p.low = 0;
    if (Split) {
      const float2 rounded = Number::unpack(p.high);
      p.low = Number::pack(first - rounded.x, second - rounded.y);
    }
    return p;
  }
  ERD_DEVICE float2 value() const {
    float2 sum = Number::unpack(high);
    if (Split) {
      const float2 rest = Number::unpack(low);
      sum.x += rest.x;
      sum.y += rest.y;
    }
    return sum;
  }
};

// The activations of a tile: rows of poses. Rows lie an odd multiple of 16 bytes apart, so that
// neither ldmatrix nor the pairs of an accumulator meet in a memory bank. Split precision has a
// second array of the same shape for the low numbers.
template <class Number, bool Split>
class Activations {
 public:
  ERD_DEVICE Activations(uint16_t* high, uint16_t* low, int row_halves)
      : high_(high), low_(low), pitch_(row_halves) {}

  ERD_DEVICE void store(int pose, int column, NumberPair<Number, Split> pair) const {
    const int at = pose * pitch_ + column;
    *reinterpret_cast<uint32_t*>(high_ + at) = pair.high;
    if (Split) *reinterpret_cast<uint32_t*>(low_ + at) = pair.low;
  }
  ERD_DEVICE float2 load(int pose, int column) const {
    const int at = pose * pitch_ + column;
    NumberPair<Number, Split> pair = {*reinterpret_cast<const uint32_t*>(high_ + at), 0};
    if (Split) pair.low = *reinterpret_cast<const uint32_t*>(low_ + at);
    return pair.value();
  }
  // The A operand: poses `pose` .. `pose` + 15, columns `column` .. `column` + 15.
  ERD_DEVICE void fragment(bool low, int pose, int column, uint32_t (&a)[4]) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int at = (pose + lane % 16) * pitch_ + column + lane / 16 * 8;
    ldmatrix(a, (low ? low_ : high_) + at);
  }

 private:
  uint16_t* high_;
  uint16_t* low_;
  int pitch_;
};

template <bool Split>
constexpr int kPairBytes = Split ? 1024 : 512;

// The pieces of all weights in the order of their use. A piece is as many steps of one layer as fit
// into its room.
template <int PairBytes>
class FragmentStream {
 public:
  ERD_DEVICE FragmentStream(const RefineCall& call, const ReluPlan& plan, unsigned char* ring,
                            int64_t tiles)
      : call_(call), plan_(plan), ring_(ring), tiles_left_(tiles) {
    steps_left_ = plan_.sizes.layer(0).steps;
    for (int i = 0; i < plan_.ring - 1; ++i) request();
  }

  // Steps of this layer in one piece.
  ERD_DEVICE int piece_steps(const ReluLayer& layer) const {
    return plan_.piece_bytes / (layer.pairs * PairBytes);
  }

  // The next piece. All threads call it, and are done with the piece before the last one.
  ERD_DEVICE const unsigned char* next() {
    if (plan_.ring == 3) {
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    const unsigned char* piece = ring_ + use_ * plan_.piece_bytes;
    use_ = use_ + 1 == plan_.ring ? 0 : use_ + 1;
    request();
    return piece;
  }

 private:
  ERD_DEVICE void request() {
    if (tiles_left_ > 0) {
      const ReluLayer layer = plan_.sizes.layer(layer_);
      const int room = piece_steps(layer);
      const int steps = steps_left_ < room ? steps_left_ : room;
      const int bytes = steps * layer.pairs * PairBytes;
      unsigned char* piece = ring_ + fill_ * plan_.piece_bytes;
      const auto* source = static_cast<const unsigned char*>(call_.fragments) + int64_t{at_} * 16;
      for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kReluThreads * 16) {
        copy_async<16>(piece + i, source + i);
      }
      at_ += bytes / 16;
      steps_left_ -= steps;
      if (steps_left_ == 0) advance();
    }
    copy_async_commit();
    fill_ = fill_ + 1 == plan_.ring ? 0 : fill_ + 1;
  }

  ERD_DEVICE void advance() {
    if (++layer_ == kReluLayers) {
      layer_ = 0;
      if (++stage_ == call_.stages) {
        stage_ = 0;
        at_ = 0;
        --tiles_left_;
      }
    }
    steps_left_ = plan_.sizes.layer(layer_).steps;
  }

  const RefineCall& call_;
  const ReluPlan& plan_;
  unsigned char* const ring_;
  int64_t tiles_left_;
  int at_ = 0;  // of the next piece in the weights, in units of 16 bytes
  int stage_ = 0, layer_ = 0, steps_left_ = 0;
  int fill_ = 0, use_ = 0;
};

// Where a warp's part of a layer lies: its first pose and its first pair.
struct WarpPlace {
  int pose, pair;
};

// sum[m][n] = the warp's m-th 16 poses times its n-th 8 outputs, for 16 * M poses and Pairs pairs.
// Pairs beyond the layer's are computed from its last one and not used.
template <class Number, bool Split, int M, int Pairs>
ERD_DEVICE void multiply_layer(const Activations<Number, Split>& activations,
                               const ReluLayer& layer, WarpPlace place,
                               FragmentStream<kPairBytes<Split>>& weights,
                               float (&sum)[M][2 * Pairs][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  constexpr int kParts = Split ? 2 : 1;
  // Split precision has twice the operands and no registers to spare: half of the poses at a time.
  [[maybe_unused]] constexpr int kUnroll = Split ? 1 : 2;
  constexpr int kGroup = Split && M > 2 ? M / 2 : M;
  const int step_words = layer.pairs * 128;
  int pair_word[Pairs];
#pragma unroll
  for (int i = 0; i < Pairs; ++i) {
    const int pair = place.pair + i < layer.pairs ? place.pair + i : layer.pairs - 1;
    pair_word[i] = pair * 128 + lane * 4;
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * Pairs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][n][i] = 0.0f;
    }
  }
  const int piece_steps = weights.piece_steps(layer);
  for (int first = 0; first < layer.steps; first += piece_steps) {
    const auto* words = reinterpret_cast<const uint32_t*>(weights.next());
    const int steps = layer.steps - first < piece_steps ? layer.steps - first : piece_steps;
#pragma unroll kUnroll
    for (int step = 0; step < steps; ++step, words += kParts * step_words) {
      const int column = (first + step) * 16;
#pragma unroll
      for (int group = 0; group < M; group += kGroup) {
        uint32_t a[kParts][kGroup][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
          for (int m = 0; m < kGroup; ++m) {
            activations.fragment(part == 1, place.pose + 16 * (group + m), column, a[part][m]);
          }
        }
#pragma unroll
        for (int pair = 0; pair < Pairs; ++pair) {
          Four<uint32_t> b[kParts];
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            b[part] = as_four(words + part * step_words + pair_word[pair]);
          }
#pragma unroll
          for (int side = 0; side < 2; ++side) {
#pragma unroll
            for (int m = 0; m < kGroup; ++m) {
              float (&total)[4] = sum[group + m][2 * pair + side];
              if constexpr (Split) {
                float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                mma<Number>(part, a[1][m], b[0].v[2 * side], b[0].v[2 * side + 1]);
                mma<Number>(part, a[0][m], b[1].v[2 * side], b[1].v[2 * side + 1]);
                mma<Number>(part, a[0][m], b[0].v[2 * side], b[0].v[2 * side + 1]);
#pragma unroll
                for (int i = 0; i < 4; ++i) total[i] += part[i];
              } else {
                mma<Number>(total, a[0][m], b[0].v[2 * side], b[0].v[2 * side + 1]);
              }
            }
          }
        }
      }
    }
  }
}

// Calls store(pose, column, first, second) for each two neighbouring outputs of the warp, with
// scale * sum + bias.
template <int M, int Pairs, class Store>
ERD_DEVICE void finish_layer(const ReluLayer& layer, WarpPlace place, const float* bias,
                             float scale, const float (&sum)[M][2 * Pairs][4], const Store& store) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int n = 0; n < 2 * Pairs; ++n) {
    if (place.pair + n / 2 >= layer.pairs) continue;
    const int column = place.pair * 16 + n * 8 + lane % 4 * 2;
    const float first = bias[column], second = bias[column + 1];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const int pose = place.pose + 16 * m + lane / 4;
      store(pose, column, sum[m][n][0] * scale + first, sum[m][n][1] * scale + second);
      store(pose + 8, column, sum[m][n][2] * scale + first, sum[m][n][3] * scale + second);
    }
  }
}

ERD_NAMESPACE_END
