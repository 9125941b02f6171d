# erd_cuda/liberd_cuda_ops.so, the kernels as torch's operators.
file(GLOB torch_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/torch/*.cpp")
add_library(erd_operators OBJECT ${torch_sources} csrc/cpu/dispatch.cpp)
target_include_directories(erd_operators PRIVATE csrc "${PROJECT_BINARY_DIR}/generated")
target_include_directories(erd_operators SYSTEM PRIVATE "${ERD_TORCH_ROOT}/include")
target_compile_definitions(erd_operators PRIVATE ${variant_definitions})
if(cuda_objects)
  target_compile_definitions(erd_operators PRIVATE ERD_HAVE_CUDA)
endif()
# Compiled against any torch, the library uses only the stable ABI of 2.10: it runs on 2.10 and
# all later ones.
target_compile_definitions(erd_operators PRIVATE TORCH_TARGET_VERSION=0x020a000000000000)

# The linker takes an inline function that several objects hold from the first of them. So what
# runs on every processor comes first and the highest instruction set last: no processor meets
# code of a variant above the one it runs.
add_library(erd_cuda_ops MODULE $<TARGET_OBJECTS:erd_operators> ${cuda_objects} ${kernel_objects})
target_link_libraries(erd_cuda_ops PRIVATE "${torch_cpu_library}" ${cuda_libraries})
set_target_properties(erd_cuda_ops PROPERTIES LINKER_LANGUAGE CXX PREFIX lib SUFFIX .so)

# Nothing is exported. Operators register themselves when the library is loaded, and no other
# library of the process may pick up the standard library's templates compiled for AVX.
if(ERD_LINKER_HAS_NO_UNDEFINED)
  target_link_options(erd_cuda_ops PRIVATE -Wl,--no-undefined)
endif()
if(ERD_LINKER_HAS_VERSION_SCRIPT)
  target_link_options(erd_cuda_ops PRIVATE "-Wl,--version-script=${export_map}")
  set_property(TARGET erd_cuda_ops APPEND PROPERTY LINK_DEPENDS "${export_map}")
endif()

install(TARGETS erd_cuda_ops LIBRARY DESTINATION erd_cuda)
message(STATUS "erd_cuda operators: torch at ${ERD_TORCH_ROOT}")
