# The CUDA kernels: whether to build them, with which toolkit, for which GPUs.
#
# Sets cuda_objects and cuda_libraries for the link, ERD_BUILD_CUDA_ARCHITECTURES and
# ERD_BUILD_CUDA_COMPILER for build_info(); all empty where there is nothing to build.
#
# CMake's own CUDA language is not used. To enable it CMake links and examines programs of its own,
# which its releases older than the toolkit fail at, and a target has one list of architectures,
# where here some files are for one GPU only. A command per file does with any CMake and any nvcc,
# wrapper scripts included, and never looks for a GPU.
set(ERD_CUDA "AUTO" CACHE STRING "Build the CUDA kernels: AUTO (where a toolkit is), ON or OFF")
set_property(CACHE ERD_CUDA PROPERTY STRINGS AUTO ON OFF)
set(ERD_NVCC "" CACHE FILEPATH "The CUDA compiler; empty: look for it")
set(ERD_CUDA_ARCHITECTURES "" CACHE STRING "GPUs to compile for; empty: all that nvcc knows of \
75;80;86;89;90;90a;100;120")

set(cuda_objects "")
set(cuda_libraries "")
set(ERD_BUILD_CUDA_ARCHITECTURES "")
set(ERD_BUILD_CUDA_COMPILER "")

# ---- the toolkit ---------------------------------------------------------------------------------
# Sets nvcc, nvcc_version and cudart_library, or says in missing_toolkit what stands in the way.
function(find_cuda_toolkit)
  set(named "${ERD_NVCC}")
  if(NOT named)
    set(named "$ENV{CUDACXX}")
  endif()
  if(named)
    find_program(nvcc "${named}" NO_CACHE)
    set(where "'${named}' is not there")
  else()
    # Without such a variable there must be no hint: "/bin" would come before PATH.
    set(hints "$ENV{CUDA_HOME}" "$ENV{CUDA_PATH}")
    list(FILTER hints EXCLUDE REGEX "^$")
    list(TRANSFORM hints APPEND /bin)
    find_program(nvcc nvcc NO_CACHE HINTS ${hints} PATHS /usr/local/cuda/bin)
    set(where "there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
  endif()
  if(NOT nvcc)
    set(missing_toolkit "${where}" PARENT_SCOPE)
    return()
  endif()

  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE version ERROR_QUIET)
  # nvcc may be a script that calls the one inside the toolkit; that one knows where it is.
  execute_process(COMMAND "${nvcc}" --dryrun nothing.cu OUTPUT_VARIABLE dry ERROR_VARIABLE dry)
  if(NOT version MATCHES "release ([0-9]+\\.[0-9]+)" OR NOT dry MATCHES "#\\$ TOP=([^\n\r]+)")
    set(missing_toolkit "'${nvcc}' does not run or is no nvcc" PARENT_SCOPE)
    return()
  endif()
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" ignored "${version}")
  set(nvcc_version "${CMAKE_MATCH_1}")
  string(REGEX MATCH "#\\$ TOP=([^\n\r]+)" ignored "${dry}")
  get_filename_component(root "${CMAKE_MATCH_1}" REALPATH)
  if(nvcc_version VERSION_LESS 12.1)
    set(missing_toolkit "'${nvcc}' is of CUDA ${nvcc_version}, and 12.1 or newer is needed"
        PARENT_SCOPE)
    return()
  endif()

  set(target "${root}/targets/${CMAKE_SYSTEM_PROCESSOR}-linux")
  find_path(cuda_headers cuda_runtime.h NO_CACHE HINTS "${root}/include" "${target}/include")
  find_library(cudart_library cudart_static NO_CACHE
               HINTS "${root}/lib64" "${root}/lib" "${target}/lib")
  if(NOT cuda_headers OR NOT cudart_library)
    set(missing_toolkit
        "the toolkit in ${root} has no cuda_runtime.h or no libcudart_static.a" PARENT_SCOPE)
    return()
  endif()
  set(nvcc "${nvcc}" PARENT_SCOPE)
  set(nvcc_version "${nvcc_version}" PARENT_SCOPE)
  set(cudart_library "${cudart_library}" PARENT_SCOPE)
endfunction()

if(NOT ERD_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "ERD_CUDA is '${ERD_CUDA}', expected AUTO, ON or OFF.")
endif()
if(ERD_CUDA STREQUAL "OFF")
  message(STATUS "erd_cuda kernels: no CUDA (ERD_CUDA is OFF)")
  return()
endif()
set(missing_toolkit "")
find_cuda_toolkit()
if(missing_toolkit)
  if(ERD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ERD_CUDA is ON, but no CUDA toolkit can be used: ${missing_toolkit}.")
  endif()
  message(STATUS "erd_cuda kernels: no CUDA (${missing_toolkit})")
  return()
endif()

# ---- the architectures ---------------------------------------------------------------------------
execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE known)
string(REGEX MATCHALL "[0-9]+" known "${known}")
set(architectures "${ERD_CUDA_ARCHITECTURES}")
if(NOT architectures)
  foreach(architecture IN ITEMS 75 80 86 89 90 90a 100 120)
    string(REPLACE "a" "" number ${architecture})
    if(number IN_LIST known)
      list(APPEND architectures ${architecture})
    endif()
  endforeach()
endif()

