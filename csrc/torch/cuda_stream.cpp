#include "torch/cuda_stream.h"

#if defined(ERD_HAVE_CUDA)

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

namespace erd::ops {
namespace {

using CurrentStream = int32_t (*)(int32_t device_index, void** stream);

// torch's CPU builds lack this function: linked against it, this library would not load there.
// Where there is a CUDA tensor, torch's CUDA library is loaded already.
CurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

}  // namespace

CudaDevice current_cuda_device(int32_t index) {
  static const CurrentStream current_stream = find_current_stream();
  STD_TORCH_CHECK(current_stream != nullptr,
                  "erd_cuda: torch's CUDA library, libtorch_cuda.so, is not loaded or has no "
                  "aoti_torch_get_current_cuda_stream, so the current stream is unknown");
  void* stream = nullptr;
  STD_TORCH_CHECK(current_stream(index, &stream) == 0,
                  "erd_cuda: torch could not tell the current stream of CUDA device ", index);
  return cuda_device(index, stream);
}

}  // namespace erd::ops

#endif
