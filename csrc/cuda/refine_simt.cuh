// The matrix products of refine_simt.cu: activations in shared memory as [unit][pose], weights as a
// stream of pieces, sums in registers.
//
// A thread owns four neighbouring poses and up to eight outputs. Both operands come from shared
// memory in 16-byte pieces, so eight outputs take 128 multiply-adds for every 12 loads.
#pragma once

#include "cuda/refine_samples.cuh"
#include "cuda/vectors.h"

ERD_NAMESPACE_BEGIN

constexpr int kSimtThreads = 256;
constexpr int kPosesPerThread = 4;
// Pieces of weights in shared memory: one in use, two on their way.
constexpr int kRing = 3;

// A piece holds 64 bytes of each row; 16 more keep neighbouring rows in different memory banks.
template <class S>
constexpr int kPieceDepth = 64 / static_cast<int>(sizeof(S));
template <class S>
constexpr int kPiecePitch = 80 / static_cast<int>(sizeof(S));

ERD_HD int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// How a block divides its threads: those of one group of poses lie `groups` apart in the rows.
struct SimtPlan {
  int poses;      // per tile
  int groups;     // of rows
  int pass_rows;  // room for rows in a piece of weights
  bool relu_block;

  ERD_HD int layers() const { return relu_block ? 4 : 2; }
};

template <class S>
struct Layer {
  const S* weights;  // (rows, depth)
  const S* bias;
  int rows, depth;
  int rows_per_thread;

  ERD_HD int pass_rows(const SimtPlan& plan) const { return plan.groups * rows_per_thread; }
};

// More rows a thread share more of the loads, too many leave threads without work: a row is
// taken to cost its multiply-adds, a pass one row more.
ERD_HD int choose_rows_per_thread(int rows, const SimtPlan& plan) {
  int best = 1, best_cost = 0;
  for (int candidate = 1; candidate <= 8 && candidate * plan.groups <= plan.pass_rows;
       candidate *= 2) {
    const int pass = candidate * plan.groups;
    const int cost = (rows + pass - 1) / pass * (candidate + 1);
    if (candidate == 1 || cost <= best_cost) {
      best = candidate;
      best_cost = cost;
    }
  }
  return best;
}

template <class S>
ERD_HD Layer<S> layer_of(const RefineCall& call, const SimtPlan& plan, int stage, int layer) {
  const int width = static_cast<int>(call.width);
  const int outputs = static_cast<int>(3 * call.joints);
  const int features = feature_count(call);
  Layer<S> result;
  const void* weights;
  const void* bias;
  int64_t index = stage;
  if (layer == 0) {
    weights = call.w_in, bias = call.b_in;
    result.rows = width, result.depth = features;
  } else if (layer + 1 == plan.layers()) {
    weights = call.w_out, bias = call.b_out;
    result.rows = outputs, result.depth = width;
  } else {
    weights = call.w_hidden, bias = call.b_hidden;
    result.rows = width, result.depth = width;
    index = 2 * int64_t{stage} + layer - 1;
  }
  result.weights = static_cast<const S*>(weights) + index * result.rows * result.depth;
  result.bias = static_cast<const S*>(bias) + index * result.rows;
  result.rows_per_thread = choose_rows_per_thread(result.rows, plan);
  return result;
}

// The pieces of all weights in the order of their use.
template <class S>
class WeightStream {
 public:
  ERD_DEVICE WeightStream(const RefineCall& call, const SimtPlan& plan, S* ring, int64_t tiles)
      : call_(call), plan_(plan), ring_(ring), tiles_left_(tiles) {
    layer_ = layer_of<S>(call_, plan_, 0, 0);
    for (int i = 0; i < kRing - 1; ++i) request();
  }

  // The next piece. All threads call it, and are done with the piece before the last one.
  ERD_DEVICE const S* next() {
    copy_async_wait<kRing - 2>();
    __syncthreads();
    const S* piece = ring_ + use_ * plan_.pass_rows * kPiecePitch<S>;
    use_ = use_ + 1 == kRing ? 0 : use_ + 1;
    request();
    return piece;
  }

 private:
  ERD_DEVICE void request() {
    if (tiles_left_ > 0) {
      copy(ring_ + fill_ * plan_.pass_rows * kPiecePitch<S>);
      advance();
    }
    copy_async_commit();
    fill_ = fill_ + 1 == kRing ? 0 : fill_ + 1;
  }

  ERD_DEVICE void copy(S* piece) const {
    const auto address = reinterpret_cast<uintptr_t>(layer_.weights);
    const int64_t row_bytes = layer_.depth * static_cast<int64_t>(sizeof(S));
    if (address % 16 == 0 && row_bytes % 16 == 0) {
      copy_vectors<16>(piece);
    } else if (sizeof(S) == 8 || (address % 8 == 0 && row_bytes % 8 == 0)) {
      copy_vectors<8>(piece);
    } else {
      copy_vectors<4>(piece);
    }
  }

