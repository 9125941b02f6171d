// 16-bit numbers, and what one warp does together on a tensor core.
//
// Products are exact. How they are summed is undocumented and differs between GPUs; measurements
// agree that a few of them and the sum so far are shifted to the largest one's exponent, that what
// then lies below float32's last bit is cut off but for a bit or more, and that so is the sum,
// toward zero. The emulator takes the coarsest of these: eight products at a time, one extra bit.
#include <vector>

#include "cuda_emulation/emulator.h"

ERD_NAMESPACE_BEGIN
namespace {

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// To the nearest fp16, ties to even.
uint32_t half_from(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;          // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    return sign | static_cast<uint32_t>(std::nearbyintf(float_of(magnitude) * 16777216.0f));
  }
  magnitude += 0xfffu + (magnitude >> 13 & 1);
  return sign | (magnitude - 0x38000000u) >> 13;
}

float half_to(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x400u) {
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign != 0 ? -value : value;
  }
  return float_of(sign | (magnitude + 0x1c000u) << 13);
}

uint32_t bfloat_from(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// Like ptx.h: beyond the range comes the largest number, NaN stays.
float clamped(float value) {
  value = value > 65504.0f ? 65504.0f : value;
  return value < -65504.0f ? -65504.0f : value;
}

// max(x, 0); NaN stays.
float positive(float value) { return value > 0.0f || value != value ? value : 0.0f; }

constexpr int kSummedAtOnce = 8;

// sum + the products, cut off as said above. Sums of ordinary size only: others are added as
// floats.
float summed(float sum, const float (&products)[kSummedAtOnce]) {
  uint32_t largest = bits_of(sum) & 0x7fffffffu;
  for (const float product : products) {
    const uint32_t magnitude = bits_of(product) & 0x7fffffffu;
    if (magnitude > largest) largest = magnitude;
  }
  const uint32_t exponent = largest >> 23;
  if (exponent < 30 || exponent > 250) {
    for (const float product : products) sum += product;
    return sum;
  }
  // The largest becomes a number of 25 bits before the point.
  const float scale = float_of((278 - exponent) << 23);
  auto total = static_cast<int32_t>(sum * scale);
  for (const float product : products) total += static_cast<int32_t>(product * scale);
  const uint32_t magnitude = total < 0 ? 0u - static_cast<uint32_t>(total) : total;
  if (magnitude >= 1u << 24) {
    const int extra = 8 - __builtin_clz(magnitude);
    const auto kept = static_cast<int32_t>(magnitude >> extra << extra);
    total = total < 0 ? -kept : kept;
  }
  return static_cast<float>(total) * float_of((exponent - 24) << 23);
}

struct Product {
  float* d;
  uint32_t a[4], b[2];
};

// A 16 x K, B K x 8, D 16 x 8, gathered from the lanes' registers as ptx.h lays them out.
template <class Number, int K>
void multiply(void* const* payloads, uint32_t) {
  float a[16][K], b[K][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const Product*>(payloads[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < K / 8; ++half) {
      for (int below = 0; below < 2; ++below) {
        const float2 pair = Number::unpack(own.a[2 * half + below]);
        a[g + 8 * below][8 * half + 2 * t] = pair.x;
        a[g + 8 * below][8 * half + 2 * t + 1] = pair.y;
      }
      const float2 pair = Number::unpack(own.b[half]);
      b[8 * half + 2 * t][g] = pair.x;
      b[8 * half + 2 * t + 1][g] = pair.y;
    }
    for (int i = 0; i < 4; ++i) d[g + 8 * (i / 2)][2 * t + i % 2] = own.d[i];
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int first = 0; first < K; first += kSummedAtOnce) {
        float products[kSummedAtOnce];
        for (int k = 0; k < kSummedAtOnce; ++k) {
          products[k] = a[row][first + k] * b[first + k][column];
        }
        d[row][column] = summed(d[row][column], products);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const Product*>(payloads[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) own.d[i] = d[g + 8 * (i / 2)][2 * t + i % 2];
  }
}

struct MatrixRow {
  const uint32_t* row;
  uint32_t* received;
};

void pass_rows(void* const* payloads, uint32_t) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto* source = static_cast<const MatrixRow*>(payloads[8 * matrix + lane / 4]);
      static_cast<const MatrixRow*>(payloads[lane])->received[matrix] = source->row[lane % 4];
    }
  }
}

}  // namespace

uint32_t Fp16::pack(float first, float second) {
  return half_from(clamped(first)) | half_from(clamped(second)) << 16;
}

uint32_t Fp16::pack_relu(float first, float second, emulation::Location where) {
  emulation::require("pack_relu", where, 80);
  return pack(positive(first), positive(second));
}

float2 Fp16::unpack(uint32_t packed) {
  // All 65536 numbers, for products are made of millions of them.
  static const std::vector<float> numbers = [] {
    std::vector<float> result(65536);
    for (uint32_t bits = 0; bits < 65536; ++bits) result[bits] = half_to(bits);
    return result;
  }();
  return {numbers[packed & 0xffffu], numbers[packed >> 16]};
}

uint32_t Bf16::pack(float first, float second) {
  return bfloat_from(first) | bfloat_from(second) << 16;
}

uint32_t Bf16::pack_relu(float first, float second, emulation::Location where) {
  emulation::require("pack_relu", where, 80);
  return pack(positive(first), positive(second));
}

float2 Bf16::unpack(uint32_t packed) {
  return {float_of(packed << 16), float_of(packed & 0xffff0000u)};
}

template <class Number>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         emulation::Location where) {
  emulation::require("mma", where, 80);
  Product product = {d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulation::warp_collective("mma", where, 0xffffffffu, false, &product, multiply<Number, 16>);
}

template <class Number>
void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, emulation::Location where) {
  emulation::require("mma_k8", where, 80);
  Product product = {d, {a0, a1, 0, 0}, {b, 0}};
  emulation::warp_collective("mma_k8", where, 0xffffffffu, false, &product, multiply<Number, 8>);
}

template void mma<Fp16>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t,
                        emulation::Location);
template void mma<Bf16>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t,
                        emulation::Location);
template void mma_k8<Fp16>(float (&)[4], uint32_t, uint32_t, uint32_t, emulation::Location);
template void mma_k8<Bf16>(float (&)[4], uint32_t, uint32_t, uint32_t, emulation::Location);

void distribute_matrices(emulation::Location where, const uint32_t (&row)[4], uint32_t (&r)[4]) {
  emulation::require("ldmatrix", where, 75);
  MatrixRow payload = {row, r};
  emulation::warp_collective("ldmatrix", where, 0xffffffffu, false, &payload, pass_rows);
}

ERD_NAMESPACE_END
