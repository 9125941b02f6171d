# erd_cuda/_array, the same kernels for NumPy's and CuPy's arrays: a module for one Python, without
# torch. The library of operators beside it knows no Python.
set(ERD_PYTHON "" CACHE FILEPATH "Python to compile erd_cuda/_array for; empty: leave it out")
if(NOT ERD_PYTHON)
  message(STATUS "erd_cuda array module: left out (ERD_PYTHON is empty)")
  return()
endif()

set(Python_EXECUTABLE "${ERD_PYTHON}")
find_package(Python COMPONENTS Interpreter Development.Module QUIET)
if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "${ERD_PYTHON} has no header files: install them (package python3-dev or "
                      "python3-devel), or set ERD_PYTHON to nothing to leave out erd_cuda.array.")
endif()
execute_process(COMMAND "${ERD_PYTHON}" -m pybind11 --cmakedir OUTPUT_VARIABLE pybind11_directory
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
find_package(pybind11 2.13 CONFIG QUIET PATHS "${pybind11_directory}" NO_DEFAULT_PATH)
if(NOT pybind11_FOUND)
  message(FATAL_ERROR "erd_cuda's array module is built with pybind11 >= 2.13, which ${ERD_PYTHON} "
                      "does not find: run `pip install pybind11`.")
endif()

file(GLOB array_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/python/*.cpp")
add_library(erd_array OBJECT ${array_sources} csrc/threads/thread_pool.cpp csrc/cpu/dispatch.cpp)
target_include_directories(erd_array PRIVATE csrc)
target_compile_definitions(erd_array PRIVATE ${variant_definitions})
if(cuda_objects)
  target_compile_definitions(erd_array PRIVATE ERD_HAVE_CUDA)
endif()
target_link_libraries(erd_array PRIVATE pybind11::module)

# Objects in the order of the other library's, for the same reason.
add_library(erd_cuda_array MODULE $<TARGET_OBJECTS:erd_array> ${cuda_objects} ${kernel_objects})
find_package(Threads REQUIRED)
target_link_libraries(erd_cuda_array PRIVATE Threads::Threads ${cuda_libraries})
pybind11_extension(erd_cuda_array)
set_target_properties(erd_cuda_array PROPERTIES LINKER_LANGUAGE CXX OUTPUT_NAME _array PREFIX "")
if(ERD_LINKER_HAS_VERSION_SCRIPT)
  set(array_exports "${PROJECT_SOURCE_DIR}/cmake/array_exports.map")
  target_link_options(erd_cuda_array PRIVATE "-Wl,--version-script=${array_exports}")
  set_property(TARGET erd_cuda_array APPEND PROPERTY LINK_DEPENDS "${array_exports}")
endif()
install(TARGETS erd_cuda_array LIBRARY DESTINATION erd_cuda)
message(STATUS "erd_cuda array module: Python ${Python_VERSION}, pybind11 ${pybind11_VERSION}")