  // Beyond the matrix the piece is zero.
  template <int Bytes>
  ERD_DEVICE void copy_vectors(S* piece) const {
    constexpr int kElements = Bytes < static_cast<int>(sizeof(S)) ? 1 : Bytes / sizeof(S);
    constexpr int kPerRow = kPieceDepth<S> / kElements;
    const int count = layer_.pass_rows(plan_) * kPerRow;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kSimtThreads) {
      const int row = i / kPerRow;
      const int k = i % kPerRow * kElements;
      const bool valid = row_ + row < layer_.rows && depth_ + k < layer_.depth;
      const S* source = layer_.weights;
      if (valid) source += int64_t{row_ + row} * layer_.depth + depth_ + k;
      copy_async<kElements* static_cast<int>(sizeof(S))>(piece + row * kPiecePitch<S> + k, source,
                                                         valid);
    }
  }

  ERD_DEVICE void advance() {
    depth_ += kPieceDepth<S>;
    if (depth_ < layer_.depth) return;
    depth_ = 0;
    row_ += layer_.pass_rows(plan_);
    if (row_ < layer_.rows) return;
    row_ = 0;
    if (++layer_index_ == plan_.layers()) {
      layer_index_ = 0;
      if (++stage_ == call_.stages) {
        stage_ = 0;
        --tiles_left_;
      }
    }
    layer_ = layer_of<S>(call_, plan_, stage_, layer_index_);
  }

  const RefineCall& call_;
  const SimtPlan plan_;
  S* const ring_;
  int64_t tiles_left_;
  Layer<S> layer_;
  int stage_ = 0, layer_index_ = 0, row_ = 0, depth_ = 0;
  int fill_ = 0, use_ = 0;
};

// One pass of a layer: rows first_row + group + i * groups, i < R, for the thread's four poses.
// `in` is [depth][poses], zero beyond the depth up to a multiple of four. store(row, pose, sum, i)
// receives each finished sum.
template <int R, class S, class Store>
ERD_DEVICE void multiply_pass(const Layer<S>& layer, const SimtPlan& plan, int first_row,
                              const S* in, WeightStream<S>& weights, const Store& store) {
  const int pose_groups = plan.poses / kPosesPerThread;
  const int group = static_cast<int>(threadIdx.x) / pose_groups;
  const int pose = static_cast<int>(threadIdx.x) % pose_groups * kPosesPerThread;
  const bool works = group < plan.groups;
  S sum[R][kPosesPerThread];
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int row = first_row + group + i * plan.groups;
    const S bias = works && row < layer.rows ? layer.bias[row] : S(0);
#pragma unroll
    for (int c = 0; c < kPosesPerThread; ++c) sum[i][c] = bias;
  }
  const S* x = in + pose;
  for (int depth = 0; depth < layer.depth; depth += kPieceDepth<S>) {
    const S* piece = weights.next();
    if (!works) continue;
    const S* w = piece + group * kPiecePitch<S>;
    const int left = layer.depth - depth;
    const int steps = left < kPieceDepth<S> ? round_up(left, 4) : kPieceDepth<S>;
#pragma unroll 2
    for (int k = 0; k < steps; k += 4) {
      Four<S> weight[R];
#pragma unroll
      for (int i = 0; i < R; ++i) {
        weight[i] = as_four(w + i * plan.groups * kPiecePitch<S> + k);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Four<S> input = as_four(x);
        x += plan.poses;
#pragma unroll
        for (int i = 0; i < R; ++i) {
#pragma unroll
          for (int c = 0; c < kPosesPerThread; ++c) sum[i][c] += weight[i].v[j] * input.v[c];
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int row = first_row + group + i * plan.groups;
    if (works && row < layer.rows) store(row, pose, sum[i]);
  }
}

template <class S, class Store>
ERD_DEVICE void multiply(const Layer<S>& layer, const SimtPlan& plan, const S* in,
                         WeightStream<S>& weights, const Store& store) {
  for (int row = 0; row < layer.rows; row += layer.pass_rows(plan)) {
    switch (layer.rows_per_thread) {
      case 8:
        multiply_pass<8>(layer, plan, row, in, weights, store);
        break;
      case 4:
        multiply_pass<4>(layer, plan, row, in, weights, store);
        break;
      case 2:
        multiply_pass<2>(layer, plan, row, in, weights, store);
        break;
      default:
        multiply_pass<1>(layer, plan, row, in, weights, store);
    }
  }
}

ERD_NAMESPACE_END
