// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (2011): four random words from a counter and a key, in integers only, so that every
// processor draws the same numbers, in any order and on any number of threads.
#pragma once

#include <cstdint>

#include "core/portability.h"

ERD_NAMESPACE_BEGIN

struct RandomWords {
  uint32_t word[4];
};

// Recursion rather than a loop: compilers then see straight code, which they turn into SIMD.
template <int Rounds>
ERD_HD RandomWords philox_rounds(RandomWords x, uint32_t key0, uint32_t key1) {
  if constexpr (Rounds == 0) {
    return x;
  } else {
    const uint64_t first = uint64_t{0xD2511F53u} * x.word[0];
    const uint64_t second = uint64_t{0xCD9E8D57u} * x.word[2];
    const RandomWords next = {
        {static_cast<uint32_t>(second >> 32) ^ x.word[1] ^ key0, static_cast<uint32_t>(second),
         static_cast<uint32_t>(first >> 32) ^ x.word[3] ^ key1, static_cast<uint32_t>(first)}};
    return philox_rounds<Rounds - 1>(next, key0 + 0x9E3779B9u, key1 + 0xBB67AE85u);
  }
}

ERD_HD RandomWords philox4x32(RandomWords counter, uint32_t key0, uint32_t key1) {
  return philox_rounds<10>(counter, key0, key1);
}

ERD_NAMESPACE_END
