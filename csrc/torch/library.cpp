// The op namespace, and what the build knows about itself.
#include <string>

#include "erd_build_info.h"
#include "torch/tensors.h"

namespace erd::ops {
namespace {

// One line of key=value pairs, a tab between them; erd_cuda.build_info() turns it into a dict.
std::string build_info() {
  return std::string("version=" ERD_BUILD_VERSION "\tcommit=" ERD_BUILD_COMMIT
                     "\tcompiler=" ERD_BUILD_COMPILER "\tcuda_compiler=" ERD_BUILD_CUDA_COMPILER
                     "\tcpu_variants=" ERD_BUILD_CPU_VARIANTS
                     "\tarchitectures=" ERD_BUILD_CUDA_ARCHITECTURES "\tcpu_capability=") +
         cpu_kernels().name;
}

}  // namespace
}  // namespace erd::ops

STABLE_TORCH_LIBRARY(erd_cuda, m) { m.def("build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&erd::ops::build_info));
}