# Kernels for one GPU's own instructions stand in files *_sm90a.cu; all other files are compiled for
# 90a only where 90 is not asked for. They ask for nothing beyond compute capability 8.0, so one PTX,
# that of the lowest architecture from 80 on, is made into the machine code of all of these: most of
# the compile time goes into PTX. It also goes into the library, for GPUs still to come.
set(common_flags "")
set(common_names "")
set(older "")
set(newer "")
set(with_sm90a OFF)
foreach(architecture IN LISTS architectures)
  string(REGEX MATCH "^([0-9]+)(a?)$" valid "${architecture}")
  set(number "${CMAKE_MATCH_1}")
  set(suffix "${CMAKE_MATCH_2}")
  if(NOT valid OR NOT number IN_LIST known OR number LESS 75)
    message(FATAL_ERROR "ERD_CUDA_ARCHITECTURES names '${architecture}', this nvcc "
                        "(CUDA ${nvcc_version}) knows: ${known}; kernels need 75 or higher.")
  endif()
  if(architecture STREQUAL "90a")
    set(with_sm90a ON)
  endif()
  if(suffix AND number IN_LIST architectures)
    continue()
  endif()
  list(APPEND common_names "sm_${architecture}")
  if(suffix)
    list(APPEND common_flags "-gencode=arch=compute_${architecture},code=sm_${architecture}")
  elseif(number LESS 80)
    list(APPEND older ${number})
  else()
    list(APPEND newer ${number})
  endif()
endforeach()
set(ptx "")
foreach(group IN ITEMS older newer)
  if(${group})
    list(SORT ${group} COMPARE NATURAL)
    list(GET ${group} 0 ptx)
    list(TRANSFORM ${group} PREPEND "sm_")
    if(group STREQUAL "newer" OR NOT newer)
      list(APPEND ${group} compute_${ptx})
    endif()
    string(JOIN "," codes ${${group}})
    list(APPEND common_flags "-gencode=arch=compute_${ptx},code=[${codes}]")
  endif()
endforeach()

# ---- the commands --------------------------------------------------------------------------------
file(GLOB cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu")
set(sm90a_sources ${cuda_sources})
list(FILTER sm90a_sources INCLUDE REGEX "_sm90a\\.cu$")
if(NOT with_sm90a)
  list(REMOVE_ITEM cuda_sources ${sm90a_sources})
  set(sm90a_sources "")
endif()

# The host compiler sees `#pragma unroll` too, which means nothing to it.
set(compiler_flags -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra
    -Wno-unknown-pragmas)
set(ptxas_flags -v --warn-on-spills)
set(nvcc_flags -c -O3 -std=c++17 -DNDEBUG -DERD_ARCH=cuda "-I${PROJECT_SOURCE_DIR}/csrc"
    "-ccbin=${CMAKE_CXX_COMPILER}" --threads=2)
if(sm90a_sources)
  list(APPEND nvcc_flags -DERD_HAVE_SM90A)
endif()
if(ERD_WERROR)
  list(APPEND compiler_flags -Werror)
  list(APPEND nvcc_flags -Werror=all-warnings)
endif()
list(JOIN compiler_flags "," compiler_flags)
list(JOIN ptxas_flags "," ptxas_flags)
list(APPEND nvcc_flags "-Xcompiler=${compiler_flags}" "-Xptxas=${ptxas_flags}")

set(object_directory "${PROJECT_BINARY_DIR}/CMakeFiles/erd_cuda_kernels.dir")
file(MAKE_DIRECTORY "${object_directory}")
foreach(source IN LISTS cuda_sources)
  get_filename_component(name "${source}" NAME)
  set(flags ${common_flags})
  if(source IN_LIST sm90a_sources)
    set(flags "-gencode=arch=compute_90a,code=sm_90a")
  endif()
  set(object "${object_directory}/${name}.o")
  # Registers and spills of every kernel go to a log beside the object; what nvcc has to say is
  # shown only if it fails.
  add_custom_command(
    OUTPUT "${object}"
    COMMAND sh -c "\"$@\" >\"$0\" 2>&1 || { cat \"$0\"; exit 1; }" "${object}.log"
            "${nvcc}" ${nvcc_flags} ${flags} -MD -MF "${object}.d" -o "${object}" "${source}"
    DEPENDS "${source}" "${nvcc}"
    DEPFILE "${object}.d"
    COMMENT "Compiling CUDA kernels of csrc/cuda/${name}"
    VERBATIM)
  list(APPEND cuda_objects "${object}")
endforeach()

set(names ${common_names})
if(sm90a_sources AND NOT "sm_90a" IN_LIST names)
  list(APPEND names sm_90a)
endif()
if(ptx)
  list(APPEND names compute_${ptx})
endif()
string(JOIN " " ERD_BUILD_CUDA_ARCHITECTURES ${names})
set(ERD_BUILD_CUDA_COMPILER "nvcc ${nvcc_version}")
# The runtime is linked in: the library loads where there is no driver, and brings no second
# libcudart into a process that has torch's.
set(cuda_libraries "${cudart_library}" -Wl,--push-state,--as-needed rt dl pthread -Wl,--pop-state)
message(STATUS "erd_cuda kernels: CUDA ${nvcc_version} (${ERD_BUILD_CUDA_ARCHITECTURES}), ${nvcc}")
