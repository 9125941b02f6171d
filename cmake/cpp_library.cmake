# liberd_cuda, the refiner for C++ programs without torch or Python, and what find_package(erd_cuda)
# reads. CPU kernels only.
if(NOT ERD_CPP)
  return()
endif()

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
find_package(Threads REQUIRED)

file(GLOB cpp_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/cpp/*.cpp")
add_library(erd_cpp OBJECT ${cpp_sources} csrc/threads/thread_pool.cpp csrc/cpu/dispatch.cpp)
target_include_directories(erd_cpp PRIVATE csrc csrc/cpp/include)
target_compile_definitions(erd_cpp PRIVATE ${variant_definitions})

# Objects in the order of the other libraries', for the same reason. Shared, so that the kernels'
# code for higher instruction sets cannot be linked into the program's.
add_library(refiner SHARED $<TARGET_OBJECTS:erd_cpp> ${kernel_objects})
add_library(erd_cuda::refiner ALIAS refiner)
target_link_libraries(refiner PRIVATE Threads::Threads)
target_compile_features(refiner INTERFACE cxx_std_17)
target_include_directories(refiner INTERFACE
                           "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/cpp/include>"
                           "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
set_target_properties(refiner PROPERTIES LINKER_LANGUAGE CXX OUTPUT_NAME erd_cuda
                      VERSION "${ERD_VERSION}" SOVERSION "${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}")
if(ERD_LINKER_HAS_VERSION_SCRIPT)
  set(cpp_exports "${PROJECT_SOURCE_DIR}/cmake/cpp_exports.map")
  target_link_options(refiner PRIVATE "-Wl,--version-script=${cpp_exports}")
  set_property(TARGET refiner APPEND PROPERTY LINK_DEPENDS "${cpp_exports}")
endif()

set(cpp_package "${CMAKE_INSTALL_LIBDIR}/cmake/erd_cuda")
install(TARGETS refiner EXPORT erd_cuda_targets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY csrc/cpp/include/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT erd_cuda_targets NAMESPACE erd_cuda:: FILE erd_cudaConfig.cmake
        DESTINATION "${cpp_package}")
# Before 1.0 a minor version may break what was there.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/erd_cudaConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/erd_cudaConfigVersion.cmake" DESTINATION "${cpp_package}")
message(STATUS "erd_cuda C++ library: find_package(erd_cuda), target erd_cuda::refiner")
