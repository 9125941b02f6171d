// The threads behind the CPU kernels where there is no torch to lend its own.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace erd {

// How many threads a call may use, the caller's included; 0, the default, stands for as many as
// this process may run on.
void set_num_threads(int64_t threads);
int64_t num_threads();

// For the kernels' ParallelFor. Results do not depend on the number of threads: a kernel computes
// each item of the range by itself. The first exception of a body is thrown here.
ParallelFor pool_parallel_for();

}  // namespace erd
