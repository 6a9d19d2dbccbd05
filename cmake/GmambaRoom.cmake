# SPDX-License-Identifier: Apache-2.0
# One static library per room, with the warnings, standard and hardening that all rooms share.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
include(CheckPIESupported)
check_pie_supported()

function(gmamba_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion -Werror -fstack-protector-strong
                              -fno-math-errno -fno-trapping-math
                              -Wno-missing-field-initializers>  # argument structs have defaults
    # GCC 12 reports false overlaps and overflows inside std::string (bug 105329)
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-restrict
                                                                      -Wno-stringop-overflow -Wno-array-bounds -Wno-stringop-overread>)
  # nvcc's own code between host and device warns of shadowing and conversions, so these stay out
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror,-Wno-missing-field-initializers
                               --Werror=all-warnings --expt-relaxed-constexpr
                               --diag-suppress=554  # a constrained conversion operator
                               $<$<BOOL:${GMAMBA_CUDA_RESOURCES}>:-Xptxas=-v>>)
  # a Release build keeps the library's own range checks; the optimiser removes most of their cost
  target_compile_definitions(${target} PRIVATE $<$<NOT:$<CONFIG:Debug>>:_FORTIFY_SOURCE=2>
                                               _GLIBCXX_ASSERTIONS)
  target_link_options(${target} PRIVATE -Wl,-z,relro,-z,now)
  # no input of a fuzz target gets to the arithmetic, which clang takes minutes to instrument
  set(instrumented ON)
  if(GMAMBA_FUZZ AND target STREQUAL "gmamba_kernels")
    set(instrumented OFF)
  endif()
  if(GMAMBA_FUZZ AND instrumented)
    # so that libFuzzer sees which branches of the rooms an input reaches
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
  if(GMAMBA_SANITIZE)
    if(instrumented)
      target_compile_options(${target} PRIVATE -fsanitize=address,undefined -fno-omit-frame-pointer
                                               -fno-sanitize-recover=all -U_FORTIFY_SOURCE)
    endif()
    target_link_options(${target} PUBLIC -fsanitize=address,undefined)
  endif()
endfunction()

# Headers that take seconds to read are read once per target.
function(gmamba_precompile target)
  target_precompile_headers(${target} PRIVATE <algorithm> <filesystem> <functional> <map> <memory>
                                              <sstream> <string> <vector> <nlohmann/json.hpp> ${ARGN})
endfunction()

# The sources of a folder. With CUDA: *.cu and *_cuda.cpp; without: their stand-ins instead.
function(gmamba_glob out dir)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${dir}/*.cpp)
  set(stand_ins "/(cuda_stubs[a-z_]*|[a-z_]*_no_cuda)\\.cpp$")
  if(GMAMBA_WITH_CUDA)
    file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${dir}/*.cu)
    list(FILTER sources EXCLUDE REGEX ${stand_ins})
    list(APPEND sources ${cuda_sources})
  else()
    set(kept ${sources})
    list(FILTER kept INCLUDE REGEX ${stand_ins})
    list(FILTER sources EXCLUDE REGEX "_cuda\\.cpp$")
    list(APPEND sources ${kept})
    list(REMOVE_DUPLICATES sources)
  endif()
  set(${out} ${sources} PARENT_SCOPE)
endfunction()

# gmamba_room(name DIR dir LINK PUBLIC ... PRIVATE ...)
function(gmamba_room name)
  cmake_parse_arguments(ROOM "" "DIR" "LINK" ${ARGN})
  gmamba_glob(sources ${ROOM_DIR})
  if(NOT sources)
    # a room without bodies still carries its arrows
    add_library(gmamba_${name} INTERFACE)
    string(REGEX REPLACE "PUBLIC|PRIVATE" "" links "${ROOM_LINK}")
    target_link_libraries(gmamba_${name} INTERFACE ${links})
    return()
  endif()
  add_library(gmamba_${name} STATIC ${sources})
  target_link_libraries(gmamba_${name} ${ROOM_LINK})
  target_include_directories(gmamba_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:include/gmamba>)
  target_compile_features(gmamba_${name} PUBLIC cxx_std_20)
  gmamba_warnings(gmamba_${name})
  if(NOT ${name} MATCHES "^(core|kernels)$")  # which hardly use them
    gmamba_precompile(gmamba_${name})
  endif()
endfunction()
