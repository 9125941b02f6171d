// Which units dropout keeps: a function of seed, layer, row and unit alone, the same on every
// processor. Four neighbouring units of a row share one call of the generator.
#pragma once

#include "core/philox.h"

ERD_NAMESPACE_BEGIN

// Bit l of a unit's byte says whether its value passes through layer l: whether dropout keeps it
// and its ReLU, if the layer has one, is open.
constexpr int kDropoutLayers = 3;
constexpr uint8_t kAllPass = (1 << kDropoutLayers) - 1;

struct Dropout {
  uint32_t key0, key1;
  uint32_t threshold;  // words below it are dropped
  int64_t groups;      // of four units, per row

  ERD_HD Dropout(uint64_t seed, double probability, int64_t width)
      : key0(static_cast<uint32_t>(seed)),
        key1(static_cast<uint32_t>(seed >> 32)),
        threshold(static_cast<uint32_t>(probability * 4294967296.0)),
        groups((width + 3) / 4) {}

  // The bytes of units 4 * group to 4 * group + 3, the first in the lowest bits.
  ERD_HD uint32_t draw(int64_t row, int64_t group) const {
    const uint64_t index = static_cast<uint64_t>(row * groups + group);
    const uint32_t low = static_cast<uint32_t>(index), high = static_cast<uint32_t>(index >> 32);
    return kept(philox4x32({{low, high, 0, 0}}, key0, key1)) |
           kept(philox4x32({{low, high, 1, 0}}, key0, key1)) << 1 |
           kept(philox4x32({{low, high, 2, 0}}, key0, key1)) << 2;
  }

 private:
  ERD_HD uint32_t kept(const RandomWords& x) const {
    return static_cast<uint32_t>(x.word[0] >= threshold) |
           static_cast<uint32_t>(x.word[1] >= threshold) << 8 |
           static_cast<uint32_t>(x.word[2] >= threshold) << 16 |
           static_cast<uint32_t>(x.word[3] >= threshold) << 24;
  }
};

ERD_NAMESPACE_END
