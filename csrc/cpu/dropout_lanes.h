// A row's dropout, several calls of the generator at a time.
//
// Philox multiplies 32-bit words to 64-bit products, so each lane of 64 bits carries one word, and
// whatever stands above it: the product of the low halves, which processors have, ignores it.
// Compilers find that instruction neither in scalar loops nor in vectors of 64-bit numbers, at a
// third of the speed: hence the only intrinsics of the CPU kernels.
#pragma once

#include <cstring>

#include "core/dropout.h"
#include "cpu/simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

ERD_NAMESPACE_BEGIN

constexpr int kWordLanes = ERD_VECTOR_BYTES / 8;
typedef uint64_t Words __attribute__((vector_size(ERD_VECTOR_BYTES)));

ERD_HD Words low_product(Words x, uint32_t factor) {
#if defined(__AVX512F__)
  // Without a mask GCC 12 warns of its own header.
  return (Words)_mm512_maskz_mul_epu32(0xFF, (__m512i)x, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
  return (Words)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(factor));
#else
  return (x & 0xFFFFFFFFu) * static_cast<uint64_t>(factor);
#endif
}

// Philox4x32-10 of core/philox.h on the counters (index, index >> 32, layer, 0), and which of its
// words are kept, as Dropout::draw packs them: bit `layer` of a group's four bytes.
ERD_HD Words draw_layers(const Dropout& dropout, Words index) {
  Words x0[kDropoutLayers], x1[kDropoutLayers], x2[kDropoutLayers], x3[kDropoutLayers];
  for (int l = 0; l < kDropoutLayers; ++l) {
    x0[l] = index;
    x1[l] = index >> 32;
    x2[l] = Words{} + static_cast<uint64_t>(l);
    x3[l] = Words{};
  }
  uint32_t key0 = dropout.key0, key1 = dropout.key1;
  for (int round = 0; round < 10; ++round) {
    // Layers side by side: one alone would wait for its products.
    for (int l = 0; l < kDropoutLayers; ++l) {
      const Words first = low_product(x0[l], 0xD2511F53u);
      const Words second = low_product(x2[l], 0xCD9E8D57u);
      x0[l] = (second >> 32) ^ x1[l] ^ static_cast<uint64_t>(key0);
      x2[l] = (first >> 32) ^ x3[l] ^ static_cast<uint64_t>(key1);
      x1[l] = second;
      x3[l] = first;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const uint64_t threshold = dropout.threshold;
  const auto kept = [threshold](Words x, int bit) {
    return (Words)((x & 0xFFFFFFFFu) >= threshold) & (uint64_t{1} << bit);
  };
  Words bytes = {};
  for (int l = 0; l < kDropoutLayers; ++l) {
    bytes |= kept(x0[l], l) | kept(x1[l], l + 8) | kept(x2[l], l + 16) | kept(x3[l], l + 24);
  }
  return bytes;
}

// Which layers the units of a row pass: its `width` bytes.
inline void draw_row(const Dropout& dropout, int64_t row, int64_t width, uint8_t* passes) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bytes of a group lie in its order");
  constexpr int64_t kBytes = 4 * kWordLanes;
  Words lane;
  for (int l = 0; l < kWordLanes; ++l) lane[l] = static_cast<uint64_t>(l);
  const uint64_t first = static_cast<uint64_t>(row * dropout.groups);
  for (int64_t unit = 0; unit < width; unit += kBytes) {
    const Words drawn = draw_layers(dropout, lane + (first + static_cast<uint64_t>(unit / 4)));
    uint32_t groups[kWordLanes];
    for (int l = 0; l < kWordLanes; ++l) groups[l] = static_cast<uint32_t>(drawn[l]);
    const int64_t left = width - unit;
    std::memcpy(passes + unit, groups, static_cast<size_t>(left < kBytes ? left : kBytes));
  }
}

ERD_NAMESPACE_END
